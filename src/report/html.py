"""The page that shows everything: one HTML file that opens from disk and asks nothing of any network."""

import base64
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from src.report.comparison import DEPTH, PAPER_DATA, alike, variants
from src.report.panels import PANELS
from src.report.results import TESTED, LeftOut, Row, Run
from src.report.results_table import degradation, in_words, paper_value, without_seed
from src.report.style import error_limit, nets, styles

TEMPLATES = Path(__file__).with_name("templates")
PLANNED = "run family depth shortcut data seed iterations config departures".split()
RESULTS = "parameters macs train_error test_error images_per_second precision device devices git_commit date".split()


def write_page(
    path: Path, by_data: dict[str, Sequence[Run]], left_out: LeftOut, figures: dict[str, list[Path]]
) -> None:
    """Writes the page of the runs of each data set, and of SVG figures that belong to a data set."""
    report = {
        "paper_data": PAPER_DATA,
        "panels": [panel._asdict() for panel in PANELS],
        "runs": [run for runs in by_data.values() for run in _runs(runs)],
        "limits": {data: error_limit(runs) for data, runs in by_data.items()},
        "facts": {data: degradation(runs) for data, runs in by_data.items()},
        "figures": {data: [_as_url(figure) for figure in svgs] for data, svgs in figures.items()},
        "left_out": [[str(place), why] for place, why in left_out],
    }
    template = Template((TEMPLATES / "page.html").read_text())
    plotly = (files("plotly") / "package_data" / "plotly.min.js").read_text()
    charts, page = ((TEMPLATES / name).read_text() for name in ("charts.js", "page.js"))
    path.write_text(template.substitute(plotly=plotly, report=_in_script(report), charts=charts, page=page))


def _runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What the page knows of the runs of one data set."""
    found = []
    words = variants([run.folder.config for run in runs])
    for run, net, kind, style in zip(runs, nets(runs), words, styles(runs), strict=True):
        row = run.row
        found.append(
            {key: row[key] for key in PLANNED}
            | {key: row.get(key) for key in RESULTS}
            | {
                "place": str(run.folder.path),
                "net": without_seed(row),
                "label": f"{net}, seed {row['seed']}",
                "series": alike(run.folder.config, but=DEPTH),
                "series_label": ", ".join(filter(None, (row["family"], kind))),
                "state": run.state,
                "why": run.why,
                "color": style.color,
                "held_out": run.held_out,
                "batch": run.folder.config["recipe"]["batch_size"],
                "reached": run.metrics[-1]["iteration"] if run.metrics else 0,
                "curves": {p.value: _curve(run, p.value) for p in PANELS if p.over == "iteration"},
                "tests": [_test(test) for test in run.tests],
            }
        )
    return found


def _test(row: Row) -> dict[str, Any]:
    """What a test by one protocol gave, with the paper's error beside it."""
    paper = paper_value(row)
    return {key: row[key] for key in TESTED} | {"paper": paper and {"error": paper["error"], "words": in_words(paper)}}


def _curve(run: Run, column: str) -> dict[str, list[float]]:
    """Iterations and values, these to as many digits as a screen can show."""
    points = [(iteration, float(f"{value:.5g}")) for iteration, value in run.curve(column) if math.isfinite(value)]
    return {"iteration": [iteration for iteration, _ in points], "value": [value for _, value in points]}


def _as_url(figure: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(figure.read_bytes()).decode()


def _in_script(value: Any) -> str:
    """JSON that no text in it can end the <script> around it with; JSON has no NaN, which becomes null."""
    return json.dumps(_finite(value), allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
