"""Tables of results next to the paper's, for the terminal, the page and Markdown files."""

import re
from collections.abc import Sequence
from pathlib import Path

from src.report.comparison import PAPER_DATA, paper_result
from src.report.confidence import Sample, format_difference, paper_interval
from src.report.convergence import convergence_table
from src.report.departures import departure_table
from src.report.detection import detection_list, detection_table
from src.report.differences import seed_statistics
from src.report.grouping import group_seeds
from src.report.labels import group_names, layers_cell
from src.tables import Row, markdown_table, read_csv

SPEED = ("measure", "net", "subject", "precision", "value", "unit", "src.train / this")
# The paper's batches on the authors' GPUs: 256 on 8 (README of their nets), and 128 on 2 ("Identity
# Mappings", appendix), which does not say whether batch norm was synchronized.
AUTHORS_BATCH_NORM = {"imagenet": "32", "cifar10": "likely 64"}
FAULT_INJECTION = ("kind", "what", "tried", "failed", "seconds")


def results_table(rows: Sequence[Row]) -> str:
    """Lay out the results of one data set in Markdown.

    Args:
        rows: A row for each run and test protocol, as in `Run.evaluations` or from a CSV file.

    Returns:
        A line for each net, see `results_lines`.
    """
    lines = results_lines(group_seeds(rows))
    return markdown_table(list(lines[0]), [list(line.values()) for line in lines])


def results_lines(groups: Sequence[Sequence[Row]]) -> list[dict[str, str]]:
    """Describe the final weights' results, a line for each group of seeds, with its column titles.

    Errors are means and standard deviations over the seeds, in percent. The paper's own error
    (Tables 2 to 4 and 6) is given with each net, but the difference from it, with its 95%
    interval, only for runs that were trained as in the paper.
    """
    named = zip(group_names(groups), groups, strict=True)
    return [_results_line(name, seeds) for name, seeds in named]


def _results_line(name: str, seeds: Sequence[Row]) -> dict[str, str]:
    row, data = seeds[0], seeds[0]["data"]
    # The seeds differ in nothing that the columns before the errors show.
    train, test = (
        Sample.of([seed[key] for seed in seeds]) for key in ("train_error", "test_error")
    )
    line = {
        "net": name,
        "layers": layers_cell(row),
        "shortcut": row["shortcut"] or "-",
        "parameters": f"{row['parameters'] / 1e6:,.2f} M",
        "multiply-adds": f"{row['macs'] / 1e6:,.2f} M",
        "training error (%)": str(train),
        "test error (%)": str(test),
    }
    if data == "imagenet":
        line["top-5 error (%)"] = str(Sample.of([seed["test_error_top5"] for seed in seeds]))
        line["protocol"] = row["protocol"]
    line["seeds"] = str(len(seeds))
    authors = AUTHORS_BATCH_NORM.get(data)
    title = f"images per batch norm{f' (authors: {authors})' if authors else ''}"
    line[title] = str(row.get("batch_norm_images") or "-")  # rows of older versions lack it
    if data not in PAPER_DATA:
        return line | {"iterations": f"{row['iterations']:,}"}

    paper = paper_result(row)
    difference = "-"
    if paper and not row["departures"]:
        difference = format_difference(test.mean - paper["error"], paper_interval(test, paper))
    return line | {
        "paper (%)": format_paper_result(paper) if paper else "-",
        "difference": difference,
        "training": row["departures"] or "as in the paper",
    }


def format_paper_result(paper: Row) -> str:
    """Format such as `6.61 ± 0.16, best 6.43 (Table 6)` or `25.03, top-5 7.76 (Table 3)`."""
    std = f" ± {paper['std']:.2f}" if paper["std"] else ""
    best = f", best {paper['best']:.2f}" if paper["best"] else ""
    top5 = f", top-5 {paper['error_top5']:.2f}" if paper["error_top5"] else ""
    return f"{paper['error']:.2f}{std}{best}{top5} ({paper['where']})"


def seeds_list(rows: Sequence[Row]) -> str:
    """Lay out what several seeds show as a list, see `seed_statistics`."""
    return "\n".join(f"- {sentence}" for sentence in seed_statistics(rows))


def speed_table(rows: Sequence[Row]) -> str:
    """Lay out the benchmark's training speeds, each implementation with its default settings."""
    # Two of the benchmark's measures; the file has them all.
    shown = ("step, each at its default", "detection step")
    default = [row for row in rows if row["measure"] in shown]
    return markdown_table(SPEED, [[str(row[key]) for key in SPEED] for row in default])


def fault_injection_table(rows: Sequence[Row]) -> str:
    """Lay out the faults that `make fault-injection` tried, and how often a run failed them."""
    tried = [row for row in rows if row["tried"]]
    lines = [[str(row[key]) for key in FAULT_INJECTION] for row in tried]
    totals = [f"{sum(row[key] for row in tried):.0f}" for key in ("tried", "failed", "seconds")]
    return markdown_table(FAULT_INJECTION, [*lines, ["all", "", *totals]])


TABLES = {
    "table": results_table,
    "seeds": seeds_list,
    "convergence": convergence_table,
    "departures": departure_table,
    "detection": detection_table,
    "detection_seeds": detection_list,
    "localization_seeds": detection_list,
    "segmentation": detection_table,
    "localization": detection_table,
    "speed": speed_table,
    "fault_injection": fault_injection_table,
}


def fill_tables(text: str, root: Path) -> str:
    """Bring the generated tables of a Markdown text up to date.

    Args:
        text: Each table in it stands between `<!-- table: FILE -->` and `<!-- end -->`, where
            FILE is a CSV file, or several with spaces between them. `seeds` in place of `table`
            stands for a list of differences with their intervals, `convergence`, `departures`,
            `detection`, `segmentation` and `localization` for their tables, `detection_seeds` and
            `localization_seeds` for the differences of detectors and localizers, `speed` and
            `fault_injection` for those of `python -m src.benchmark` and `make fault-injection`.
        root: The directory to which FILE is relative.

    Returns:
        The text with all tables made from their files.
    """

    def fill(match: re.Match[str]) -> str:
        rows = [row for file in match["files"].split() for row in read_csv(root / file)]
        table = TABLES[match["kind"]](rows)
        return f"{match['open']}\n{table}\n<!-- end -->"

    # Not greedy, so that a table ends at the first `end` after it.
    opening = rf"(?P<open><!-- (?P<kind>{'|'.join(TABLES)}): (?P<files>[^>]+) -->)"
    return re.sub(rf"{opening}\n.*?<!-- end -->", fill, text, flags=re.S)
