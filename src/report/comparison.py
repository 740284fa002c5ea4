"""Which runs may be averaged or set beside each other, and which beside the paper: by their configs."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from src.runs.naming import flatten, identity

Config = dict[str, Any]

CONF = Path(__file__).resolve().parents[2] / "conf"
# What runs may differ in and still be: seeds of one run, depths of one kind of net, nets trained in one way.
SEED, DEPTH, NET = r"seed", r"seed|model\.(n|depth)", r"seed|model\..*"
# The paper's data, and what may differ from its training: which net, its split (which the paper leaves open),
# precision, and what only decides when something is written.
PAPER_DATA = ("cifar10", "imagenet")
NO_DEPARTURE = re.compile(r"model\.shortcut|data\.(val_images|on_bad)|trainer\..*|recipe\.(eval|checkpoint)_every")
IMAGENET_IMAGES = 1281167


def alike(config: Config, but: str) -> str:
    """A name that two configs share if they say the same run but for keys that match `but`; it begins with a letter.

    Keys that a config does not have are taken as `usual` has them.
    """
    whole = identity(usual(config) | flatten(config))
    same = {key: value for key, value in sorted(whole.items()) if not re.fullmatch(but, key)}
    return "c" + hashlib.sha256(json.dumps(same, default=str).encode()).hexdigest()[:11]


def unusual(config: Config, **choices: str) -> dict[str, tuple[Any, Any]]:
    """The keys in which a run differs from the config files that it chose (or `choices`): its value, and theirs."""
    theirs = usual(config, **choices)
    found = {key: value for key, value in identity(config).items() if key in theirs and not re.fullmatch(DEPTH, key)}
    return {key: (value, theirs[key]) for key, value in found.items() if value != theirs[key]}


def usual(config: Config, **choices: str) -> Config:
    """The flat keys of the config files that a run chose (or `choices`).

    Keys that the run's config does not have came later, with what it did as their default.
    """
    found: Config = {"trainer.precision": "32-true"}
    for group in ("model", "data", "recipe"):
        found |= _config_file(group, choices.get(group, config["choices"][group]))
    return found


@cache
def _config_file(group: str, name: str) -> Config:
    """The flat keys of a file of `conf` and of those it builds on; none if there is no such file (any more)."""
    path = CONF / group / f"{name}.yaml"
    own = yaml.safe_load(path.read_text()) if path.exists() else {}
    inherited: Config = {}
    for base in own.pop("defaults", []):
        inherited |= _config_file(group, base)
    return inherited | flatten({group: own})


def departures(config: Config, train_images: int | None = None) -> str:
    """In what a run's training departs from the paper's, in words; empty if in nothing, or if the data are not its."""
    data = config["choices"]["data"]
    if data not in PAPER_DATA:
        return ""
    words: list[str] = []
    differing = unusual(config, recipe=data)
    if data == "imagenet" and train_images and train_images + config["data"]["val_images"] != IMAGENET_IMAGES:
        words.append(f"{train_images:,} of {IMAGENET_IMAGES:,} photos")
    for key, (found, usual) in differing.items():
        if key == "recipe.iterations":
            words.insert(0, f"{found:,} of {usual:,} iterations")
        elif not NO_DEPARTURE.fullmatch(key):
            words.append(f"{key.rpartition('.')[2]} {found}, not {usual}")
    return "; ".join(words)


def variants(configs: Sequence[Config], keys: str = ".*") -> list[str]:
    """What tells each config from the others beside net, depth and seed, in words: `shortcut B, bf16-mixed`.

    Usual values are not told, nor is what all have in common. `keys` narrows what is looked at.
    """
    all_found = [{k: v for k, (v, _) in unusual(c).items() if re.fullmatch(keys, k)} for c in configs]
    common = [k for k, v in all_found[0].items() if all(k in found and found[k] == v for found in all_found)]
    return [", ".join(_words(k, v) for k, v in found.items() if k not in common) for found in all_found]


def _words(key: str, value: Any) -> str:
    return str(value) if key == "trainer.precision" else f"{key.rpartition('.')[2]} {value}"


def grouped(items: Iterable[Any], key: Any) -> dict[Any, list[Any]]:
    """Items by key, wherever they stand; in the order in which they come."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
