"""Decide which runs may be averaged, compared with each other, or compared with the paper."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from src.runs.config_files import chosen_values, flatten
from src.runs.naming import identity_keys
from src.tables import Row, read_csv

Config = dict[str, Any]

PAPER_RESULTS = Path(__file__).with_name("paper_results.csv")

# Keys to leave out of a comparison: of the seeds of one run, of the depths of one kind of net, and
# of all nets that were trained in one way.
SEED = r"seed"
DEPTH = r"seed|model\.(n|depth)"
NET = r"seed|model\..*"
# Of all runs that differ in what `differences` compares, the net or the precision, or in what each
# of them starts from.
WAY = r"seed|model\.(?!init$|norm$).*|trainer\.precision|weights|localizer"

CENTER = "center"  # the protocol of all rows of older versions
PAPER_DATA = ("cifar10", "imagenet")
IMAGENET_IMAGES = 1281167  # training images of ILSVRC 2012
# Keys that do not make a training differ from the paper's: the net, the validation split and the
# batches of batch norm (which the paper leaves open, and which have a column), the precision, and
# how often something is written.
NO_DEPARTURE = re.compile(
    r"model\.shortcut|data\.(val_images|on_bad)|trainer\.(precision|sync_batchnorm)"
    r"|recipe\.(batch_norm_images|(eval|checkpoint)_every)"
)


def comparison_key(config: Config, ignore: str) -> str:
    """Return an id that two configs share if they are equal except in the keys to ignore.

    Args:
        config: The nested config of a run.
        ignore: A regular expression for flat keys, such as `SEED`; empty for none.

    Returns:
        A letter and 11 hexadecimal digits: never read as a number from a CSV file.
    """
    complete = complete_keys(config)
    kept = {key: value for key, value in sorted(complete.items()) if not re.fullmatch(ignore, key)}
    return "c" + hashlib.sha256(json.dumps(kept, default=str).encode()).hexdigest()[:11]


def complete_keys(config: Config) -> dict[str, Any]:
    """Return the flat keys of a config that can change a run's result, those that it lacks too.

    A key that a stored config lacks counts as its default: a new key orphans no results.
    """
    keys = identity_keys(chosen_values(config["choices"]) | flatten(config))
    if keys.get("localizer"):  # each seed has that of its own seed
        keys["localizer"] = re.sub(r"-s\d+$", "", keys["localizer"])
    return keys


def changed_keys(config: Config, **choices: str) -> dict[str, tuple[Any, Any]]:
    """Return the keys, other than depth and seed, in which a run differs from its config files.

    They include arguments of Lightning's Trainer that are in no file, such as gradient_clip_val.

    Args:
        config: The nested config of a run.
        choices: Files to take in place of the chosen ones, such as recipe="cifar10".

    Returns:
        For each key the run's value and the default.
    """
    defaults = chosen_values(config["choices"] | choices)
    return {
        key: (value, defaults.get(key))
        for key, value in identity_keys(config).items()
        if key in defaults or key.startswith("trainer.")
        if value != defaults.get(key) and not re.fullmatch(DEPTH, key)
    }


def departures(config: Config, train_images: int | None = None) -> str:
    """Describe how a run's training differs from the paper's.

    Args:
        config: The nested config of the run.
        train_images: The number of images that it was trained on, if known.

    Returns:
        Such as `2,000 of 64,000 iterations; batch_size 64, not 128`. It is empty if nothing
        differs, and for data that the paper does not have.
    """
    data = config["choices"]["data"]
    if data not in PAPER_DATA:
        return ""
    parts = []
    # The recipe of the data is the paper's, whichever recipe the run chose.
    changed = changed_keys(config, recipe=data)
    if "recipe.iterations" in changed:
        parts.append("{:,} of {:,} iterations".format(*changed.pop("recipe.iterations")))
    # A smaller copy of ImageNet has the same config, so only the number of images shows it.
    all_images = IMAGENET_IMAGES - config["data"].get("val_images", 0)
    if data == "imagenet" and train_images not in (None, all_images):
        parts.append(f"{train_images:,} of {IMAGENET_IMAGES:,} images")
    parts += [
        describe_change(key, value, default)
        for key, (value, default) in changed.items()
        if not NO_DEPARTURE.fullmatch(key)
    ]
    return "; ".join(parts)


def describe_change(key: str, value: Any, default: Any) -> str:
    """Describe a value such as `batch_size 64, not 128`."""
    return f"{key.rpartition('.')[2]} {as_in_yaml(value)}, not {as_in_yaml(default)}"


def as_in_yaml(value: Any) -> str:
    """Return a value as config files and the command line have it: `null`, `[false, true]`."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def paper_result(row: Row) -> Row | None:
    """Return the paper's row for the net and the test protocol of a result row, if it has one."""
    model = row["model"]
    # model=resnet n=9 and model=resnet56 are one net.
    net = model if re.search(r"\d", model) else f"{model}{row['depth']}"
    wanted = {
        "data": row["data"],
        "protocol": row.get("protocol", CENTER),
        # resnet34b is the paper's ResNet-34 with shortcut B.
        "net": re.sub(r"(?<=resnet\d\d)[bc]$", "", net),
        "shortcut": row["shortcut"] or "",
    }
    # The VGG paper has results for three ranges of training scales, the others for one each.
    results = [r for r in read_csv(PAPER_RESULTS) if r["scales"] in ("", row.get("scales"))]
    return next((result for result in results if wanted.items() <= result.items()), None)
