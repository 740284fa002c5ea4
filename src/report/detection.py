"""Results of detectors and segmenters: tables of their metrics, over all classes and of each."""

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from src.report.confidence import Sample
from src.report.differences import Measures, seed_statistics
from src.report.grouping import group_seeds
from src.report.improvements import gains, is_baseline
from src.report.labels import layers_cell, names_with_protocols
from src.tables import Row, markdown_table


class TaskMetrics(NamedTuple):
    """The metrics of a task.

    Attributes:
        columns: Keys of a row by the title of their column.
        compared: Those that nets are compared by.
        of_class: What stands before the name of a class in a row.
        per_class: What of each class is in the table.
    """

    columns: dict[str, str]
    compared: Measures
    of_class: str
    per_class: str


METRICS = {
    "detection": TaskMetrics(
        {
            "AP": "test_ap",
            "AP50": "test_ap50",
            "AP75": "test_ap75",
            "AP small": "test_ap_small",
            "AP medium": "test_ap_medium",
            "AP large": "test_ap_large",
        },
        (("AP50", "test_ap50"), ("AP", "test_ap")),
        "ap of ",
        "AP",
    ),
    "segmentation": TaskMetrics(
        {"mean IoU": "test_iou", "pixel accuracy": "test_accuracy"},
        (("pixel accuracy", "test_accuracy"), ("mean IoU", "test_iou")),
        "iou of ",
        "IoU",
    ),
    "localization": TaskMetrics(
        {
            "localization error (%), class given": "test_localization_error",
            "top-1 localization error (%)": "test_localization_error_top1",
            "top-5 localization error (%)": "test_localization_error_top5",
            "top-5 classification error (%)": "test_classification_error_top5",
        },
        (("localization error", "test_localization_error"),),
        "localization_error of ",
        "localization error (%)",
    ),
}
METRICS["rcnn"] = METRICS["localization"]
# Of detectors where VOC's average precision is the metric of the data.
VOC_METRICS = METRICS["detection"]._replace(
    columns=METRICS["detection"].columns | {"VOC AP": "test_voc_ap"},
    of_class="voc_ap of ",
    per_class="VOC AP",
)


def metrics(rows: Sequence[Row]) -> TaskMetrics:
    """Return the metrics of rows of one task."""
    if any("test_voc_ap" in row for row in rows):
        return VOC_METRICS
    # Without rows, the metrics of any task will do.
    return METRICS[rows[0]["task"] if rows else "detection"]


def detection_lines(groups: Sequence[Sequence[Row]]) -> list[dict[str, str]]:
    """Describe the results of one task, a line for each group of seeds, with its column titles."""
    # Of all groups, so that detectors with and without VOC's metric have the same columns.
    columns = metrics([row for rows in groups for row in rows]).columns
    return [
        {
            "net": name,
            "layers": layers_cell(seeds[0]),
            "parameters": f"{seeds[0]['parameters'] / 1e6:,.2f} M",
            **{title: _sample(seeds, key) for title, key in columns.items()},
            **gain,
            "seeds": str(len(seeds)),
            "iterations": f"{seeds[0]['iterations']:,}",
            "seconds": f"{mean(seed['seconds'] for seed in seeds):,.0f}",
        }
        for name, seeds, gain in zip(
            names_with_protocols(groups), groups, _gain_cells(groups), strict=True
        )
    ]


def _gain_cells(groups: Sequence[Sequence[Row]]) -> list[dict[str, str]]:
    """Return what each group reaches above its baseline, by column; empty if all are baselines."""
    if all(is_baseline(seeds[0]) for seeds in groups):
        return [{} for _ in groups]
    title, key = metrics(groups[0]).compared[-1]
    return [{f"{title} minus baseline": gain} for gain in gains(groups, key)]


def class_lines(groups: Sequence[Sequence[Row]]) -> list[dict[str, str]]:
    """Return the metric of each class, a line for each group of seeds."""
    of_task = metrics([row for rows in groups for row in rows])
    columns = dict.fromkeys(key for rows in groups for row in rows for key in row)
    classes = [key for key in columns if key.startswith(of_task.of_class)]
    return [
        {f"{of_task.per_class} of the classes": name}
        | {key.removeprefix(of_task.of_class): _sample(seeds, key) for key in classes}
        for name, seeds in zip(names_with_protocols(groups), groups, strict=True)
    ]


def _sample(seeds: Sequence[Row], key: str) -> str:
    """Return mean and standard deviation over the seeds; `-` where no object counts for it."""
    values = [seed.get(key) for seed in seeds]
    # An empty cell of a CSV file is a text.
    numbers = [float(value) for value in values if value not in (None, "")]
    return str(Sample.of(numbers)) if len(numbers) == len(seeds) else "-"


def detection_table(rows: Sequence[Row]) -> str:
    """Lay out the results of a task on one data set in Markdown: over all classes, and by class.

    Args:
        rows: A row for each run, as in `Run.row` or from a CSV file.
    """
    groups = group_seeds(rows)
    tables = (detection_lines(groups), class_lines(groups))
    return "\n\n".join(
        markdown_table(list(lines[0]), [list(line.values()) for line in lines]) for lines in tables
    )


def detection_facts(rows: Sequence[Row]) -> list[str]:
    """Say what several seeds show, with 95% intervals."""
    return seed_statistics(rows, metrics(rows).compared)


def detection_list(rows: Sequence[Row]) -> str:
    """Lay out `detection_facts` as a list."""
    return "\n".join(f"- {sentence}" for sentence in detection_facts(rows))
