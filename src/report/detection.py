"""Results of detectors: tables of average precision, over all classes and of each."""

from collections.abc import Sequence
from statistics import mean

from src.report.comparison import group_names, group_seeds
from src.report.confidence import Sample
from src.report.differences import seed_statistics
from src.tables import Row, markdown_table

MEASURES = (("AP50", "test_ap50"), ("AP", "test_ap"))
COLUMNS = {
    "AP": "test_ap",
    "AP50": "test_ap50",
    "AP75": "test_ap75",
    "AP small": "test_ap_small",
    "AP medium": "test_ap_medium",
    "AP large": "test_ap_large",
}
VOC_COLUMNS = {"VOC AP": "test_voc_ap"}  # only where it is the metric of the data
OF_CLASS = "ap of "  # before the name of a class, the column of its AP
VOC_OF_CLASS = "voc_ap of "  # likewise of its VOC AP


def detection_lines(groups: Sequence[Sequence[Row]]) -> list[dict[str, str]]:
    """Describe the results of detectors, a line for each group of seeds, with its column titles."""
    has_voc = any("test_voc_ap" in row for rows in groups for row in rows)
    measures = COLUMNS | (VOC_COLUMNS if has_voc else {})
    return [
        {
            "net": name,
            "layers": str(seeds[0]["depth"]),
            "parameters": f"{seeds[0]['parameters'] / 1e6:,.2f} M",
            **{title: _sample(seeds, key) for title, key in measures.items()},
            "seeds": str(len(seeds)),
            "iterations": f"{seeds[0]['iterations']:,}",
            "seconds": f"{mean(seed['seconds'] for seed in seeds):,.0f}",
        }
        for name, seeds in zip(group_names(groups), groups, strict=True)
    ]


def class_lines(groups: Sequence[Sequence[Row]]) -> list[dict[str, str]]:
    """Return AP of each class, or VOC AP if the data have it, a line for each group of seeds."""
    columns = dict.fromkeys(key for rows in groups for row in rows for key in row)
    has_voc = any(key.startswith(VOC_OF_CLASS) for key in columns)
    prefix, measure = (VOC_OF_CLASS, "VOC AP") if has_voc else (OF_CLASS, "AP")
    classes = [key for key in columns if key.startswith(prefix)]
    return [
        {f"{measure} of the classes": name}
        | {key.removeprefix(prefix): _sample(seeds, key) for key in classes}
        for name, seeds in zip(group_names(groups), groups, strict=True)
    ]


def _sample(seeds: Sequence[Row], key: str) -> str:
    """Return mean and standard deviation over the seeds; `-` where no object counts for it."""
    values = [seed.get(key) for seed in seeds]
    # An empty cell of a CSV file is a text.
    numbers = [float(value) for value in values if value not in (None, "")]
    return str(Sample.of(numbers)) if len(numbers) == len(seeds) else "-"


def detection_table(rows: Sequence[Row]) -> str:
    """Lay out the results of detectors on one data set in Markdown: over all classes, and by class.

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
    return seed_statistics(rows, MEASURES)


def detection_list(rows: Sequence[Row]) -> str:
    """Lay out `detection_facts` as a list."""
    return "\n".join(f"- {sentence}" for sentence in detection_facts(rows))
