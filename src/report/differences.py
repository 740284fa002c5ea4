"""Sentences on how results differ: by depth, and by what several seeds allow to say."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from src.report.comparison import CENTER, DEPTH, NET
from src.report.confidence import (
    Sample,
    detectable_difference,
    difference_interval,
    format_difference,
)
from src.report.grouping import group_by, group_seeds
from src.report.labels import join, names_with_protocols
from src.report.results import FIRST_FAMILIES, Run, group_runs
from src.tables import Row

Net = tuple[str, Sequence[Row]]  # its name, and the rows of its seeds

# Nets are compared that differ in one of these, and in nothing else that a row has.
FACTORS = (("family", "shortcut"), ("depth",), ("precision",))
SETTING = ("way", "protocol", "context")
# What rows without a `way`, which older versions wrote, have in its place.
OLD_SETTING = ("iterations", "val_images", "departures", "batch_norm_images")
SEEDS = 5  # of each net, as the paper has for ResNet-110
# What the nets of a task are compared by: names and keys of a row. The last counts for the test.
ERRORS = (("training error", "train_error"), ("test error", "test_error"))
Measures = Sequence[tuple[str, str]]


class DepthEffect(NamedTuple):
    """What depth does to one kind of nets: their family with its shortcut and other settings.

    `increase` is by how much the training error of the deepest is above that of the shallowest.
    """

    family: str
    increase: float
    sentence: str


def degradation(runs: Sequence[Run]) -> list[str]:
    """Compare the training errors of the deepest and the shallowest nets (Sec. 1, 4.2).

    Args:
        runs: Runs in any state; only finished ones count.

    Returns:
        A sentence for each data set and way of training, over all families of nets. The nets
        that are compared differ in nothing but their depth.
    """
    return [
        f"{setting}: {'; '.join(effect.sentence for effect in effects)}"
        for setting, effects in _depth_effects(runs).items()
    ]


def claim(runs: Sequence[Run]) -> list[str]:
    """Say what these runs show of the paper's claim, a sentence as for `degradation`."""
    return [f"{setting}: {_verdict(effects)}" for setting, effects in _depth_effects(runs).items()]


def _verdict(effects: Sequence[DepthEffect]) -> str:
    """Return the strongest sentence that the results of all these kinds of nets support."""
    plain, residual = (
        [effect.increase for effect in effects if effect.family == family]
        for family in FIRST_FAMILIES
    )
    if not plain or not residual:
        return "no comparison of plain with residual nets: that takes two depths of each"
    if min(plain) > 0 >= max(residual):
        return "depth makes plain nets train worse, residual nets not, as the paper claims"
    if min(plain) > max(residual) > 0:
        some = "" if min(residual) > 0 else "some "
        return f"depth makes {some}residual nets train worse, too, but less than plain nets"
    return "these nets do not show that depth makes plain nets train worse and residual nets not"


def _depth_effects(runs: Sequence[Run]) -> dict[str, list[DepthEffect]]:
    """Return what depth does in each setting, by its name such as `cifar10 (iterations 2000)`."""
    finished = [run for run in runs if run.finished]
    settings = {}
    # The setting says nothing of `model`: what the nets differ in is said of each kind.
    for setting, nets in group_runs(finished, ignore=NET, keys=r"(?!model\.).*"):
        kinds = group_runs(nets, ignore=DEPTH, keys=r"model\..*")
        compared = (_compare_depths(kind, label) for label, kind in kinds)
        effects = [effect for effect in compared if effect]
        if effects:
            data = nets[0].row["data"]
            settings[f"{data} ({setting})" if setting else data] = effects
    return settings


def _compare_depths(runs: Sequence[Run], label: str) -> DepthEffect | None:
    """Compare the deepest with the shallowest of some runs; None if all have one depth."""
    by_depth = group_by(runs, lambda run: run.row["depth"])
    if len(by_depth) == 1:
        return None
    depths = (max(by_depth), min(by_depth))
    deep, shallow = (
        Sample.of([run.row["train_error"] for run in by_depth[depth]]) for depth in depths
    )
    # Of the training error: that it rises with depth is what the paper calls degradation. Of the
    # rounded errors: the sentence must not contradict the table that has these.
    increase = round(round(deep.mean, 2) - round(shallow.mean, 2), 2)
    sign = ">" if increase > 0 else "<" if increase < 0 else "="
    verdict = "degradation" if increase > 0 else "no degradation"
    difference = format_difference(increase, difference_interval(deep, shallow), " points")
    family = runs[0].row["family"]
    sentence = (
        f"{join(family, label)}: {depths[0]} layers {deep}% {sign} {depths[1]} layers {shallow}% "
        f"(training error), {verdict}: {difference}"
    )
    return DepthEffect(family, increase, sentence)


def seed_statistics(rows: Sequence[Row], measures: Measures = ERRORS) -> list[str]:
    """Describe what the nets with several seeds show.

    Args:
        rows: A row for each run and test protocol of one data set, as in `results_table`.
        measures: What they are compared by.

    Returns:
        A sentence for each two of them that differ in one respect, with the 95% intervals of their
        differences, and one for each net, tested by `center`, with the smallest difference that
        `SEEDS` seeds find.
    """
    groups = group_seeds(rows)
    named = zip(names_with_protocols(groups), groups, strict=True)
    nets = [net for net in named if len(net[1]) > 1]
    compared = [_compare(*pair, measures) for pair in _pairs(nets)]
    # By one protocol, or the detectors of one sweep would have dozens of sentences.
    centers = [net for net in nets if net[1][0].get("protocol", CENTER) == CENTER]
    return [*compared, *filter(None, (_describe_std(net, *measures[-1]) for net in centers))]


def _pairs(nets: Sequence[Net]) -> Iterator[tuple[Net, Net]]:
    """Yield nets that differ in one factor, each with the first of them."""

    def values(net: Net, keys: Iterable[str]) -> tuple[Any, ...]:
        return tuple(map(net[1][0].get, keys))

    for factor in FACTORS:
        same = [
            *SETTING,
            *OLD_SETTING,
            *(key for keys in FACTORS if keys != factor for key in keys),
        ]
        for first, *others in group_by(nets, partial(values, keys=same)).values():
            for other in others:
                # Nets may also differ in what no row names, such as their widths.
                if values(other, factor) != values(first, factor):
                    yield other, first


def _compare(net: Net, base: Net, measures: Measures) -> str:
    differences = []
    for title, key in measures:
        one, other = (Sample.of([seed[key] for seed in seeds]) for _, seeds in (net, base))
        interval = difference_interval(one, other)
        difference = format_difference(one.mean - other.mean, interval, " points")
        differences.append(f"{title} {difference}")
    return (
        f"{net[0]} minus {base[0]}: {', '.join(differences)} "
        f"(95% intervals, {len(net[1])} and {len(base[1])} seeds)"
    )


def _describe_std(net: Net, measure: str, key: str) -> str:
    """Say which difference seeds detect; empty if their values are all equal."""
    name, seeds = net
    std = Sample.of([seed[key] for seed in seeds]).std
    if not std:
        return ""
    return (
        f"{name}: the {measure} has a standard deviation of {std:.2f} over {len(seeds)} seeds; "
        f"at that, {SEEDS} seeds each detect a difference of "
        f"{detectable_difference(std, SEEDS):.2f} points between two nets "
        "(two-sided 5%, power 80%)"
    )
