"""Tables of results in Markdown, beside the paper's numbers, for the terminal and for README."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from src.report.comparison import DEPTH, NET, PAPER_DATA, alike, grouped, variants
from src.report.results import Row, Run, read_csv, without_seed
from src.runs.naming import net_name

HEAD = ("net", "layers", "shortcut", "parameters", "multiply-adds", "training error, %", "test error, %")
PHOTOS = ("top-5 error, %", "protocol")
ELSEWHERE = ("seeds", "iterations")
PAPER = ("seeds", "paper, %", "difference", "trained")


def results_table(rows: Sequence[Row]) -> str:
    """One line for the seeds of each run: mean and deviation of the final weights' errors, in percent.

    For the paper's data its value stands beside them (Tables 2 to 4 and 6), and the difference from it, but only of
    runs that were trained as it says; of the others it is told how they were. Photos are tested by several protocols,
    and have a line for each.
    """
    photos, on_paper_data = rows[0]["data"] == "imagenet", rows[0]["data"] in PAPER_DATA
    head = (*HEAD, *(PHOTOS if photos else ()), *(PAPER if on_paper_data else ELSEWHERE))
    lines, runs = [], list(grouped(rows, lambda row: (row["config"], row.get("protocol"))).values())
    for name, seeds in zip(short_names([without_seed(seeds[0]) for seeds in runs]), runs, strict=True):
        first = seeds[0]
        errors = [[row[key] for row in seeds] for key in ("train_error", "test_error")]
        line = [name, str(first["depth"]), first["shortcut"] or "-"]
        line += [f"{first[key] / 1e6:,.2f} M" for key in ("parameters", "macs")]
        line += [*map(spread, errors)]
        if photos:
            line += [spread([row["test_error_top5"] for row in seeds]), first["protocol"]]
        line += [str(len(seeds))]
        if on_paper_data:
            value = paper_value(first)
            comparable = value and not first["departures"]
            difference = f"{mean(errors[1]) - value['error']:+.2f}" if comparable else "-"
            line += [in_words(value) if value else "-", difference, first["departures"] or "as in the paper"]
        else:
            line += [f"{first['iterations']:,}"]
        lines.append(line)
    return markdown(head, lines)


def short_names(names: Sequence[str]) -> list[str]:
    """`plain20-n` and `resnet20-n` as `plain20` and `resnet20`: several names without what all of them have."""
    parts = [name.split("-") for name in names]
    common = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    return ["-".join([net, *(part for part in rest if part not in common)]) for net, *rest in parts]


def paper_value(row: Row) -> Row | None:
    """The paper's test error of a net by the same protocol, with its place there, from paper_results.csv; None if it has none.

    `resnet34b` is its ResNet-34 B.
    """
    net = re.match(r"\D+\d+(?=[bc]?$)|", net_name(row["model"], row["n"] or None))[0]
    key = {"data": row["data"], "protocol": row.get("protocol", "center"), "net": net}
    for value in read_csv(Path(__file__).with_name("paper_results.csv")):
        if all(value[name] == of for name, of in key.items()) and value["shortcut"] == (row["shortcut"] or ""):
            return value
    return None


def in_words(value: Row) -> str:
    """`6.61 ± 0.16, best 6.43 (Table 6)` or `25.03, top-5 7.76 (Tables 2 and 3)`"""
    deviation = f" ± {value['deviation']:.2f}" if value["deviation"] else ""
    best = f", best {value['best']:.2f}" if value["best"] else ""
    top5 = f", top-5 {value['error_top5']:.2f}" if value["error_top5"] else ""
    return f"{value['error']:.2f}{deviation}{best}{top5} ({value['where']})"


def degradation(runs: Sequence[Run]) -> list[str]:
    """Whether the deepest net of each kind ends with a higher training error than the shallowest (Sec. 1, 4.2).

    A line for each way of training: the nets in it differ in nothing but their depth and kind.
    """
    finished = [run for run in runs if run.state == "finished"]
    trainings = list(grouped(finished, lambda run: (run.row["data"], alike(run.folder.config, NET))).items())
    ways = variants([group[0].folder.config for _, group in trainings], r"(?!model\.).*") if trainings else []
    lines = []
    for ((data, _), nets), way in zip(trainings, ways, strict=True):
        kinds = list(grouped(nets, lambda run: alike(run.folder.config, DEPTH)).values())
        words = variants([kind[0].folder.config for kind in kinds], r"model\..*")
        found = [_deepest_against_shallowest(kind, w) for kind, w in zip(kinds, words, strict=True)]
        if any(found):
            lines.append(f"{data}{f' ({way})' if way else ''}: {'; '.join(filter(None, found))}")
    return lines


def _deepest_against_shallowest(runs: Sequence[Run], words: str) -> str:
    """`plain: 56 layers 71.20% > 20 layers 28.10%, degradation by 43.10 points`; empty if there is one depth only."""
    errors = {
        depth: [run.row["train_error"] for run in group]
        for depth, group in grouped(runs, lambda run: run.row["depth"]).items()
    }
    shallow, deep = min(errors), max(errors)
    if shallow == deep:
        return ""
    worse = mean(errors[deep]) - mean(errors[shallow])
    sign = ">" if worse > 0 else "<" if worse < 0 else "="
    verdict = f"degradation by {worse:.2f} points" if worse > 0 else "no degradation"
    sides = [f"{depth} layers {spread(errors[depth], '%')}" for depth in (deep, shallow)]
    name = ", ".join(filter(None, (runs[0].row["family"], words)))
    return f"{name}: {sides[0]} {sign} {sides[1]} (training error), {verdict}"


def speed_table(rows: Sequence[Row]) -> str:
    """Training speed as the benchmark measured it, each implementation at its default; a line each."""
    keys = ("net", "subject", "precision", "value", "unit", "src.train / this")
    lines = [[str(row[key]) for key in keys] for row in rows if row["measure"] == "step, each at its default"]
    return markdown(keys, lines)


def trust_table(rows: Sequence[Row]) -> str:
    """What runs were put through (`make fault-injection`), and in how many tries something was lost or wrong; a line each."""
    keys = ("kind", "what", "tried", "failed", "seconds")
    rows = [row for row in rows if row["tried"]]
    lines = [[str(row[key]) for key in keys] for row in rows]
    total = f"{sum(row['seconds'] for row in rows):.0f}"
    sums = [str(sum(row[key] for row in rows)) for key in ("tried", "failed")]
    return markdown(keys, [*lines, ["all", "", *sums, total]])


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    lines = [head, *lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def fill_in(text: str, root: Path) -> str:
    """Puts the tables of CSV files below `root` into a text, each between `<!-- table: FILE -->` and `<!-- end -->`.

    `<!-- speed: FILE -->` opens a table of the benchmark's, `<!-- fault_injection: FILE -->` one of what `make fault-injection` tried.
    """

    def section(match: re.Match[str]) -> str:
        table = TABLES[match["kind"]](read_csv(root / match["file"]))
        return f"{match['open']}\n{table}\n<!-- end -->"

    kinds = "|".join(TABLES)
    return re.sub(rf"(?P<open><!-- (?P<kind>{kinds}): (?P<file>\S+) -->)\n.*?<!-- end -->", section, text, flags=re.S)


TABLES = {"table": results_table, "speed": speed_table, "fault_injection": trust_table}


def spread(values: Sequence[float], unit: str = "") -> str:
    """Mean and, of several, standard deviation."""
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{deviation}{unit}"
