"""Sentences on how results differ: by depth, and by what several seeds allow to say."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from src.report.comparison import DEPTH, NET, group_by, group_names, group_seeds, join
from src.report.confidence import (
    Sample,
    detectable_difference,
    difference_interval,
    format_difference,
)
from src.report.results import Run, group_runs
from src.tables import Row

Net = tuple[str, Sequence[Row]]  # its name, and the rows of its seeds

# Nets are compared that differ in one of these, and in nothing else that a row has.
FACTORS = (("family", "shortcut"), ("depth",), ("precision",))
SETTING = ("iterations", "val_images", "protocol", "departures", "batch_norm_images")
CENTER = "center"  # the protocol of all rows of older versions
SEEDS = 5  # of each net, as the paper has for ResNet-110


def degradation(runs: Sequence[Run]) -> list[str]:
    """Compare the training errors of the deepest and the shallowest nets (Sec. 1, 4.2).

    Args:
        runs: Runs in any state; only finished ones count.

    Returns:
        A sentence for each data set and way of training, over all families of nets. The nets
        that are compared differ in nothing but their depth.
    """
    finished = [run for run in runs if run.finished]
    sentences = []
    # The setting says nothing of `model`: what the nets differ in is said of each kind.
    for setting, nets in group_runs(finished, ignore=NET, keys=r"(?!model\.).*"):
        # A kind is a family with its shortcut and other settings of the net.
        kinds = group_runs(nets, ignore=DEPTH, keys=r"model\..*")
        sentence = "; ".join(filter(None, (_compare_depths(kind, label) for label, kind in kinds)))
        if sentence:
            data = nets[0].row["data"]
            sentences.append(f"{f'{data} ({setting})' if setting else data}: {sentence}")
    return sentences


def _compare_depths(runs: Sequence[Run], label: str) -> str:
    """Compare the deepest with the shallowest of some runs; empty if all have one depth."""
    by_depth = group_by(runs, lambda run: run.row["depth"])
    if len(by_depth) == 1:
        return ""
    depths = (max(by_depth), min(by_depth))
    deep, shallow = (
        Sample.of([run.row["train_error"] for run in by_depth[depth]]) for depth in depths
    )
    # Of the training error: that it rises with depth is what the paper calls degradation.
    increase = deep.mean - shallow.mean
    sign = ">" if increase > 0 else "<" if increase < 0 else "="
    verdict = "degradation" if increase > 0 else "no degradation"
    difference = format_difference(increase, difference_interval(deep, shallow), " points")
    name = join(runs[0].row["family"], label)
    return (
        f"{name}: {depths[0]} layers {deep}% {sign} {depths[1]} layers {shallow}% "
        f"(training error), {verdict}: {difference}"
    )


def seed_statistics(rows: Sequence[Row]) -> list[str]:
    """Describe what the nets with several seeds show.

    Args:
        rows: A row for each run and test protocol of one data set, as in `results_table`.

    Returns:
        A sentence for each two of them that differ in one respect, with the 95% intervals of their
        differences, and one for each of them with the smallest difference that `SEEDS` seeds find.
    """
    groups = group_seeds(rows)
    protocols = [seeds[0].get("protocol", CENTER) for seeds in groups]
    names = [
        join(name, "" if protocol == CENTER else protocol)
        for name, protocol in zip(group_names(groups), protocols, strict=True)
    ]
    nets = [net for net in zip(names, groups, strict=True) if len(net[1]) > 1]
    return [*(_compare(*pair) for pair in _pairs(nets)), *filter(None, map(_describe_std, nets))]


def _pairs(nets: Sequence[Net]) -> Iterator[tuple[Net, Net]]:
    """Yield nets that differ in one factor, each with the first of them."""

    def values(net: Net, keys: Iterable[str]) -> tuple[Any, ...]:
        return tuple(map(net[1][0].get, keys))

    for factor in FACTORS:
        same = [*SETTING, *(key for keys in FACTORS if keys != factor for key in keys)]
        for first, *others in group_by(nets, partial(values, keys=same)).values():
            for other in others:
                # Nets may also differ in what no row has, such as a learning rate on the digits.
                if values(other, factor) != values(first, factor):
                    yield other, first


def _compare(net: Net, base: Net) -> str:
    errors = []
    for title, key in (("training", "train_error"), ("test", "test_error")):
        one, other = (Sample.of([seed[key] for seed in seeds]) for _, seeds in (net, base))
        interval = difference_interval(one, other)
        difference = format_difference(one.mean - other.mean, interval, " points")
        errors.append(f"{title} error {difference}")
    return (
        f"{net[0]} minus {base[0]}: {', '.join(errors)} "
        f"(95% intervals, {len(net[1])} and {len(base[1])} seeds)"
    )


def _describe_std(net: Net) -> str:
    """Say which difference seeds detect; empty if the errors are all equal."""
    name, seeds = net
    std = Sample.of([seed["test_error"] for seed in seeds]).std
    if not std:
        return ""
    return (
        f"{name}: the test error has a standard deviation of {std:.2f} over {len(seeds)} seeds; "
        f"at that, {SEEDS} seeds each detect a difference of "
        f"{detectable_difference(std, SEEDS):.2f} points between two nets "
        "(two-sided 5%, power 80%)"
    )
