"""The identity of a run: its run key, the name of its directory, and the family of its net."""

import hashlib
import re
from pathlib import Path
from typing import Any

from src.runs.config_files import (
    file_defaults,
    flatten,
    task_name,
    with_present_names,
    without_implied_targets,
)

# Where, how fast and in how much memory a run is executed is not part of its identity; precision
# is. `choices` and `n` are only the words a run was asked for with: what they chose is in `model`,
# `data` and `recipe`. How many classes there are follows from the data, and so do their tasks.
EXECUTION_KEYS = re.compile(
    r"trainer\.(accelerator|devices|num_nodes|strategy|deterministic)"
    r"|data\.(root|download|num_workers|num_classes|tasks|source)|logger.*|output_dir"
    r"|activation_checkpointing|checkpoint_seconds|compile|protocol|sweep\..*|choices\..*|n"
)
TARGET = "._target_"  # the end of the keys that name code
LONGEST_NAME = 200  # file systems allow 255 bytes, with the seed and what temporary files add


def identity_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return the flat keys of a config that tell runs apart, as they can change a result."""
    flat = flatten(config)
    kept = {key: value for key, value in flat.items() if not EXECUTION_KEYS.fullmatch(key)}
    # These are whatever their directory holds; other data are the same wherever they are.
    of_directory = flat.get("choices.data") in ("images", "voc", "coco", "nuclei")
    return kept | ({"data.root": flat["data.root"]} if of_directory else {})


def run_key(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a run: data, net, task, seed, and the values that are not defaults.

    A key that a stored config lacks counts as its default, and so does a `_target_` that equals the
    one in the chosen config file. So adding a key, or moving the code that a `_target_` names,
    changes no run key.

    Args:
        config: a resolved config, with the `choices` it was composed of.
        defaults: the flat defaults of the same choices.
    """
    choices = config["choices"]
    net = net_name(choices["model"], config["model"].get("n"))
    task = task_name(choices)
    named_task = {} if task == "classification" else {"task": task}
    key = {"data": choices["data"], "net": net, **named_task, "seed": config["seed"]}
    # The file names its code, which is left out below. Code of other files than the default one has
    # to be told from it.
    targets = {k: v for k, v in file_defaults("recipe", choices["recipe"]).items() if TARGET in k}
    if any(defaults.get(name) != target for name, target in targets.items()):
        key["recipe"] = choices["recipe"]
    for name, value in identity_keys(without_implied_targets(config)).items():
        # model=resnet n=9 is named resnet56, as model=resnet56 is, so the name already has the n.
        in_name = name == "model.n" and net != choices["model"]
        is_default = name in defaults and defaults[name] == value
        is_implied = name == "model.num_classes" and value == config["data"].get("num_classes")
        if not (in_name or is_default or is_implied):
            key[name] = value  # the seed, if it is not the default, stays in its place
    return key


def differences(stored: dict[str, Any], present: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Return how two run keys differ, as `KEY was X, now Y`; empty if they are equal."""
    changes = []
    stored = with_present_names(stored)  # a checkpoint has keys with the names of its time
    for key in {**stored, **present}:
        was, now = (run.get(key, defaults.get(key)) for run in (stored, present))
        if stored.get(key) != present.get(key):
            changes.append(f"{key} was {was}, now {now}")
    return ", ".join(changes)


def run_name(key: dict[str, Any]) -> str:
    """Return the name of a run's directory: `resnet56-iterations200-s0`, from its run key."""
    return f"{curve_name(key)}-s{key['seed']}"


def curve_name(key: dict[str, Any]) -> str:
    """Return what the seeds of a run have in common: its name without the seed."""
    parts = [key["net"]]
    for name, value in key.items():
        if name not in ("data", "net", "seed"):
            # bf16-mixed says what it is without the key's name; most other values do not.
            plain = name in ("task", "recipe", "trainer.precision")
            label = "" if plain else name.rpartition(".")[2]
            if name == "localizer":  # a run directory, whose own name tells it
                value = Path(value).name
            parts.append(label + re.sub(r"[^\w.+-]+", "_", str(value)).strip("_"))
    name = "-".join(parts)
    if len(name) <= LONGEST_NAME:
        return name
    # What is cut off still tells runs from each other.
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def net_name(model: str, n: int | None) -> str:
    """Return `resnet56` for both model=resnet56 and model=resnet n=9 (depth 6n+2, Sec. 4.2)."""
    # :g because n=2.5 must get as far as the net, whose message names the depths around it.
    return model if n is None or re.search(r"\d", model) else f"{model}{6 * n + 2:g}"


def family(config: dict[str, Any]) -> str:
    """Return `plain`, `residual` or another kind of net, by the function that builds it."""
    model = config["model"]
    # timm has one function for all nets.
    function = model.get("model_name", model["_target_"].rpartition(".")[2])
    name = function.removesuffix("_imagenet").removesuffix("_bottleneck")
    return {"resnet": "residual", "preact_resnet": "preactivation"}.get(name, name)
