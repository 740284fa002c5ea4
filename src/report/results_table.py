"""Tables of results next to the paper's, for the terminal, the page and Markdown files."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from src.report.comparison import DEPTH, NET, PAPER_DATA, group_by, join, paper_result
from src.report.results import FIRST_FAMILIES, Run, group_runs
from src.tables import Row, markdown_table, read_csv

SPEED = ("net", "subject", "precision", "value", "unit", "src.train / this")
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


def group_seeds(rows: Sequence[Row]) -> list[list[Row]]:
    """Group the rows of one data set that differ in nothing but the seed."""
    return list(group_by(rows, lambda row: (row["config"], row.get("protocol"))).values())


def results_lines(groups: Sequence[Sequence[Row]]) -> list[dict[str, str]]:
    """Describe the final weights' results, a line for each group of seeds, with its column titles.

    Errors are means and standard deviations over the seeds, in percent. The paper's own error
    (Tables 2 to 4 and 6) is given with each net, but the difference from it only for runs that
    were trained as in the paper.
    """
    names = short_names([re.sub(r"-s\d+$", "", seeds[0]["run"]) for seeds in groups])
    return [_results_line(name, seeds) for name, seeds in zip(names, groups, strict=True)]


def _results_line(name: str, seeds: Sequence[Row]) -> dict[str, str]:
    row, data = seeds[0], seeds[0]["data"]
    # The seeds differ in nothing that the columns before the errors show.
    test_errors = [seed["test_error"] for seed in seeds]
    line = {
        "net": name,
        "layers": str(row["depth"]),
        "shortcut": row["shortcut"] or "-",
        "parameters": f"{row['parameters'] / 1e6:,.2f} M",
        "multiply-adds": f"{row['macs'] / 1e6:,.2f} M",
        "training error (%)": mean_std([seed["train_error"] for seed in seeds]),
        "test error (%)": mean_std(test_errors),
    }
    if data == "imagenet":
        line["top-5 error (%)"] = mean_std([seed["test_error_top5"] for seed in seeds])
        line["protocol"] = row["protocol"]
    line["seeds"] = str(len(seeds))
    if data not in PAPER_DATA:
        return line | {"iterations": f"{row['iterations']:,}"}

    paper = paper_result(row)
    difference = "-"
    if paper and not row["departures"]:
        difference = f"{mean(test_errors) - paper['error']:+.2f}"
    return line | {
        "paper (%)": format_paper_result(paper) if paper else "-",
        "difference": difference,
        "training": row["departures"] or "as in the paper",
    }


def short_names(names: Sequence[str]) -> list[str]:
    """Drop what all names have in common but the net: `plain20-a`, `resnet20-a` lose `-a`."""
    parts = [name.split("-") for name in names]
    common = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    return ["-".join([net, *(part for part in rest if part not in common)]) for net, *rest in parts]


def mean_std(values: Sequence[float], unit: str = "") -> str:
    """Format a mean and, of several values, their standard deviation."""
    # stdev divides by n - 1: the seeds are a sample of all.
    std = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{std}{unit}"


def format_paper_result(paper: Row) -> str:
    """Format such as `6.61 ± 0.16, best 6.43 (Table 6)` or `25.03, top-5 7.76 (Table 3)`."""
    std = f" ± {paper['std']:.2f}" if paper["std"] else ""
    best = f", best {paper['best']:.2f}" if paper["best"] else ""
    top5 = f", top-5 {paper['error_top5']:.2f}" if paper["error_top5"] else ""
    return f"{paper['error']:.2f}{std}{best}{top5} ({paper['where']})"


class DepthEffect(NamedTuple):
    """What depth does to one kind of nets: their family with its shortcut and other settings.

    `increase` is by how much the training error of the deepest is above that of the shallowest.
    """

    family: str
    increase: float
    sentence: str


def degradation(runs: Sequence[Run]) -> list[str]:
    """Compare the training errors of the deepest and the shallowest nets (Sec. 1, 4.2).

    Args:
        runs: Runs in any state; only finished ones count.

    Returns:
        A sentence for each data set and way of training, over all families of nets. The nets
        that are compared differ in nothing but their depth.
    """
    return [
        f"{setting}: {'; '.join(effect.sentence for effect in effects)}"
        for setting, effects in _depth_effects(runs).items()
    ]


def claim(runs: Sequence[Run]) -> list[str]:
    """Say what these runs show of the paper's claim, a sentence as for `degradation`."""
    return [f"{setting}: {_verdict(effects)}" for setting, effects in _depth_effects(runs).items()]


def _verdict(effects: Sequence[DepthEffect]) -> str:
    """Return the strongest sentence that all these kinds of nets bear out."""
    plain, residual = (
        [effect.increase for effect in effects if effect.family == family]
        for family in FIRST_FAMILIES
    )
    if not plain or not residual:
        return "no comparison of plain with residual nets: that takes two depths of each"
    if min(plain) > 0 >= max(residual):
        return "depth makes plain nets train worse, residual nets not, as the paper claims"
    if min(plain) > max(residual) > 0:
        some = "" if min(residual) > 0 else "some "
        return f"depth makes {some}residual nets train worse, too, but less than plain nets"
    return "these nets do not show that depth makes plain nets train worse and residual nets not"


def _depth_effects(runs: Sequence[Run]) -> dict[str, list[DepthEffect]]:
    """Return what depth does in each setting, by its name such as `cifar10 (iterations 2000)`."""
    finished = [run for run in runs if run.finished]
    settings = {}
    # The setting says nothing of `model`: what the nets differ in is said of each kind.
    for setting, nets in group_runs(finished, ignore=NET, keys=r"(?!model\.).*"):
        kinds = group_runs(nets, ignore=DEPTH, keys=r"model\..*")
        compared = (_compare_depths(kind, label) for label, kind in kinds)
        effects = [effect for effect in compared if effect]
        if effects:
            data = nets[0].row["data"]
            settings[f"{data} ({setting})" if setting else data] = effects
    return settings


def _compare_depths(runs: Sequence[Run], label: str) -> DepthEffect | None:
    """Compare the deepest with the shallowest of some runs; None if all have one depth."""
    by_depth = group_by(runs, lambda run: run.row["depth"])
    if len(by_depth) == 1:
        return None
    depths = (max(by_depth), min(by_depth))
    deep, shallow = ([run.row["train_error"] for run in by_depth[depth]] for depth in depths)
    # Of the training error: that it rises with depth is what the paper calls degradation. Of the
    # rounded errors: the sentence must not contradict the table that has these.
    increase = round(round(mean(deep), 2) - round(mean(shallow), 2), 2)
    sign = ">" if increase > 0 else "<" if increase < 0 else "="
    verdict = f"degradation by {increase:.2f} points" if increase > 0 else "no degradation"
    family = runs[0].row["family"]
    sentence = (
        f"{join(family, label)}: {depths[0]} layers {mean_std(deep, '%')} {sign} {depths[1]} "
        f"layers {mean_std(shallow, '%')} (training error), {verdict}"
    )
    return DepthEffect(family, increase, sentence)


def speed_table(rows: Sequence[Row]) -> str:
    """Lay out the benchmark's training speeds, each implementation with its default settings."""
    # One of the benchmark's measures; the file has them all.
    default = [row for row in rows if row["measure"] == "step, each at its default"]
    return markdown_table(SPEED, [[str(row[key]) for key in SPEED] for row in default])


def fault_injection_table(rows: Sequence[Row]) -> str:
    """Lay out the faults that `make fault-injection` tried, and how often a run failed them."""
    tried = [row for row in rows if row["tried"]]
    lines = [[str(row[key]) for key in FAULT_INJECTION] for row in tried]
    totals = [f"{sum(row[key] for row in tried):.0f}" for key in ("tried", "failed", "seconds")]
    return markdown_table(FAULT_INJECTION, [*lines, ["all", "", *totals]])


TABLES = {
    "table": results_table,
    "speed": speed_table,
    "fault_injection": fault_injection_table,
}


def fill_tables(text: str, root: Path) -> str:
    """Bring the generated tables of a Markdown text up to date.

    Args:
        text: Each table in it stands between `<!-- table: FILE -->` and `<!-- end -->`, where
            FILE is a CSV file. `speed` and `fault_injection` in place of `table` stand for
            tables of `python -m src.benchmark` and `make fault-injection`.
        root: The directory to which FILE is relative.

    Returns:
        The text with all tables made from their files.
    """

    def fill(match: re.Match[str]) -> str:
        table = TABLES[match["kind"]](read_csv(root / match["file"]))
        return f"{match['open']}\n{table}\n<!-- end -->"

    # Not greedy, so that a table ends at the first `end` after it.
    opening = rf"(?P<open><!-- (?P<kind>{'|'.join(TABLES)}): (?P<file>\S+) -->)"
    return re.sub(rf"{opening}\n.*?<!-- end -->", fill, text, flags=re.S)
