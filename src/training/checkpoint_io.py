"""Checkpoint files that survive kills and full disks: verified, renamed, the previous one kept.

Lightning's own checkpoint files are neither synced to the disk nor verified, and the previous one
is removed first.
"""

import zipfile
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from src.runs.atomic_io import atomic_write, writing


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Verify each checkpoint before it replaces `last.ckpt`, which becomes `previous.ckpt`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written, or cannot be read back as it was written.
        """
        path = Path(path)
        new = path.with_name("new.ckpt")
        try:
            atomic_write(new, lambda file: write_checkpoint(checkpoint, file))
            if not is_valid_checkpoint(new):
                raise OSError(f"{new} cannot be read back as it was written: check the disk")
            # A damaged checkpoint must not replace the valid one before it.
            keep = path.exists() and is_valid_checkpoint(path)
            with writing(path):
                if keep:
                    path.replace(path.with_name("previous.ckpt"))
                new.replace(path)
        finally:
            with suppress(OSError):  # an error of the write itself matters more
                new.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint without executing code that an untrusted file may contain.

        Raises:
            ValueError: it contains more than tensors and plain values.
        """
        try:
            return super().load_checkpoint(path, *args, **options | {"weights_only": True})
        except UnpicklingError as error:
            raise ValueError(
                f"{path} contains more than tensors and plain values: it is not our checkpoint"
            ) from error


def write_checkpoint(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    """Write with torch.save; a full disk raises its OSError instead of torch's RuntimeError."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def is_valid_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint in which every checksum is right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError):
        return False


def latest_valid_checkpoint(last: Path) -> Path | None:
    """Return `last.ckpt`, or `previous.ckpt` if that is missing or damaged; None if neither exists.

    Raises:
        ValueError: all that exist are damaged.
    """
    existing = [path for path in (last, last.with_name("previous.ckpt")) if path.exists()]
    for path in existing:
        if is_valid_checkpoint(path):
            return path
        print(f"{path} is damaged and skipped", flush=True)
    if existing:
        raise ValueError(
            f"no checkpoint in {last.parent} is valid: remove that directory to start from scratch"
        )
    return None
