"""What an improvement adds to a detector, paired where only the protocol differs."""

import pytest

from src.report.detection import detection_lines
from src.report.improvements import gains


def seeds(run, values, protocol="center", **others):
    common = {"family": "residual", "depth": 20, "protocol": protocol, **others}
    return [common | {"run": f"{run}-s{i}", "test_ap": x} for i, x in enumerate(values)]


BASELINE = seeds("net", [50, 60, 70])


def test_a_protocol_is_compared_on_the_same_weights():
    # Differences of 1, 2 and 3: 2 +- 4.30 * 1 / sqrt(3); seeds apart the interval would be +- 22.
    refined = seeds("net", [51, 62, 73], "refine")
    assert gains([BASELINE, refined], "test_ap") == ["-", "+2.00 [-0.48, +4.48]"]


def test_the_order_of_the_seeds_does_not_matter():
    refined = seeds("net", [51, 62, 73], "refine")
    assert gains([BASELINE, refined[::-1]], "test_ap") == gains([BASELINE, refined], "test_ap")


def test_context_is_compared_between_nets():
    with_context = seeds("net-contextTrue", [51, 62, 73], context=True)
    _, gain = gains([BASELINE, with_context], "test_ap")
    # Welch: the standard deviations 10 and 11 of three seeds each.
    assert gain.startswith("+2.00 [-21.9")


def test_protocols_of_nets_with_context_are_compared_with_the_net_without_any_improvement():
    groups = [
        BASELINE,
        seeds("net-contextTrue", [51, 62, 73], context="True"),  # from a CSV file
        seeds("net-contextTrue", [52, 63, 74], "refine", context="True"),
    ]
    assert [gain.split(" ")[0] for gain in gains(groups, "test_ap")] == ["-", "+2.00", "+3.00"]


@pytest.mark.parametrize(
    "others", [[], [seeds("net-lr0.1", [1, 2, 3])], [seeds("plain", [1, 2, 3], family="plain")]]
)
def test_without_one_baseline_there_is_no_gain(others):
    refined = seeds("net", [51, 62, 73], "refine")
    first = [BASELINE] if others and others[0][0]["family"] == "residual" else []
    assert gains([*first, *others, refined], "test_ap")[-1] == "-"


def test_the_table_has_the_gains_only_where_there_are_improvements():
    results = {"task": "detection", "parameters": 1e6, "iterations": 1, "seconds": 1}
    groups = [
        [row | results for row in rows] for rows in (BASELINE, seeds("net", [1, 2, 3], "refine"))
    ]
    assert "AP minus baseline" not in detection_lines(groups[:1])[0]
    lines = detection_lines(groups)
    assert [line["net"] for line in lines] == ["net", "net, refine"]
    assert [line["AP minus baseline"].partition(" ")[0] for line in lines] == ["-", "-58.00"]
