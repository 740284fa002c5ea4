import errno
import os

import pytest

from src.runs.atomic_io import atomic_write, writing


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"new")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room on that disk"),
        (errno.EACCES, "make that place writable, or say another with output_dir=FOLDER"),
        (errno.EIO, "look after that place, or say another"),
    ],
)
def test_what_cannot_be_written_is_said_with_its_path_and_what_to_do(tmp_path, number, remedy):
    with pytest.raises(OSError) as raised, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    why = f"{tmp_path} cannot be written ({os.strerror(number)}): {remedy}; the same command then goes on"
    assert str(raised.value) == why
