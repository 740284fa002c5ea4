"""Write files so that they are complete or absent, and say how to fix what prevents writing."""

import csv
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

NOT_WRITABLE = "make it writable, or choose another directory with output_dir=DIRECTORY"
REMEDIES = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space in your quota",
    errno.ENOENT: "put back what was removed or moved",
    errno.EROFS: NOT_WRITABLE,
    errno.EACCES: NOT_WRITABLE,
    errno.EPERM: NOT_WRITABLE,
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into one that names the file and says what to do.

    Raises:
        OSError: the block raised one.
    """
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "check that disk, or choose another")
        reason = error.strerror or error
        raise OSError(
            f"{path} cannot be written ({reason}): {remedy}; the same command then resumes"
        ) from error


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a temporary file, sync it to the disk and rename it: `path` is never half-written.

    Args:
        path: the file to create or replace.
        write: writes the content into an open binary file.

    Raises:
        OSError: the file cannot be written; the previous one is unchanged.
    """
    temporary = path.with_name(path.name + ".part")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):  # an error of the write itself matters more
                temporary.unlink(missing_ok=True)


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a CSV file, after a header if the file is new.

    A file keeps the columns that it has: a run that resumes may have been begun by an older
    version, which wrote fewer.
    Lightning's CSVLogger is not used: it deletes its file when a run resumes.

    Raises:
        OSError: the file cannot be written.
    """
    with writing(path), open(path, "a+", newline="") as file:
        file.seek(0)
        existing = next(csv.reader(file), None)
        writer = csv.DictWriter(
            file, existing or columns, extrasaction="ignore", lineterminator="\n"
        )
        if not existing:
            writer.writeheader()
        writer.writerows(rows)


def truncate_rows(path: Path, last_iteration: int) -> bool:
    """Drop the rows of a CSV file after an iteration, and an incomplete last line.

    Args:
        path: a CSV file whose first column is the iteration.
        last_iteration: the last one to keep.

    Returns:
        Whether rows remain; without any, the file is removed.
    """
    lines = path.read_text().splitlines(keepends=True)
    header, rows = lines[:1], lines[1:]
    kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= last_iteration]

    if kept:
        atomic_write(path, lambda file: file.write("".join(header + kept).encode()))
    else:
        path.unlink()
    return bool(kept)


def sync_to_disk(path: Path) -> None:
    """Block until the content of a file is on the disk."""
    with writing(path), open(path) as file:
        os.fsync(file.fileno())
