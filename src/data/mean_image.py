"""The mean image over ImageNet's training images, which `data.normalization=pixel` subtracts."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.data.image_subset import ImageSubset
from src.data.loader import EvalLoader, Workers
from src.data.transforms import CROP_SIZE


def mean_image_path(root: Path, split: str = "") -> Path:
    """Return the file below a dataset's root that keeps its mean image.

    Args:
        root: Directory of the dataset.
        split: Tells its splits apart, if it has several.
    """
    return root / f"mean-{CROP_SIZE}{split and f'-{split}'}.npy"


def compute_mean_image(path: Path, images: ImageSubset, workers: Workers) -> None:
    """Average the center crops of the training images and save the result, unless it is there.

    Args:
        path: The file for float32 [224, 224, 3] in 0 .. 255.
        images: The training images, those held out included.
        workers: The processes that read the images.

    Raises:
        ValueError: If no image can be read.
    """
    if path.exists():
        return

    print(f"computing the mean image of {len(images):,} images, once: {path}", flush=True)
    # The paper does not say of which crops: center crops, as the images are tested.
    batches = EvalLoader(images.load_center_crops, range(len(images)), workers)
    # An integer sum is exact in any order: the same images give the same file.
    total, count = torch.zeros((CROP_SIZE, CROP_SIZE, 3), dtype=torch.int64), 0
    with tqdm(desc="mean image", total=len(images), unit=" images", disable=None) as bar:
        for crops, _ in batches:
            total += crops.sum(0)
            count += len(crops)  # fewer than `images` if some are skipped
            bar.update(len(crops))
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
            # Not np.load, which opens archives of several arrays as well. It never unpickles.
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
