"""The page's interactive figures: the curves of each family of nets, and results by depth."""

import math
from collections.abc import Sequence
from html import escape
from statistics import mean
from typing import Any, NamedTuple

from plotly import graph_objects as go

from src.report.comparison import DEPTH, comparison_key, group_by, variant_labels
from src.report.figures import Style, error_limit, styles
from src.report.results import BY_DEPTH, CURVES, Run
from src.tables import Row

FILTERS = ("family", "depth", "shortcut", "seed")
BOTH = "both"  # the view of training and held-out error
UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}
FAMILY_COLORS = {"plain": "#8a929c", "residual": "#1c1f23"}
OTHER_COLOR = "#0072B2"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
# In pixels. The legend comes on top of the height, so that the axes of all families match.
PLOT_HEIGHT, TOP, BOTTOM, LEGEND_ROW = 380, 34, 50, 19
TWO_COLUMNS = 22  # letters in the longest label up to which a legend has two columns


class View(NamedTuple):
    """One choice of what an axis of the curves shows: from 0 to `end`."""

    title: str
    end: float
    unit: str = ""


def filter_values(row: Row, keys: Sequence[str] = FILTERS) -> dict[str, str]:
    """Return what the page's filters compare of a result row, as text."""
    return {key: "none" if row[key] is None else str(row[key]) for key in keys}


def x_views(runs: Sequence[Run]) -> dict[str, View]:
    """Return the choices of the x axis: `iterations` and, if a run is finished, `time`."""
    last = max(run.row["iterations"] for run in runs)
    views = {"iterations": View("iterations", last, "iterations")}
    seconds = [_step_seconds(run) * run.row["iterations"] for run in runs if _finished(run)]
    if seconds:
        # The largest unit of which the longest run takes at least two.
        long_enough = [unit for unit, length in UNITS.items() if max(seconds) >= 2 * length]
        unit = [*long_enough, "seconds"][0]
        views["time"] = View(f"training time ({unit})", max(seconds) / UNITS[unit], unit)
    return views


def y_views(runs: Sequence[Run]) -> dict[str, View]:
    """Return the choices of the y axis: `both` errors, or a column of metrics.csv."""
    limit = error_limit(runs)
    views = {BOTH: View("training and held-out error (%)", limit, "%")}
    for column, title in CURVES.items():
        values = [value for run in runs for _, value in _finite_curve(run, column)]
        if values and column.endswith("error"):
            views[column] = View(title, limit, "%")
        elif values:
            views[column] = View(title, 1.05 * max(values))
    return views


def _finished(run: Run) -> bool:
    return run.state == "finished"


def _step_seconds(run: Run) -> float:
    return run.config["recipe"]["batch_size"] / run.row["images_per_second"]


def _finite_curve(run: Run, column: str) -> list[tuple[float, float]]:
    return [(iteration, value) for iteration, value in run.curve(column) if math.isfinite(value)]


def curve_figures(runs: Sequence[Run]) -> list[go.Figure]:
    """Draw the curves of each family, all on the same axes (Fig. 6).

    Each pair of an x and a y view has traces of its own, of which the first pair's are visible.
    The page selects traces by their `meta`: the views, and the run's `filter_values`.
    """
    xs, ys = x_views(runs), y_views(runs)
    styled = zip(runs, styles(runs), strict=True)
    figures = []
    for family, members in group_by(styled, lambda pair: pair[0].row["family"]).items():
        traces = [
            trace
            for x in xs
            for y in ys
            for run, style in members
            if x == "iterations" or _finished(run)
            for trace in _curve_traces(run, style, x, y, (xs[x].unit, ys[y].unit))
        ]
        if traces:
            figure = _figure(traces, f"{family} nets", PLOT_HEIGHT)
            figure.update_xaxes(title=xs["iterations"].title, range=(0, xs["iterations"].end))
            figures.append(figure.update_yaxes(range=(0, ys[BOTH].end)))
    return figures


def _curve_traces(
    run: Run, style: Style, x: str, y: str, units: tuple[str, str]
) -> list[go.Scatter]:
    columns = ("train/error", f"{run.held_out}/error") if y == BOTH else (y,)
    scale, x_format = 1.0, ",d"
    if x == "time":
        scale, x_format = _step_seconds(run) / UNITS[units[0]], ".3~g"

    traces = []
    for column in columns:
        curve = _finite_curve(run, column)
        dashed = y == BOTH and column == "train/error"
        # A circle ends the curve of a run that is not finished.
        sizes = [0] * len(curve)
        if curve and not _finished(run) and not dashed:
            sizes[-1] = 8
        line = {"width": 1, "dash": "dash"} if dashed else {"width": 2, "dash": "solid"}
        traces.append(
            go.Scatter(
                x=[iteration * scale for iteration, _ in curve],
                y=[float(f"{value:.5g}") for _, value in curve],  # what a screen can show
                name=_plain(f"{style.label}, seed {run.row['seed']}"),
                legendgroup=str(run.path),
                meta=filter_values(run.row) | {"x": x, "y": y},
                visible=(x, y) == ("iterations", BOTH),
                showlegend=not dashed,
                mode="lines+markers" if any(sizes) else "lines",
                marker={"symbol": "circle-open", "size": sizes},
                line=line | {"color": style.color},
                hovertemplate=f"<b>%{{fullData.name}}</b><br>{column} %{{y:.4~g}}{units[1]}"
                f"<br>%{{x:{x_format}}} {units[0]}<extra></extra>",
            )
        )
    return [trace for trace in traces if trace.x]


def depth_figures(runs: Sequence[Run]) -> list[go.Figure]:
    """Draw the errors and the speed of finished runs by depth.

    A line joins the means of runs that differ in nothing but depth and seed; its `meta` keeps
    the means, because the page's filter of depths takes points out of it.
    """
    runs = [run for run in runs if _finished(run)]
    if not runs:
        return []
    series = list(group_by(runs, lambda run: comparison_key(run.config, ignore=DEPTH)).values())
    labels = variant_labels([members[0].config for members in series])
    depths = sorted({run.row["depth"] for run in runs})

    figures = []
    for column, title in BY_DEPTH.items():
        traces = [
            trace
            for i, (members, label) in enumerate(zip(series, labels, strict=True))
            for trace in _depth_traces(members, label, SYMBOLS[i % len(SYMBOLS)], column)
        ]
        figure = _figure(traces, title, height=230)
        axis = {"type": "category", "categoryorder": "array", "categoryarray": depths}
        figure.update_xaxes(title="layers", **axis)
        figures.append(figure.update_yaxes(rangemode="tozero"))
    return figures


def _depth_traces(runs: Sequence[Run], label: str, symbol: str, column: str) -> list[go.Scatter]:
    """Return the line of the means, and a point for each run."""
    by_depth = group_by(runs, lambda run: str(run.row["depth"]))
    means = [mean(run.row[column] for run in members) for members in by_depth.values()]
    series = filter_values(runs[0].row, ("family", "shortcut"))
    family = series["family"]
    style = {
        "name": _plain(", ".join(filter(None, (family, label)))),
        "legendgroup": str(runs[0].path),
    }
    color = FAMILY_COLORS.get(family, OTHER_COLOR)
    line = go.Scatter(
        x=list(by_depth),
        y=means,
        mode="lines+markers",
        line={"color": color, "dash": "dash" if family == "plain" else "solid"},
        marker={"symbol": symbol, "size": 9},
        connectgaps=True,
        hoverinfo="skip",
        meta=series | {"means": means},
        **style,
    )
    points = [
        go.Scatter(
            x=[str(run.row["depth"])],
            y=[run.row[column]],
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 9, "opacity": 0.5},
            showlegend=False,
            meta=filter_values(run.row),
            text=[_plain(f"{run.row['run']}, {run.row.get('device', '')}")],
            hovertemplate="<b>%{text}</b><br>%{y:,.4~g}<extra></extra>",
            **style,
        )
        for run in runs
    ]
    return [line, *points]


def _figure(traces: list[go.Scatter], title: str, height: int) -> go.Figure:
    """Lay out traces above their legend."""
    entries = {trace.legendgroup: trace.name for trace in traces}.values()
    columns = 2 if max(map(len, entries)) <= TWO_COLUMNS else 1
    legend_height = LEGEND_ROW * math.ceil(len(entries) / columns) + 10
    figure = go.Figure(traces)
    return figure.update_layout(
        template="plotly_white",
        title={
            "text": f"<b>{_plain(title)}</b>",
            "font": {"size": 14},
            "x": 0.01,
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 8},
        },
        height=height + legend_height,
        # Fixed margins: a long legend must not make one family's axes smaller than another's.
        margin={"l": 50, "r": 12, "t": TOP, "b": BOTTOM + legend_height, "autoexpand": False},
        legend={
            "orientation": "h",
            "tracegroupgap": 0,
            "entrywidth": 1 / columns,
            "entrywidthmode": "fraction",
            "font": {"size": 11},
            "xref": "container",
            "x": 0,
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
        },
        hovermode="closest",
    )


def _plain(text: Any) -> str:
    """Escape what Plotly would read as HTML in a label."""
    return escape(str(text), quote=False)
