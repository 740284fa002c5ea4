"""The page's interactive figures: the curves of each family of nets, and results by depth."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import product
from statistics import mean
from typing import Any, NamedTuple

from plotly import graph_objects as go

from src.report.colors import family_color
from src.report.comparison import DEPTH
from src.report.figures import Style, error_limit, styles
from src.report.grouping import group_by
from src.report.labels import join, layers_cell
from src.report.results import BY_DEPTH, CURVES, Run, group_runs
from src.tables import Row

FILTERS = ("family", "depth", "shortcut", "seed")
BOTH = "both"  # the view of training and held-out error
UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")

# In pixels. The legend comes on top of the height, so that the axes of all families match.
CURVES_HEIGHT, BY_DEPTH_HEIGHT, LEGEND_ROW = 380, 230, 19
# A long legend must not make one family's axes smaller than another's: no automatic margins.
MARGIN = {"l": 50, "r": 12, "t": 34, "b": 50, "autoexpand": False}
TITLE = {"font": {"size": 14}, "x": 0.01, "y": 1, "yanchor": "top", "pad": {"t": 8}}
LEGEND = {
    "orientation": "h",
    "tracegroupgap": 0,
    "entrywidthmode": "fraction",
    "font": {"size": 11},
}
LEGEND |= {"xref": "container", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"}
TWO_COLUMNS = 22  # letters in the longest label up to which a legend has two columns


class View(NamedTuple):
    """One choice of what an axis of the curves shows: from 0 to `end`."""

    title: str
    end: float
    unit: str = ""


def filter_values(row: Row, keys: Sequence[str] = FILTERS) -> dict[str, str]:
    """Return what the page's filters compare of a result row, as text."""
    texts = {key: "none" if row[key] is None else str(row[key]) for key in keys}
    return texts | ({"depth": layers_cell(row)} if "depth" in keys else {})


def axis_views(runs: Sequence[Run]) -> tuple[dict[str, View], dict[str, View]]:
    """Return the choices of the x and of the y axis of the curves.

    The x axis has `iterations` and, if a run is finished, `time`; the y axis `both` errors, and
    the columns of metrics.csv.
    """
    last = max(run.row["iterations"] for run in runs)
    xs = {"iterations": View("iterations", last, "iterations")}
    seconds = [_step_seconds(run) * run.row["iterations"] for run in runs if run.finished]
    if seconds:
        # The largest unit of which the longest run takes at least two.
        long_enough = [unit for unit, length in UNITS.items() if max(seconds) >= 2 * length]
        unit = [*long_enough, "seconds"][0]
        xs["time"] = View(f"training time ({unit})", max(seconds) / UNITS[unit], unit)

    limit = error_limit(runs)
    ys = {BOTH: View("training and held-out error (%)", limit, "%")}
    for column, title in CURVES.items():
        # Only columns that some run has: without held-out images there is no val/error.
        values = [value for run in runs for _, value in run.curve(column)]
        if values:
            is_error = column.endswith("error")
            ys[column] = View(title, limit, "%") if is_error else View(title, 1.05 * max(values))
    return xs, ys


def _step_seconds(run: Run) -> float:
    return run.config["recipe"]["batch_size"] / run.row["images_per_second"]


def curve_figures(
    runs: Sequence[Run], xs: Mapping[str, View], ys: Mapping[str, View]
) -> list[go.Figure]:
    """Draw the curves of each family (Fig. 6).

    Each pair of an x and a y view has traces of its own, which the page selects by their `meta`:
    the views, and the run's `filter_values`. None is visible before.
    """
    styled = zip(runs, styles(runs), strict=True)
    figures = []
    for family, members in group_by(styled, lambda pair: pair[0].row["family"]).items():
        traces = [
            trace
            for x, y in product(xs, ys)
            for run, style in members
            if x == "iterations" or run.finished
            for trace in _curve_traces(run, style, {"x": x, "y": y}, xs[x].unit, ys[y].unit)
        ]
        if traces:
            figures.append(_figure(traces, f"{family} nets", CURVES_HEIGHT))
    return figures


def _curve_traces(
    run: Run, style: Style, view: dict[str, str], x_unit: str, y_unit: str
) -> list[go.Scatter]:
    both, time = view["y"] == BOTH, view["x"] == "time"
    scale = _step_seconds(run) / UNITS[x_unit] if time else 1
    traces = []
    for column in ("train/error", f"{run.held_out}/error") if both else (view["y"],):
        curve = run.curve(column)
        if not curve:
            continue
        dashed = both and column == "train/error"
        # A circle ends the curve of a run that is not finished.
        marked = not run.finished and not dashed
        traces.append(
            go.Scatter(
                x=[iteration * scale for iteration, _ in curve],
                y=[float(f"{value:.5g}") for _, value in curve],  # what a screen can show
                name=_plain(f"{style.label}, seed {run.row['seed']}"),
                legendgroup=str(run.path),
                meta=filter_values(run.row) | view,
                visible=False,
                showlegend=not dashed,  # one entry switches both lines of a run
                mode="lines+markers" if marked else "lines",
                marker={"symbol": "circle-open", "size": [0] * (len(curve) - 1) + [8]},
                line_color=style.color,
                line_width=1 if dashed else 2,
                line_dash="dash" if dashed else "solid",
                hovertemplate=f"<b>%{{fullData.name}}</b><br>{column} %{{y:.4~g}}{y_unit}"
                f"<br>%{{x:{'.3~g' if time else ',d'}}} {x_unit}<extra></extra>",
            )
        )
    return traces


def depth_figures(runs: Sequence[Run]) -> list[go.Figure]:
    """Draw the errors and the speed of finished runs by depth.

    A line joins the means of runs that differ in nothing but depth and seed; its `meta` keeps
    the means, because the page's filter of depths takes points out of it.
    """
    runs = [run for run in runs if run.finished]
    series = group_runs(runs, ignore=DEPTH)
    ordered = sorted(runs, key=lambda run: run.row["depth"])
    depths = list(dict.fromkeys(layers_cell(run.row) for run in ordered))

    figures = []
    for column, title in BY_DEPTH.items() if runs else ():
        traces = [
            trace
            for i, (label, members) in enumerate(series)
            for trace in _depth_traces(members, label, SYMBOLS[i % len(SYMBOLS)], column)
        ]
        figure = _figure(traces, title, BY_DEPTH_HEIGHT)
        # Categories, as on a scale of numbers 1202 layers would press all others together.
        axis = {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": list(dict.fromkeys(depths)),
        }
        figure.update_xaxes(title="layers", **axis)
        figures.append(figure.update_yaxes(rangemode="tozero"))
    return figures


def _depth_traces(runs: Sequence[Run], label: str, symbol: str, column: str) -> list[go.Scatter]:
    """Return the line of the means, and a point for each run."""
    by_depth = group_by(runs, lambda run: layers_cell(run.row))
    means = [mean(run.row[column] for run in members) for members in by_depth.values()]
    meta = filter_values(runs[0].row, ("family", "shortcut"))
    family = meta["family"]
    color = family_color(family)
    marker = {"symbol": symbol, "size": 9, "color": color}
    group = {"name": _plain(join(family, label)), "legendgroup": str(runs[0].path)}
    line = go.Scatter(
        x=list(by_depth),
        y=means,
        mode="lines+markers",
        line={"color": color, "dash": "dash" if family == "plain" else "solid"},
        marker=marker,
        connectgaps=True,  # where the filter of depths took a point out
        hoverinfo="skip",
        meta=meta | {"means": means},
        **group,
    )
    points = [
        go.Scatter(
            # A trace of its own, because the page filters traces, not points.
            x=[layers_cell(run.row)],
            y=[run.row[column]],
            mode="markers",
            marker=marker | {"opacity": 0.5},
            showlegend=False,
            meta=filter_values(run.row),
            text=[_plain(f"{run.row['run']}, {run.row.get('device', '')}")],
            hovertemplate="<b>%{text}</b><br>%{y:,.4~g}<extra></extra>",
            **group,
        )
        for run in runs
    ]
    return [line, *points]


def _figure(traces: list[go.Scatter], title: str, height: int) -> go.Figure:
    """Lay out traces above their legend."""
    # One entry for each run or series, however many traces it has.
    entries = {trace.legendgroup: trace.name for trace in traces}.values()
    columns = 2 if max(map(len, entries)) <= TWO_COLUMNS else 1
    legend_height = LEGEND_ROW * math.ceil(len(entries) / columns) + 10
    return go.Figure(traces).update_layout(
        template="plotly_white",
        title=TITLE | {"text": f"<b>{_plain(title)}</b>"},
        height=height + legend_height,
        margin=MARGIN | {"b": MARGIN["b"] + legend_height},
        legend=LEGEND | {"entrywidth": 1 / columns},
        hovermode="closest",
    )


def _plain(text: Any) -> str:
    """Escape what Plotly would read as HTML in a label."""
    return escape(str(text), quote=False)
