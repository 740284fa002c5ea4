"""The values that the files in `conf/` imply for a run, and the config.yaml that a run keeps.

Read without Hydra, so that reports start at once.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parents[2] / "conf"

# Keys that were renamed: an old key is still accepted for one version, on the command line and in
# stored configs.
RENAMED_KEYS = {
    "runs": "output_dir",
    "step": "compile",
    "recompute": "activation_checkpointing",
    "experiments": "experiment",
    "data.colour": "data.color_noise",
    "recipe.norm_batches": "recipe.precise_bn_batches",
    "recipe.schedule.drops": "recipe.schedule.milestones",
    "recipe.schedule.divisor": "recipe.schedule.gamma",
    "recipe.schedule.max_drops": "recipe.schedule.max_reductions",
    "logger.project": "logger.wandb.project",
    "logger.entity": "logger.wandb.entity",
    "logger.system_metrics": "logger.wandb.system_metrics",
}
# Values that were renamed, by the present name of their key; accepted in the same places.
RENAMED_VALUES = {
    "model.init": {
        "fan_in": "he_fan_in",
        "fan_out": "he_fan_out",
        "glorot": "xavier",
        "normal": "gaussian_0.1",
    }
}


# Functions of other libraries that build nets and do nothing else.
KNOWN_NETS = re.compile(r"torchvision\.models\.[a-z0-9_]+|timm\.create_model")


def with_present_names(flat: dict[str, Any]) -> dict[str, Any]:
    """Return flat keys and their values under their present names."""
    present = {RENAMED_KEYS.get(key, key): value for key, value in flat.items()}
    for key in RENAMED_VALUES.keys() & present.keys():
        # As text: a config may hold any value, such as a list, which cannot be a key of a dict.
        present[key] = RENAMED_VALUES[key].get(str(present[key]), present[key])
    return present


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"recipe": {"iterations": 1}} into {"recipe.iterations": 1}; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Undo `flatten`."""
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        # An empty group may get keys below: a group of its own, not the one in the cached defaults.
        node[name] = {} if value == {} else value
    return config


@cache
def file_defaults(group: str, name: str) -> dict[str, Any]:
    """Return the flat keys of `conf/GROUP/NAME.yaml` and of the files it builds on.

    The result is empty if there is no such file.
    Keys that refer to others, such as `n: ${n}`, are left out: they have no default of their own.
    """
    path = CONF / group / f"{name}.yaml"
    if not path.exists():
        return {}
    own = yaml.safe_load(path.read_text())
    # Hydra's list of the files that this one builds on, all of the same group.
    inherited: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        inherited |= file_defaults(group, base)
    flat = flatten(own, f"{group}.")
    return inherited | {key: value for key, value in flat.items() if "${" not in str(value)}


def task_name(choices: dict[str, Any]) -> str:
    """Return the task that a config chose; one that names none is of classification."""
    return choices.get("task", "classification")


def defaults_of(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the flat values that a run has by default, given its model, data and task.

    The default recipe is the one named like the data.
    """
    return chosen_values(choices | {"recipe": choices["data"]})


def chosen_values(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the flat values of all config files that a run chose, its recipe among them."""
    values = dict(_trainer_defaults())
    for group in ("model", "data", "task", "recipe"):
        name = task_name(choices) if group == "task" else choices[group]
        values |= file_defaults(group, name)
    return values


@cache
def _trainer_defaults() -> dict[str, Any]:
    train = flatten(yaml.safe_load((CONF / "train.yaml").read_text()))
    kept = ("weights", "localizer", "callbacks")
    defaults = {k: v for k, v in train.items() if k.startswith("trainer.") or k in kept}
    # The default, `auto`, depends on the hardware.
    return defaults | {"trainer.precision": "32-true"}


def without_implied_targets(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without each `_target_` that its config files imply.

    So a run directory stays valid when the code that a `_target_` names is moved.
    """
    chosen = chosen_values(config["choices"])
    flat = flatten(config)
    implied = [k for k, v in flat.items() if k.endswith("._target_") and chosen.get(k) == v]
    return unflatten({key: value for key, value in flat.items() if key not in implied})


def read_config(path: Path) -> dict[str, Any]:
    """Return the config in a config.yaml, as the present code would have written it.

    Renamed keys have their present names, and keys that it lacks have their defaults.

    Raises:
        ValueError: the file was written by version 0.1, or holds no config.
    """
    config = yaml.safe_load(path.read_text())
    if isinstance(config, dict) and "runs" in config:  # the name of output_dir in version 0.1
        raise ValueError(
            f"{path.parent} was written by version 0.1, which this version cannot read: finish and "
            "report it with that version, or choose another output_dir"
        )
    if not isinstance(config, dict) or not isinstance(config.get("choices"), dict):
        raise ValueError(f"{path} holds no config of a run")
    return unflatten(chosen_values(config["choices"]) | with_present_names(flatten(config)))


def check_targets(config: dict[str, Any], path: Path) -> None:
    """Check the `_target_` values of a config from a run directory, which may not be trusted.

    Hydra calls whatever a `_target_` names, so only names that appear in `conf/` are allowed.

    Raises:
        ValueError: the net, the data or the task of the run in `path` are built by anything else.
    """
    # Of every group: what conf/ names is this project's own choice.
    files = CONF.rglob("*.yaml")
    allowed = {name for file in files for name in targets(yaml.safe_load(file.read_text()))}
    called = [config.get(group, {}) for group in ("model", "data", "task")]
    named = {str(name) for name in targets(called)} - allowed
    foreign = sorted(name for name in named if not KNOWN_NETS.fullmatch(name))
    if foreign:
        raise ValueError(
            f"{path} calls {foreign[0]}, which is not allowed: if it is your own code, write "
            f"`_target_: {foreign[0]}` into a file of conf/model or conf/data"
        )


def targets(value: Any) -> Iterator[Any]:
    """Yield all values of `_target_` in nested dicts and lists."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        # A list of targets may be the argument of another one, so lists count as well.
        value = [*value.values()]
    if isinstance(value, list):
        for item in value:
            yield from targets(item)
