"""A table of faults: `pytest -m fault_injection --fault-injection FILE` writes it as CSV.

`@pytest.mark.fault_injection(KIND, WHAT)` gives a test a row; those of the same kind and text are
added up. A test that tries several things sets their number with `record_property("tried", 30)`.
"""

import csv
from datetime import UTC, datetime
from pathlib import Path

import pytest

KINDS = ("kill", "stop", "fault", "bad input", "safety", "processes", "machines", "bits")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-injection",
        type=Path,
        help="write what the tests marked `fault_injection` tried to this CSV file",
    )
    parser.addoption("--kills", type=int, default=5, help="how often the test of kills kills a run")


def pytest_configure(config: pytest.Config) -> None:
    config.rows = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> pytest.TestReport:
    report = yield
    marker = item.get_closest_marker("fault_injection")
    if marker is None:
        return report
    kind, what = marker.args
    assert kind in KINDS, kind
    new_row = {"tried": 0, "failed": 0, "not tried here": 0, "seconds": 0.0}
    row = item.config.rows.setdefault((kind, what), new_row)
    row["seconds"] += report.duration
    tried = dict(item.user_properties).get("tried", 1)
    if report.skipped:
        row["not tried here"] += 1
    elif report.when == "call" or report.failed:
        row["tried"] += tried
        row["failed"] += report.failed
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path, rows = session.config.getoption("fault_injection"), session.config.rows
    if path is None or not rows:
        return
    import torch

    from src.runs.environment import git_commit, versions
    from src.training.precision import device_name

    execution = {
        "device": device_name(torch.device("cpu")),
        "versions": " ".join(f"{name}={version}" for name, version in versions().items()),
        "git_commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    by_kind = sorted(rows.items(), key=lambda item: KINDS.index(item[0][0]))
    lines = [
        {"kind": kind, "what": what, **row, "seconds": round(row["seconds"], 1), **execution}
        for (kind, what), row in by_kind
    ]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
