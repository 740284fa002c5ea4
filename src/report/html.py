"""Write the page: one HTML file that opens from disk and requests nothing from any network."""

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly import graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from src.report.detection import class_lines, detection_facts, detection_lines
from src.report.differences import claim, degradation, seed_statistics
from src.report.grouping import group_seeds
from src.report.interactive import FILTERS, axis_views, curve_figures, depth_figures, filter_values
from src.report.labels import layers_cell
from src.report.reading import Skipped
from src.report.results import Run, classifies
from src.report.results_table import results_lines

EXAMPLES = "examples.png"  # of a run directory: test images with what was found
# Of finished runs, formats of the keys of `Run.row`, by column title.
ERRORS = {"training error (%)": "{train_error:.2f}", "test error (%)": "{test_error:.2f}"}
MEANS = {
    "classification": ERRORS,
    "detection": {"AP (%)": "{test_ap:.1f}", "AP50 (%)": "{test_ap50:.1f}"},
    "segmentation": {"mean IoU (%)": "{test_iou:.1f}", "accuracy (%)": "{test_accuracy:.1f}"},
    "localization": {"localization error (%)": "{test_localization_error:.2f}"},
}
MEANS["rcnn"] = MEANS["localization"]
RESULTS = {
    "images/s": "{images_per_second:,.0f}",
    "images per batch norm": "{batch_norm_images}",
    "precision": "{precision}",
    "device": "{count}{device}",
    "commit": "{git_commit!s:.8}",
    "date": "{date}",
}
# Also of a mean and its standard deviation, and of parameters in millions.
NUMBER = re.compile(r"[-+]?\d[\d.,]*( M| ± [\d.]+)?|-")
LONG_TEXT = 24  # letters above which the cells of a column may wrap
PLOT_CONFIG = {"displaylogo": False, "modeBarButtons": [["toImage", "resetScale2d"]]}

# Names, configs and error messages may be untrusted: all text is escaped that is not Markup.
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(
    path: Path,
    by_data: Mapping[str, Sequence[Run]],
    skipped: Skipped,
    figures: Mapping[str, Sequence[Path]],
) -> None:
    """Write the page of some runs.

    Args:
        path: The HTML file.
        by_data: Runs in any state, by data set, of one task each.
        skipped: What could not be read, with the reason.
        figures: SVG files to embed, by data set.
    """
    page = TEMPLATES.get_template("page.html").render(
        plotly=Markup(get_plotlyjs()),  # once for all figures
        data_sets={data: _describe(runs, figures.get(data, ())) for data, runs in by_data.items()},
        skipped=[({}, {"path": str(path), "reason": reason}) for path, reason in skipped],
    )
    path.write_text(page)


def _describe(runs: Sequence[Run], figures: Sequence[Path]) -> dict[str, Any]:
    return (_data_set if classifies(runs[0]) else _detection_set)(runs, figures)


def _data_set(runs: Sequence[Run], figures: Sequence[Path]) -> dict[str, Any]:
    """Return what the template shows of one data set.

    A table has for each row what the filters compare, and the text of its cells by column title.
    """
    xs, ys = axis_views(runs)
    values = [filter_values(run.row) for run in runs]
    rows = [row for run in runs for row in run.evaluations]
    groups = group_seeds(rows)
    # A result is of all its seeds, so the filter of seeds does not apply to it.
    group_values = (filter_values(group[0], FILTERS[:-1]) for group in groups)
    return {
        "template": "data_set.html",
        "states": Counter(run.state for run in runs),
        "facts": [*claim(runs), *degradation(runs), *seed_statistics(rows)],
        "filters": _filters(values),
        "views": {"y": ys, "x": xs},
        "curves": list(map(_plot, curve_figures(runs, xs, ys))),
        "by_depth": list(map(_plot, depth_figures(runs))),
        "results": list(zip(group_values, results_lines(groups), strict=True)),
        "images": list(map(_embedded, figures)),
        "runs": list(zip(values, map(_run_line, runs), strict=True)),
    }


def _detection_set(runs: Sequence[Run], figures: Sequence[Path]) -> dict[str, Any]:
    """Return what the template shows of another task on one data set, as `_data_set` does."""
    values = [filter_values(run.row) for run in runs]
    rows = [row for run in runs for row in run.evaluations]
    groups = group_seeds(rows)
    group_values = [filter_values(group[0], FILTERS[:-1]) for group in groups]
    # One picture for each net, of its first seed.
    pictures = {run.net: run.path / EXAMPLES for run in reversed(runs)}
    return {
        "template": "detection.html",
        "task": runs[0].row["task"],
        "states": Counter(run.state for run in runs),
        "facts": detection_facts(rows),
        "filters": _filters(values),
        "results": list(zip(group_values, detection_lines(groups), strict=True)),
        "classes": list(zip(group_values, class_lines(groups), strict=True)),
        "images": list(map(_embedded, figures)),
        "examples": {
            net: _embedded(path) for net, path in sorted(pictures.items()) if path.exists()
        },
        "runs": list(zip(values, map(_run_line, runs), strict=True)),
    }


def _filters(values: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    return {key: sorted({v[key] for v in values}, key=_natural_order) for key in FILTERS}


def _embedded(image: Path) -> str:
    return base64.b64encode(image.read_bytes()).decode()


def _natural_order(value: str) -> tuple[int, str]:
    """Sort depths and seeds as numbers."""
    return (int(value), "") if value.isdecimal() else (0, value)


def _plot(figure: go.Figure) -> Markup:
    # In its JSON it escapes what could end the <script> around it, such as a run's name.
    options = {"include_plotlyjs": False, "full_html": False, "validate": False}
    return Markup(to_html(figure, PLOT_CONFIG, **options))


def _run_line(run: Run) -> dict[str, str]:
    row = run.row
    reached = int(run.metrics[-1]["iteration"]) if run.metrics else 0
    part = "" if reached == row["iterations"] else f"{reached:,} of "
    line = {
        "run": row["run"],
        "state": f"failed: {run.error}" if run.error else run.state,
        "family": row["family"],
        "layers": layers_cell(row),
        "shortcut": row["shortcut"] or "-",
        "seed": str(row["seed"]),
        "iterations": f"{part}{row['iterations']:,}",
    }
    results = MEANS[row["task"]] | RESULTS
    if not run.finished:
        return line | dict.fromkeys(results, "-")
    count = f"{row['devices']} x " if row.get("devices", 1) > 1 else ""
    return line | {title: text.format(count=count, **row) for title, text in results.items()}


def column_classes(lines: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return a CSS class for each column title, by which it is aligned as its cells are."""
    classes = {}
    for title in lines[0] if lines else ():
        cells = [line[title] for line in lines]
        long = any(len(cell) > LONG_TEXT for cell in cells)
        number = all(map(NUMBER.fullmatch, cells))
        classes[title] = "number" if number else "text" if long else ""
    return classes


TEMPLATES.filters["column_classes"] = column_classes
