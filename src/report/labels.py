"""Name runs, nets and groups of seeds in tables and figures by what distinguishes them."""

import re
from collections.abc import Sequence
from typing import Any

from src.report.comparison import CENTER, DEPTH, Config, as_in_yaml, changed_keys, complete_keys
from src.report.grouping import group_by
from src.tables import Row


def variant_labels(configs: Sequence[Config], names: Sequence[str], keys: str = ".*") -> list[str]:
    """Describe what distinguishes configs from each other, apart from name, depth and seed.

    Args:
        configs: Nested configs of runs.
        names: What each label is to follow, such as `plain-20`.
        keys: A regular expression for the flat keys to look at.

    Returns:
        For each config such as `shortcut B, bf16-mixed`: its values that are neither the default
        nor common to all configs; and defaults too where the label would else be that of another
        config of the same name.
    """
    changed = [
        {key: value for key, (value, _) in changed_keys(config).items() if re.fullmatch(keys, key)}
        for config in configs
    ]
    labels = _distinctions(changed)
    for alike in group_by(range(len(configs)), lambda i: (names[i], labels[i])).values():
        # Such as resnet34 and resnet34b, whose values are the defaults of two files.
        complete = [
            {
                key: value
                for key, value in complete_keys(configs[i]).items()
                if re.fullmatch(keys, key) and not re.fullmatch(DEPTH, key)
            }
            for i in alike
        ]
        for i, own in zip(alike, _distinctions(complete), strict=True):
            labels[i] = ", ".join(filter(None, (labels[i], own)))
    return labels


def _distinctions(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Describe the values of each flat config that not all of them have."""
    return [
        ", ".join(
            _describe_value(key, value)
            for key, value in values.items()
            if any((key, value) not in other.items() for other in configs)
        )
        for values in configs
    ]


def _describe_value(key: str, value: Any) -> str:
    if key == "trainer.precision":
        return str(value)  # such as bf16-mixed, which explains itself
    name = key.rpartition(".")[2]
    return str(value).rpartition(".")[2] if name == "_target_" else f"{name} {as_in_yaml(value)}"


def join(name: str, label: str) -> str:
    """Return `plain-20, bf16-mixed`, or the name alone if its label is empty."""
    return f"{name}, {label}" if label else name


def group_names(groups: Sequence[Sequence[Row]]) -> list[str]:
    """Name each group of seeds by its runs, without what all names have in common."""
    return short_names([re.sub(r"-s\d+$", "", seeds[0]["run"]) for seeds in groups])


def names_with_protocols(groups: Sequence[Sequence[Row]]) -> list[str]:
    """Name each group of seeds by its runs and, unless it is `center`, by its protocol."""
    protocols = [seeds[0].get("protocol", CENTER) for seeds in groups]
    return [
        join(name, "" if protocol == CENTER else protocol)
        for name, protocol in zip(group_names(groups), protocols, strict=True)
    ]


def short_names(names: Sequence[str]) -> list[str]:
    """Drop what all names have in common but the net: `plain20-a`, `resnet20-a` lose `-a`."""
    parts = [name.split("-") for name in names]
    common = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    return ["-".join([net, *(part for part in rest if part not in common)]) for net, *rest in parts]


def layers_cell(row: Row) -> str:
    """Return the depth of a net as a cell of a table; that of a net from elsewhere is unknown."""
    return str(row["depth"] or "-")
