"""Checkpoints that survive: written aside, read back, renamed, and the one before kept as long as it may be needed."""

import zipfile
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from src.runs.atomic_io import atomic_write, writing


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, each written aside and read back before it takes the place of the one before.

    Of `last.ckpt`, the one before is `previous.ckpt`, unless it is damaged: then the one before that is kept.
    Raises OSError if the disk does not take or give back what is written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: object = None) -> None:
        path = Path(path)
        new = path.with_name("new.ckpt")
        try:
            atomic_write(new, lambda file: save(checkpoint, file))
            if not is_valid_checkpoint(new):
                raise OSError(f"{new} cannot be read back as it was written: look after the disk")
            worth_keeping = path.exists() and is_valid_checkpoint(path)
            with writing(path):
                if worth_keeping:
                    path.replace(path.with_name("previous.ckpt"))
                new.replace(path)
        finally:
            with suppress(OSError):  # of no account beside what went wrong before
                new.unlink(missing_ok=True)

    def load_checkpoint(self, path: Path, *args: Any, **options: Any) -> dict[str, Any]:
        """Never runs what a file may hold. Raises ValueError if that is more than tensors and plain values."""
        try:
            return super().load_checkpoint(path, *args, **options | {"weights_only": True})
        except UnpicklingError as error:
            raise ValueError(
                f"{path} holds more than tensors and plain values, and is no checkpoint of ours"
            ) from error


def save(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    """torch.save; where the file takes no more, that is said rather than what torch makes of it."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def is_valid_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint in which every checksum is right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError):
        return False


def latest_valid_checkpoint(last: Path) -> Path | None:
    """`last.ckpt`, or `previous.ckpt` where that is missing or (a line tells) damaged; None if neither is there.

    Raises ValueError if there are some and all are damaged.
    """
    there = [path for path in (last, last.with_name("previous.ckpt")) if path.exists()]
    for path in there:
        if is_valid_checkpoint(path):
            return path
        print(f"{path} is damaged and passed over", flush=True)
    if there:
        raise ValueError(f"no checkpoint in {last.parent} can be read: remove that folder to start the run anew")
    return None
