"""Write the page: one HTML file that opens from disk and requests nothing from any network."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from plotly import graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from src.report.comparison import group_by
from src.report.interactive import (
    FILTERS,
    View,
    curve_figures,
    depth_figures,
    filter_values,
    x_views,
    y_views,
)
from src.report.results import Run, Skipped
from src.report.results_table import degradation, group_seeds, results_head, results_lines

TEMPLATES = Path(__file__).with_name("templates")
RUNS_HEAD = (
    *("run", "state", "family", "layers", "shortcut", "seed", "iterations"),
    *("training error (%)", "test error (%)", "images/s", "precision", "device"),
    *("commit", "date"),
)
NUMBER = re.compile(r"[-+]?\d[\d.,]*( M| ± [\d.]+)?|-")
LONG_TEXT = 24  # letters above which the cells of a column may wrap
PLOT_CONFIG = {"displaylogo": False, "modeBarButtons": [["toImage", "resetScale2d"]]}


def write_page(
    path: Path,
    by_data: Mapping[str, Sequence[Run]],
    skipped: Skipped,
    figures: Mapping[str, Sequence[Path]],
) -> None:
    """Write the page of some runs.

    Args:
        path: The HTML file.
        by_data: Runs in any state, by data set.
        skipped: What could not be read, with the reason.
        figures: SVG files to embed, by data set.
    """
    page = _template("page.html").substitute(
        plotly=get_plotlyjs(),  # once for all figures
        data=_select("data", {data: View(data, 0) for data in by_data}),
        several="" if len(by_data) > 1 else "hidden",
        sections="".join(_data_set(data, by_data[data], figures.get(data, ())) for data in by_data),
        any_skipped="" if skipped else "hidden",
        skipped=_table("skipped", ("path", "reason"), [[str(p), why] for p, why in skipped]),
        script=(TEMPLATES / "page.js").read_text(),
    )
    path.write_text(page)


def _template(name: str) -> Template:
    return Template((TEMPLATES / name).read_text())


def _data_set(data: str, runs: Sequence[Run], figures: Sequence[Path]) -> str:
    states = group_by(runs, lambda run: run.state)
    counts = [f"{len(members)} {state}" for state, members in states.items()]
    groups = group_seeds([row for run in runs for row in run.evaluations])
    # A result is of all its seeds, so the filter of seeds does not apply to it.
    group_values = [filter_values(group[0], FILTERS[:-1]) for group in groups]
    curves, by_depth = curve_figures(runs), depth_figures(runs)
    return _template("data_set.html").substitute(
        data=escape(data),
        count=escape(f"{data}: {len(runs)} runs, {', '.join(counts)}"),
        facts="".join(f"<li>{escape(fact)}</li>" for fact in degradation(runs)),
        filters="".join(_filter(key, runs) for key in FILTERS),
        y=_select("y", y_views(runs)),
        x=_select("x", x_views(runs)),
        curves="".join(map(_plot, curves)),
        any_finished="" if by_depth else "hidden",
        by_depth="".join(map(_plot, by_depth)),
        results=_table("results", results_head(data), results_lines(groups), group_values),
        any_figures="" if figures else "hidden",
        figures="".join(map(_image, figures)),
        runs=_table("runs", RUNS_HEAD, map(_run_line, runs), [filter_values(r.row) for r in runs]),
    )


def _select(name: str, options: dict[str, View]) -> str:
    items = [
        f'<option value="{escape(value)}" data-end="{view.end}">{escape(view.title)}</option>'
        for value, view in options.items()
    ]
    return f'<select name="{name}">{"".join(items)}</select>'


def _filter(key: str, runs: Sequence[Run]) -> str:
    """Return a checkbox for each value that some runs have of a key."""
    values = {filter_values(run.row)[key] for run in runs}
    ordered = sorted(values, key=lambda v: (int(v), "") if v.isdecimal() else (0, v))
    boxes = [
        f'<label><input type="checkbox" checked value="{escape(v)}">{escape(v)}</label>'
        for v in ordered
    ]
    return f'<fieldset name="{key}"><b>{key}</b>{"".join(boxes)}</fieldset>'


def _plot(figure: go.Figure) -> str:
    # In its JSON it escapes what could end the <script> around it, such as a run's name.
    return to_html(figure, PLOT_CONFIG, include_plotlyjs=False, full_html=False, validate=False)


def _image(figure: Path) -> str:
    data = base64.b64encode(figure.read_bytes()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="measurements of single layers">'


def _run_line(run: Run) -> list[str]:
    row = run.row
    reached = int(run.metrics[-1]["iteration"]) if run.metrics else 0
    complete = reached == row["iterations"]
    devices = f"{row['devices']} x " if row.get("devices", 1) > 1 else ""
    finished = run.state == "finished"
    state = f"failed: {run.error}" if run.error else run.state
    line = [row["run"], state, row["family"], row["depth"], row["shortcut"], row["seed"]]
    line.append(f"{'' if complete else f'{reached:,} of '}{row['iterations']:,}")
    if finished:
        line += [f"{row['train_error']:.2f}", f"{row['test_error']:.2f}"]
        line += [f"{row['images_per_second']:,.0f}", row["precision"], devices + row["device"]]
        line += [str(row["git_commit"])[:8], row["date"]]
    else:
        line += [None] * 7
    return ["-" if value is None else str(value) for value in line]


def _table(
    name: str,
    head: Sequence[str],
    lines: Iterable[Sequence[str]],
    filtered_by: Iterable[dict[str, str]] = (),
) -> str:
    """Return a table that sorts by a click on a title.

    Args:
        name: Its CSS class.
        head: The column titles.
        lines: The text of the cells.
        filtered_by: For each line, what the page's filters compare.
    """
    lines, filtered_by = list(lines), list(filtered_by)
    # A column has one class, so that its title is aligned as its cells are.
    classes = [_column_class([line[i] for line in lines]) for i in range(len(head))]
    titles = [
        f'<th scope="col" class="{css}"><button type="button">{escape(title)}</button></th>'
        for title, css in zip(head, classes, strict=True)
    ]
    body = []
    for i, line in enumerate(lines):
        values = filtered_by[i] if filtered_by else {}
        data = "".join(f' data-{key}="{escape(value)}"' for key, value in values.items())
        cells = [
            f'<td class="{css}">{escape(text)}</td>'
            for text, css in zip(line, classes, strict=True)
        ]
        body.append(f"<tr{data}>{''.join(cells)}</tr>")
    return (
        f'<table class="{name}"><thead><tr>{"".join(titles)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _column_class(cells: Sequence[str]) -> str:
    if all(map(NUMBER.fullmatch, cells)):
        return "number"
    return "text" if max(map(len, cells), default=0) > LONG_TEXT else ""
