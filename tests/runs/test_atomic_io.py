"""Files are complete or absent, and an error of the disk says what to do."""

import errno
import os

import pytest

from src.runs.atomic_io import append_rows, atomic_write, truncate_rows, writing


def test_a_failed_write_leaves_the_previous_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"new")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_previous_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space on that disk"),
        (errno.EACCES, "make it writable, or choose another directory with output_dir=DIRECTORY"),
        (errno.EIO, "check that disk, or choose another"),
    ],
)
def test_an_error_of_the_disk_names_the_file_and_says_what_to_do(tmp_path, number, remedy):
    with pytest.raises(OSError, match="cannot be written") as error, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    reason = f"{tmp_path} cannot be written ({os.strerror(number)})"
    assert str(error.value) == f"{reason}: {remedy}; the same command then resumes"


def test_a_new_csv_file_gets_a_header_and_an_old_one_none(tmp_path):
    path = tmp_path / "rows.csv"
    append_rows(path, ["iteration", "a", "b"], [{"iteration": 1, "a": 2}])
    append_rows(path, ["iteration", "a", "b"], [{"iteration": 3, "b": 0.5}])
    assert path.read_text() == "iteration,a,b\n1,2,\n3,,0.5\n"


def test_a_csv_file_of_an_older_version_keeps_its_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("iteration,b\n1,2\n")
    append_rows(path, ["iteration", "a", "b"], [{"iteration": 3, "a": 4, "b": 5}])
    assert path.read_text() == "iteration,b\n1,2\n3,5\n"


@pytest.mark.parametrize(
    ("iteration", "remaining"), [(30, "1,x\n20,y\n"), (20, "1,x\n20,y\n"), (19, "1,x\n"), (0, None)]
)
def test_rows_after_an_iteration_and_an_incomplete_last_row_are_dropped(
    tmp_path, iteration, remaining
):
    path = tmp_path / "rows.csv"
    path.write_text("iteration,a\n1,x\n20,y\n25")
    assert truncate_rows(path, iteration) == bool(remaining)
    if remaining:
        assert path.read_text() == f"iteration,a\n{remaining}"
    else:
        assert not path.exists()
