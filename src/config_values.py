"""Check the keys and values of a composed config before anything is built from it."""

import re
from typing import Any

from src.familiar_words import explain_word
from src.runs.config_files import file_defaults, flatten, task_name

KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list",
    str: "a string",
}
# Keys that may be null, which turns something off, although their default is not null.
NULLABLE = (
    "recipe.schedule.warmup_from_n",
    "recipe.detector.region_size",
    "weights",
    "localizer",
    "data.scales",
)
# Keys that accept values of other types than their default has. The net has a better message for
# n=2.5: it names the nearest depths.
ACCEPTED = {
    "n": int | float,
    "model.n": int | float,
    "protocol": str | list,
    "trainer.devices": int | str | list,
    "trainer.deterministic": bool | str,
    "trainer.precision": int | str,
}
# Groups whose keys are all in the files; +KEY=VALUE adds arguments elsewhere. The learning rate is
# one of the schedule.
CLOSED_GROUPS = re.compile(r"sweep\.|recipe\.(?!(optimizer|schedule)\.)|recipe\.optimizer\.lr$")
AT_LEAST_ONE = ("iterations", "batch_size", "log_every", "eval_every", "checkpoint_every")
MINIMUM = dict.fromkeys(AT_LEAST_ONE, 1) | {"precise_bn_batches": 0}


def check_values(values: dict[str, Any], defaults: dict[str, Any], choices: dict[str, str]) -> None:
    """Check that every key is read by something and has a value of the right type.

    Args:
        values: A resolved config.
        defaults: The config of the same model, data and task with nothing else set.
        choices: The names chosen in each group.

    Raises:
        ValueError: A key that nothing reads, or a value of the wrong type.
    """
    flat_defaults = flatten(defaults)
    known = {**flat_defaults, **file_defaults("recipe", choices.get("recipe", ""))}
    examples = {group: key for key in flat_defaults for group in parents(key)}
    for key, value in flatten(values).items():
        answer = explain_word(f"{key}={value}")
        unread = CLOSED_GROUPS.match(key) and key not in known
        if key.partition(".")[0] not in defaults or unread:
            raise ValueError(answer or f"there is no key {key}; --help lists all keys")
        if (key in examples or flat_defaults.get(key) == {}) and not isinstance(value, dict):
            example = examples.get(key, f"{key}.NAME")
            raise ValueError(answer or f"{key}={value}: set its keys, such as {example}")
        if answer and key.startswith("trainer.") and key not in flat_defaults:
            raise ValueError(answer)  # an argument of Lightning's Trainer that a run sets itself
        _check_type(key, value, flat_defaults)


def _check_type(key: str, value: Any, flat_defaults: dict[str, Any]) -> None:
    """Check that a value has the type of its default."""
    for name in parents(key):
        single = flat_defaults.get(name)
        if type(single) in KINDS:  # a dict was set in place of a single value
            raise ValueError(f"{name} must be {KINDS[type(single)]}, such as {single}")
    default = flat_defaults.get(key)
    kind = type(default)
    if kind not in KINDS or (value is None and key in NULLABLE):
        return  # such as arguments of Lightning's Trainer that are added with +
    accepted = ACCEPTED.get(key, int | float if kind is float else kind)
    # To Python, true is an integer.
    is_wrong_bool = isinstance(value, bool) and kind is not bool
    if not isinstance(value, accepted) or is_wrong_bool:
        raise ValueError(f"{key}={value} must be {KINDS[kind]}, such as {default}")


def check_ranges(values: dict[str, Any]) -> None:
    """Check that the seed and the recipe's numbers are large enough.

    Raises:
        ValueError: One of them is not.
    """
    if not 0 <= values["seed"] < 2**32:  # NumPy's limit
        raise ValueError(f"seed={values['seed']} must be from 0 to 2**32 - 1")
    for key, minimum in MINIMUM.items():
        value = values["recipe"][key]
        if value < minimum:
            raise ValueError(f"recipe.{key}={value} must be at least {minimum}")


def check_task(values: dict[str, Any], choices: dict[str, str]) -> None:
    """Check that the data have labels for the task, and that the task reads what is set.

    Raises:
        ValueError: They have none, or it does not.
    """
    task = task_name(choices)
    labels = "localization" if task == "rcnn" else task
    tasks = values["data"].get("tasks", ["classification"])
    if labels not in tasks:
        problem = f"data={choices['data']} has no labels for {labels}"
        if "recipe" not in values:
            raise ValueError(f"{problem}: evaluate a run with run=DIRECTORY")
        raise ValueError(f"{problem}: set task={' or task='.join(tasks)}")
    if "localizer" in values and (task == "rcnn") != bool(values["localizer"]):
        raise ValueError("task=rcnn alone needs localizer=RUN, the run directory of a localizer")
    if values.get("weights") and task == "classification" and "recipe" in values:
        raise ValueError(
            "only tasks other than classification start from weights=: to evaluate a file, python "
            "-m src.evaluate weights=FILE"
        )


def parents(key: str) -> list[str]:
    """Return the groups that a flat key is in: `a` and `a.b` for `a.b.c`."""
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
