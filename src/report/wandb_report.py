"""A report in Weights & Biases (W&B): what a project's runs show of the paper's claim."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import wandb_workspaces.reports.v2 as wr
from wandb.plot import CustomChart

from src.report.differences import claim, degradation
from src.report.grouping import group_by
from src.report.report_dir import RESPONSES, file_name
from src.report.results import Run
from src.report.results_table import results_table
from src.report.wandb_workspace import ERROR_PANELS, GROUP_BY, curve_panels, group_colors

TITLE = "Plain against residual nets"
DESCRIPTION = "Made by python -m src.report --wandb, which replaces it: edit a copy."
STUDY = "study"  # type and name of the run that has the charts and the figures
FIGURES = "figures"  # their keys in the study begin with it
WIDTH, HEIGHT = 24, 9  # of a grid, and of a panel in it, in W&B's units


def make_report(
    project: str, entity: str, runs: Sequence[Run], charts: Mapping[str, CustomChart]
) -> wr.Report:
    """Make, without saving it, the report of a project's finished runs.

    Args:
        project: Where the runs are.
        entity: The owner of the project.
        runs: The runs.
        charts: By key, what the study has logged over the depth.
    """
    study = wr.Runset(entity, project, name=STUDY, filters=f"Metric('JobType') == {STUDY!r}")
    blocks: list[Any] = []
    for data, members in group_by(runs, lambda run: run.row["data"]).items():
        rows = [row for run in members for row in run.evaluations]
        blocks += [
            wr.H1(data),
            *map(wr.P, [*claim(members), *degradation(members)]),
            wr.MarkdownBlock(results_table(rows)),
            wr.H2("Error against iterations"),
            # W&B has no two grids side by side, so the figure shows the families as Fig. 6 does.
            _grid(study, [_figure(file_name(data))]),
            *_family_grids(project, entity, data, members),
        ]
        if any("response" in row for run in members for row in run.layers):
            figure = _figure(file_name(data) + RESPONSES)
            blocks += [wr.H2("Responses of the layers"), _grid(study, [figure])]
    errors = [_chart(chart) for key, chart in charts.items() if key.endswith("_error")]
    blocks += [wr.H1("Error against depth"), _grid(study, errors)]
    return wr.Report(project, entity, TITLE, DESCRIPTION, blocks, width="fluid")


def _family_grids(project: str, entity: str, data: str, runs: Sequence[Run]) -> list[Any]:
    """Return a heading and a grid for each family, with one range of errors and the same colors."""
    blocks: list[Any] = []
    for family in group_by(runs, lambda run: run.row["family"]):
        # .value: the form of config keys in filters that W&B's own pages save.
        wanted = {"Metric('JobType')": "train", "Config('data.value')": data}
        wanted["Config('family.value')"] = family
        run_set = wr.Runset(
            entity,
            project,
            name=f"{family} nets",
            # As text: the filters that the library makes of objects break at a quote in a value.
            filters=" and ".join(f"{key} == {value!r}" for key, value in wanted.items()),
            groupby=[f"config.{key}" for key in GROUP_BY],
        )
        grid = _grid(run_set, curve_panels(runs, ERROR_PANELS))
        grid.custom_run_colors = {
            _group(run_set, path): str(color) for path, color in group_colors(runs).items()
        }
        blocks += [wr.H3(run_set.name), grid]
    return blocks


def _group(run_set: wr.Runset, path: Any) -> wr.RunsetGroup:
    """Return a group of runs as reports name it, given the path by which workspaces do."""
    pairs = zip(GROUP_BY, path, strict=True)
    keys = tuple(wr.RunsetGroupKey(wr.Config(key), value) for key, value in pairs)
    return wr.RunsetGroup(run_set.name, keys)


def _grid(run_set: wr.Runset, panels: Sequence[Any]) -> wr.PanelGrid:
    """Lay out panels side by side."""
    width = WIDTH // len(panels)
    for i, panel in enumerate(panels):
        panel.layout = wr.Layout(x=i * width, y=0, w=width, h=HEIGHT)
    return wr.PanelGrid([run_set], panels=list(panels))


def _figure(name: str) -> Any:
    return wr.MediaBrowser(media_keys=[f"{FIGURES}/{name}"], num_columns=1)


def _chart(chart: CustomChart) -> Any:
    """Return the panel that W&B makes of a logged chart."""
    spec = chart.spec
    columns: dict[str, Any] = {"id": {}, "name": {}, "_defaultColorIndex": {}}
    return wr.CustomChart(
        query=columns | {"summaryTable": {"tableKey": spec.table_key}},
        chart_name=spec.spec_name,
        chart_fields=spec.fields,
        chart_strings=spec.string_fields,
    )


def save_report(report: wr.Report, address: str | None) -> str:
    """Save a report in place of that at an address, and return its own."""
    if address:
        with suppress(Exception):  # it was deleted, which the server may report in many ways
            report.id = wr.Report.from_url(address, as_model=True).id
    report.save()
    return str(report.url)
