"""The mean image over ImageNet's training images, which `data.normalization=pixel` subtracts."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.data.transforms import CROP_SIZE


def mean_image_path(root: Path) -> Path:
    """Return the file below a dataset's root that keeps its mean image."""
    return root / f"mean-{CROP_SIZE}.npy"


def write_mean_image(path: Path, batches: Iterable[tuple[Tensor, ...]], num_images: int) -> None:
    """Average images and save the result.

    Args:
        path: File to write, float32 [224, 224, 3] in 0 .. 255.
        batches: Each with images uint8 [n, 224, 224, 3] first.
        num_images: Their number, for the progress bar; skipped images do not come.

    Raises:
        ValueError: If there is no image.
    """
    # An integer sum is exact in any order: the same images give the same file.
    total, count = torch.zeros((CROP_SIZE, CROP_SIZE, 3), dtype=torch.int64), 0
    with tqdm(desc="mean image", total=num_images, unit=" images", disable=None) as bar:
        for images, *_ in batches:
            total += images.sum(0)
            count += len(images)
            bar.update(len(images))
    if not count:
        raise ValueError(f"none of the images in {path.parent} can be read")

    # Renamed when complete; named by process, as several may compute it at the same time.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.save(file, (total / count).float().numpy())
    part.replace(path)


def read_mean_image(path: Path) -> Tensor:
    """Read the mean image that a user gave with data.mean=, float32 [224, 224, 3].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file data.mean={path}")
    with path.open("rb") as file:
        try:
            mean = np.lib.format.read_array(file).astype(np.float32)
        except ValueError as error:
            raise ValueError(
                f"data.mean={path} holds no array of numbers: write it with np.save"
            ) from error
    expected = (CROP_SIZE, CROP_SIZE, 3)
    if mean.shape != expected:
        raise ValueError(
            f"data.mean={path} has shape {list(mean.shape)}: a mean image has {list(expected)}"
        )
    return torch.from_numpy(mean)
