"""Write files so that they are complete or absent, and say how to fix what prevents writing."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

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
        # Some libraries raise an OSError without a number.
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
                # Synced before the rename: else a crash of the machine could leave an empty file
                # under the new name.
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):  # an error of the write itself matters more
                temporary.unlink(missing_ok=True)
