"""Writing files so that they are whole or not there, and saying what to do where they cannot be written."""

import csv
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

ELSEWHERE = "make that place writable, or say another with output_dir=FOLDER"
REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in your quota",
    errno.ENOENT: "put back what was removed or moved away",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), ELSEWHERE),
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What keeps a file from being written, as an OSError that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno, "look after that place, or say another")
        why = f"{path} cannot be written ({error.strerror or error}): {remedy}; the same command then goes on"
        raise OSError(why) from error


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file aside, brings it to the disk and renames it: `path` is never half a file."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        try:
            with open(part, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            with suppress(OSError):  # of no account beside what went wrong before
                part.unlink(missing_ok=True)


def append(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Appends rows to a CSV file, which begins with the names of its columns."""
    new = not path.exists()
    with writing(path), open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
