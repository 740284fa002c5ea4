"""Compose configs with Hydra, and find the run directory that belongs to one."""

from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

import src.training.launcher  # noqa: F401 (registers hydra/launcher=devices)
from src.config_values import check_ranges, check_task, check_values
from src.runs.config_files import CONF, file_defaults, flatten
from src.runs.loggers import check_loggers
from src.runs.naming import run_key, run_name
from src.runs.run_dir import RunDir

# Lightning's short names: one precision is one run.
PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


def compose_config(*overrides: str, config_name: str = "train") -> DictConfig:
    """Return the config of a command line, composed in this process.

    Hydra must be initialized, for example by `initialize_config_dir`.
    """
    config = compose(config_name, [*overrides], return_hydra_config=True)
    # As hydra.main does it: `resolve` reads the choices from there.
    HydraConfig.instance().set_config(config)
    return without_hydra(config)


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's own node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def to_dict(config: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """Return a config as plain values, by default with its interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve))


def resolve(config: DictConfig, config_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Validate a composed config and turn it into plain values.

    Returns:
        The config, and the defaults for the same model and data; both with `choices`, the names
        chosen in each group.

    Raises:
        ValueError: a key that nothing reads, a value of the wrong type, a value taken from the
            environment, or an n for a net that has its own.
    """
    hydra_config = HydraConfig.get()
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    chosen = hydra_config.runtime.choices
    choices = {group: str(chosen[group]) for group in groups if chosen.get(group)}
    # A config is written down, and so would be a secret in it.
    for key, value in flatten(to_dict(config, resolve=False)).items():
        if "oc.env" in str(value):
            raise ValueError(f"{key}={value} takes its value from the environment: set the value")

    given = [f"{name}={choices[name]}" for name in ("model", "data", "task") if name in choices]
    usual = compose(config_name, given)
    values, defaults = to_dict(config), to_dict(usual)
    check_values(values, defaults, choices)
    check_task(values, choices)
    if values["model"]["_target_"] == "???":
        raise ValueError(
            "model=custom needs model._target_=FUNCTION, such as torchvision.models.resnet18, and "
            "its arguments, such as +model.num_classes=10"
        )
    precision = str(values["trainer"]["precision"])
    values["trainer"]["precision"] = PRECISIONS.get(precision, precision)
    if "protocol" in values:
        values["protocol"] = join_protocol(values["protocol"])
    if config_name == "train":
        check_loggers(values.setdefault("logger", {}))  # none at all with logger=null
    _set_num_classes(values, defaults["model"])
    if config_name == "train":
        _leave_out_arguments(values["recipe"], file_defaults("recipe", choices["recipe"]))

    # There always is an n, so only the command line tells whether somebody asked for one.
    n_is_set = any(override.startswith("n=") for override in hydra_config.overrides.task)
    if n_is_set and values["model"].get("n") != values["n"]:
        raise ValueError(
            f"model={choices['model']} has its own depth: n={values['n']} needs "
            "model=plain, resnet, highway or preactivation"
        )
    return {"choices": choices, **values}, {"choices": choices, **defaults}


def join_protocol(protocol: str | list[Any]) -> str:
    """Return one name for an evaluation protocol, which may be a list of several together.

    Returns:
        Such as `refine+multiscale`, whatever the order of the list.
    """
    parts = protocol.split("+") if isinstance(protocol, str) else map(str, protocol)
    return "+".join(sorted(parts, key=lambda part: part != "refine"))


def _set_num_classes(values: dict[str, Any], default_model: dict[str, Any]) -> None:
    """Give the net as many outputs as the data have classes, if their config says how many.

    A `model.num_classes` other than that of the config file of the net stays.
    """
    data, model = values["data"], values["model"]
    if data.get("num_classes", 0) is None:  # data=images: as many as its directory has
        from src.data.image_folder import class_names  # imports NumPy

        if data["root"] is None:
            raise ValueError("data=images needs data.root=DIRECTORY, the directory of your images")
        data["num_classes"] = len(class_names(Path(data["root"])))
    if data.get("root"):
        # The root may be part of the run's name: the same one for pets, pets/ and ./pets.
        data["root"] = str(Path(data["root"]))
    # Not every net has the key; of data without it, the net's own default fits.
    if "num_classes" in data and model.get("num_classes") == default_model.get("num_classes", 0):
        model["num_classes"] = data["num_classes"]


def _leave_out_arguments(recipe: dict[str, Any], file_values: dict[str, Any]) -> None:
    """Leave out arguments that an optimizer or schedule other than the recipe's does not take.

    Hydra merges its arguments with those of the recipe's file, such as SGD's momentum. A value that
    was changed on the command line stays, and is an error if the argument does not exist.
    """
    for name in ("optimizer", "schedule"):
        options = recipe[name]
        if options["_target_"] == file_values[f"recipe.{name}._target_"]:
            continue
        target = locate(options["_target_"])  # imports torch, or is None and an error later
        if not callable(target):
            continue
        taken = {"_target_", "_partial_", "lr", *signature(target).parameters}
        for key in options.keys() - taken:
            if options[key] == file_values.get(f"recipe.{name}.{key}"):
                del options[key]


def find_run_dir(config: DictConfig) -> RunDir:
    """Return the run directory that belongs to a composed config, with `precision: auto` resolved.

    Raises:
        ValueError: a value that no run can have.
    """
    values, defaults = resolve(config, "train")
    check_ranges(values)

    from src.training.precision import resolve_precision  # imports torch

    trainer = values["trainer"]
    trainer["precision"] = resolve_precision(trainer["precision"], trainer["accelerator"])
    # Not what auto means here: a name must not depend on the machine that finds it.
    defaults["trainer"]["precision"] = "32-true"
    flat_defaults = flatten(defaults)
    identity = run_key(values, flat_defaults)
    path = Path(values["output_dir"]) / identity["data"] / run_name(identity)
    return RunDir(path, values, flat_defaults)


def known_keys(config_name: str, arguments: list[str]) -> list[str]:
    """Return all keys that a command line with these arguments may set, for did-you-mean."""
    chosen = [a for a in arguments if (CONF / a.partition("=")[0]).is_dir() and "," not in a]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # Without the choices if one of them is wrong, too: most keys are there all the same.
        for overrides in (chosen, []):
            try:
                config = to_dict(compose(config_name, overrides), resolve=False)
            except HydraException:
                continue
            return [*flatten(config), *(group.name for group in CONF.iterdir() if group.is_dir())]
    return []
