"""Files are complete or absent, and an error of the disk says what to do."""

import errno
import os

import pytest

from src.runs.atomic_io import atomic_write, writing


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
