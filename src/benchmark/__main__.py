"""Measures speed and memory side by side: `python -m src.benchmark step overhead`; see --help."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from src.benchmark import memory, throughput
from src.benchmark.baselines import DEVICE
from src.runs.environment import git_commit, versions
from src.tables import read_csv, write_csv
from src.training.precision import device_name

TRAINING = (
    throughput.step,
    throughput.overhead,
    throughput.data,
    throughput.eval,
    throughput.deterministic,
    throughput.start,
)
COSTS = (memory.memory, memory.scale, memory.together, memory.profile)
MEASURES = {function.__name__: function for function in (*TRAINING, *COSTS)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m src.benchmark",
        description="Measures speed and memory side by side, on the real CIFAR-10 in data/.",
        epilog="; ".join(f"{name}: {function.__doc__.splitlines()[0]}" for name, function in MEASURES.items()),
    )
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=f"of {', '.join(MEASURES)} (default: all)")
    parser.add_argument(
        "--nets", nargs="+", default=["resnet20", "resnet56", "resnet110"], help="for step, eval, together, profile"
    )
    parser.add_argument("--iterations", type=int, help="that are timed of resnet20 (default: 60, on a GPU 600)")
    parser.add_argument("--repeats", type=int, default=3, help="turns, of which the median counts (default: 3)")
    parser.add_argument("-o", dest="out", type=Path, help="a CSV file; rows of other measures in it stay")
    options = parser.parse_args()
    unknown = set(options.measures) - set(MEASURES)
    if unknown:
        parser.error(f"there is no measure {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    iterations = options.iterations or (600 if DEVICE.type == "cuda" else 60)
    place = {
        "device": device_name(DEVICE),
        "versions": " ".join(f"{name}={version}" for name, version in versions().items()),
        "git_commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    for name in options.measures or MEASURES:
        found = [row | place for row in MEASURES[name](iterations, options.repeats, options.nets)]
        for row in found:
            print(*(f"{key}={row[key]}" for key in list(row)[:7] if row[key] != ""), sep="  ", flush=True)
        if options.out:
            measured = {(row["measure"], row["device"]) for row in found}
            kept = read_csv(options.out) if options.out.exists() else []
            write_csv(options.out, [row for row in kept if (row["measure"], row["device"]) not in measured] + found)


if __name__ == "__main__":
    main()
