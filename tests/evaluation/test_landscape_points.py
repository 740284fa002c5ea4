"""The points of a loss landscape and the files that they are kept in."""

import math

import pytest
from random_run import random_run

from src.evaluation.landscape_points import (
    LandscapePoints,
    Measurement,
    plane_points,
    profile_points,
)
from src.runs.run_dir import RunDir

SETTINGS = {"split": "train", "images": 100, "seed": 0}


@pytest.fixture
def finished(find):
    """The directory of a run with random weights."""
    run_dir = find("n=1")
    random_run(run_dir)
    return run_dir


def test_the_plane_and_the_profile_share_the_points_of_the_first_direction():
    assert plane_points(3, 0.5) == [
        (-0.5, -0.5), (0.0, -0.5), (0.5, -0.5),
        (-0.5, 0.0), (0.0, 0.0), (0.5, 0.0),
        (-0.5, 0.5), (0.0, 0.5), (0.5, 0.5),
    ]  # fmt: skip
    assert [alpha for alpha, _ in profile_points(3, 0.5)] == [-0.5, -0.25, 0, 0.25, 0.5]
    for grid, limit in [(25, 1.0), (51, 0.7), (8, 1.0)]:
        line = {point for point in plane_points(grid, limit) if point[1] == 0}
        assert len(line) == (grid if grid % 2 else 0)
        assert line <= set(profile_points(grid, limit))


def test_a_finer_grid_takes_over_the_points_of_a_coarser_one():
    coarse, fine = ({*plane_points(grid, 1.0), *profile_points(grid, 1.0)} for grid in (3, 5))
    assert len(coarse) == 11  # a plane of 9 and a profile of 5, which share 3
    assert coarse < fine


def test_points_are_read_again_without_a_row_that_was_cut_short(finished, tmp_path):
    settings = SETTINGS | {"output_dir": str(tmp_path)}
    points = LandscapePoints(finished, settings)
    points.open()
    points.append((-1 / 3, 0.0), Measurement(0.1 + 0.2, 12.5))
    points.append((0.0, 0.5), Measurement(math.inf, 90.0))
    with open(points.csv, "a") as file:
        file.write("0.5,0.5,1.2")
    again = LandscapePoints(RunDir.open(finished.path), settings)
    again.open()
    assert again.measured == points.measured
    assert len(points.csv.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "(seed was 0, now 1)"),
        ({"images": 50}, "(images was 100, now 50)"),
        ({"split": "test"}, "(split was train, now test)"),
    ],
)
def test_points_of_other_settings_are_not_mixed(finished, tmp_path, change, message):
    settings = SETTINGS | {"output_dir": str(tmp_path)}
    LandscapePoints(finished, settings).open()
    LandscapePoints(finished, settings | {"grid": 3, "range": 2.0, "devices": 2}).open()
    with pytest.raises(ValueError, match="holds points with other settings") as caught:
        LandscapePoints(finished, settings | change).open()
    assert message in str(caught.value)


def test_points_of_other_weights_are_not_mixed(finished, tmp_path):
    settings = SETTINGS | {"output_dir": str(tmp_path)}
    LandscapePoints(finished, settings).open()
    finished.last_checkpoint.write_bytes(b"other weights")
    with pytest.raises(ValueError, match="checkpoint was"):
        LandscapePoints(finished, settings).open()


def test_points_without_a_word_of_what_they_are_are_neither_used_nor_removed(finished, tmp_path):
    points = LandscapePoints(finished, SETTINGS | {"output_dir": str(tmp_path)})
    points.csv.write_text("of somebody else")
    with pytest.raises(ValueError, match="holds points with other settings"):
        points.open()
    assert points.csv.read_text() == "of somebody else"
