"""How runs look and what they are called, in the figures and on the page alike."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from src.report.comparison import variants
from src.report.results import Run

# Okabe and Ito's colors, told apart by color-blind readers, from dark to light for print in grey. There are
# fewer markers than colors, so that the two together tell many more apart.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vP"


class Style(NamedTuple):
    """`label` is `20 layers`, with what else tells runs of one depth apart; `order` goes by depth."""

    order: int
    label: str
    color: str
    marker: str


def styles(runs: Sequence[Run]) -> list[Style]:
    """One color for each depth, in both families (Fig. 6); one depth has several if its runs differ in more."""
    kinds = [(run.row["depth"], words) for run, words in zip(runs, _variants(runs), strict=True)]
    places = {kind: i for i, kind in enumerate(sorted(set(kinds)))}
    found = []
    for depth, words in kinds:
        i = places[depth, words]
        label = f"{depth} layers, {words}" if words else f"{depth} layers"
        found.append(Style(i, label, COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]))
    return found


def nets(runs: Sequence[Run]) -> list[str]:
    """What the net of each run is called beside the others': `plain-20, bf16-mixed`."""
    names = [f"{run.row['family']}-{run.row['depth']}" for run in runs]
    return [f"{name}, {words}" if words else name for name, words in zip(names, _variants(runs), strict=True)]


def _variants(runs: Sequence[Run]) -> list[str]:
    return variants([run.folder.config for run in runs])


def error_limit(runs: Sequence[Run]) -> float:
    """The upper end of an axis of errors, in percent: the second half of each curve fits, not how each begins.

    As in Fig. 6, nets above 60% are left off if the others would fit into half of the axis and tell enough without
    them: there are at least three of the same kind.
    """
    late = [(run.row["family"], run.row["depth"], _late_maximum(run)) for run in runs]
    highest = max((high for *_, high in late), default=0)
    usual = max((high for *_, high in late if high <= 60), default=0)
    on = {(family, depth) for family, depth, high in late if 0 < high <= 60}
    off = {family for family, _, high in late if high > 60}
    if 2 * usual < highest and all(sum(of == family for of, _ in on) >= 3 for family in off):
        highest = usual
    return 1.1 * highest + 0.5 if 0 < highest <= 60 else 100.0


def _late_maximum(run: Run) -> float:
    """The highest error of the second half of both curves of a run; 0 if it has none."""
    curves = [run.curve("train/error"), run.curve(f"{run.held_out}/error")]
    late = [error for curve in curves for _, error in curve[len(curve) // 2 :] if math.isfinite(error)]
    return max(late, default=0.0)
