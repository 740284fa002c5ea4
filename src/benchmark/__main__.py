"""Measure speed and memory next to the usual ways: `python -m src.benchmark step overhead`."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from src.benchmark import detection, memory, pipelines, throughput
from src.benchmark.clock import DEVICE
from src.runs.environment import git_commit, versions
from src.tables import Row, read_csv, write_csv
from src.training.precision import device_name

MEASURES = {
    "step": throughput.measure_step,
    "overhead": throughput.measure_overhead,
    "data": pipelines.measure_data,
    "detection": detection.measure_detection,
    "memory": memory.measure_memory,
    "profile": memory.measure_profile,
}
# A few seconds of resnet20.
DEFAULT_ITERATIONS = 600 if DEVICE.type == "cuda" else 60


def main() -> None:
    """Run the measures named on the command line, print their rows and save them."""
    options = _parse_arguments()
    environment = {
        "device": device_name(DEVICE),
        "versions": " ".join(f"{name}={version}" for name, version in versions().items()),
        "git_commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    for name in options.measures or MEASURES:
        rows = MEASURES[name](options)
        for row in rows:
            cells = (f"{key}={value}" for key, value in row.items() if value != "")
            print("  ".join(cells), flush=True)
        if options.out:
            save(options.out, [row | environment for row in rows])


def _parse_arguments() -> argparse.Namespace:
    summaries = (f"  {name:9} {measure.__doc__}" for name, measure in MEASURES.items())
    parser = argparse.ArgumentParser(
        prog="python -m src.benchmark",
        description="Measures speed and memory next to the usual ways, on CIFAR-10 in data/.",
        epilog="\n".join(["measures (default: all of them):", *summaries]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    nets = ["resnet20", "resnet56", "resnet110"]
    nets_help = f"for step and profile (default: {' '.join(nets)})"
    iterations_help = "of resnet20, and about as long for others (default: 60, on a GPU 600)"
    out_help = "a CSV file; its rows of other measures are kept"
    parser.add_argument("measures", nargs="*", choices=MEASURES, metavar="MEASURE")
    parser.add_argument("--nets", nargs="+", default=nets, help=nets_help)
    parser.add_argument("--iterations", type=int, default=DEFAULT_ITERATIONS, help=iterations_help)
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("-o", dest="out", type=Path, help=out_help)
    return parser.parse_args()


def save(path: Path, rows: list[Row]) -> None:
    """Write rows to a CSV file in place of its rows of the same measure and device."""
    measured = {(row["measure"], row["device"]) for row in rows}
    old = read_csv(path) if path.exists() else []
    kept = [row for row in old if (row["measure"], row["device"]) not in measured]
    write_csv(path, kept + rows)


if __name__ == "__main__":
    main()
