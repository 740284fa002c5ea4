"""A user's own images, in one folder per class: small ones in memory, others read as ImageNet's."""

import hashlib
from collections.abc import Callable
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from tqdm import tqdm

from src.data.image_folder import (
    TEST_FOLDERS,
    ImageFiles,
    check_known_classes,
    class_names,
    labels_by_class,
    subfolders,
    train_folder,
)
from src.data.image_subset import ImageSubset
from src.data.imagenet import ImageNet
from src.data.in_memory import ImagesInMemory
from src.data.loader import EvalLoader, Workers
from src.data.mean_image import mean_image_path
from src.data.transforms import CROP_SIZE, resize, scaled_size
from src.runs.environment import cpu_count

Splits = tuple[ImageFiles, ImageFiles]  # training and test images


def images(
    root: str,
    size: int,
    num_classes: int,
    test_fraction: float,
    split_seed: int,
    flip: bool,
    padding: int,
    on_bad: str,
    num_workers: int | None,
    crop: str,
    scales: list[int],
    color_noise: float,
    **common: Any,
) -> "SmallImages | LargeImages":
    """Return the images below a directory as a dataset.

    Args:
        root: The directory; it holds train/ and test/ or val/, or the folders of the classes.
        size: Height and width of the images that the net is given. 224 reads them from the disk as
            `ImageNet` does; smaller ones are kept in memory.
        num_classes: Number of classes, as the net has outputs.
        test_fraction: Part of each class that is the test set, if there is no folder of one.
        split_seed: Chooses these images.
        flip: Of `ImagesInMemory`, not used at size 224.
        padding: Likewise.
        on_bad: Of `ImageNet`.
        num_workers: Likewise.
        crop: Likewise, used at size 224 only.
        scales: Likewise.
        color_noise: Likewise.
        **common: Arguments of both.

    Raises:
        ValueError: If an argument has an invalid value.
    """
    if not 1 <= size <= CROP_SIZE:
        raise ValueError(f"data.size={size} must be from 1 to {CROP_SIZE}")
    if not 0 < test_fraction < 1:
        raise ValueError(f"data.test_fraction={test_fraction} must be between 0 and 1")
    if on_bad not in ("stop", "skip"):
        raise ValueError(f"data.on_bad={on_bad} is not one of stop, skip")

    find = partial(find_splits, Path(root), num_classes, test_fraction, split_seed)
    if size < CROP_SIZE:
        small = {"padding": padding, "flip": flip}
        return SmallImages(find, size, on_bad == "skip", num_workers, **small, **common)
    large = {"crop": crop, "scales": scales, "color_noise": color_noise, "on_bad": on_bad}
    return LargeImages(find, root=root, num_workers=num_workers, **large, **common)


class SmallImages(ImagesInMemory):
    """Images resized to one size and kept in memory.

    Args:
        find: Lists the training and the test images.
        size: The shorter side is resized to so many pixels, and the central square of it is taken.
        skip_corrupt: Skip an image that cannot be decoded instead of raising ValueError.
        num_workers: Processes that read images; None takes all cores.
        **common: Arguments of `ImagesInMemory`.
    """

    def __init__(
        self,
        find: Callable[[], Splits],
        size: int,
        skip_corrupt: bool,
        num_workers: int | None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.find, self.size, self.skip_corrupt = find, size, skip_corrupt
        self.workers = Workers(
            cpu_count() if num_workers is None else num_workers, pin=False, reported=set()
        )

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return training images and labels, then test images and labels.

        Raises:
            ValueError: If an image cannot be decoded and is not to be skipped, or none can be.
        """
        train, test = self.find()
        return *self._read_split(train), *self._read_split(test)

    def _read_split(self, files: ImageFiles) -> tuple[np.ndarray, np.ndarray]:
        subset = ImageSubset(files, self.skip_corrupt)
        load = partial(subset.load_views, partial(central_square, size=self.size))
        loader = EvalLoader(load, range(len(subset)), self.workers)
        # Shown only if it takes longer than a second.
        bar = tqdm(loader, "reading images", unit="batch", leave=False, disable=None, delay=1)
        batches = [*bar]
        if not batches:
            raise ValueError(f"none of the images in {files.folder} can be read")
        views, labels = (torch.cat(tensors).numpy() for tensors in zip(*batches, strict=True))
        return views[:, 0], labels  # one view of each image


def central_square(image: Tensor, size: int) -> list[Tensor]:
    """Resize the shorter side of uint8 [3, H, W]; return the central square, [1, 3, size, size]."""
    image = resize(image, *scaled_size(image.shape[1], image.shape[2], size))
    top, left = ((side - size) // 2 for side in image.shape[1:])
    return [image[None, :, top : top + size, left : left + size]]


class LargeImages(ImageNet):
    """Images read from the disk, augmented and tested as those of ImageNet.

    Args:
        find: Lists the training and the test images.
        **common: Arguments of `ImageNet`.
    """

    def __init__(self, find: Callable[[], Splits], **common: Any) -> None:
        super().__init__(**common)
        self.find = find

    @cached_property
    def sources(self) -> Splits:
        """All training images, and all test images."""
        return self.find()

    @property
    def mean_path(self) -> Path:
        """The file that keeps the mean image; each split of a directory has its own."""
        names = b"\0".join(self.sources[0].names.tolist())
        return mean_image_path(self.root, hashlib.sha256(names).hexdigest()[:8])


def find_splits(root: Path, num_classes: int, test_fraction: float, split_seed: int) -> Splits:
    """List the training and the test images below `root`, with a message about what is special.

    Args:
        root: The directory.
        num_classes: Number of outputs of the net.
        test_fraction: Part of each class that is the test set, if there is no folder of one.
        split_seed: Chooses these images.

    Raises:
        FileNotFoundError: If a folder is missing or empty.
        ValueError: If there are not `num_classes` classes, classes in the test set that are not in
            the training set, or too few images of a class to split them.
    """
    report = rank_zero_only(partial(print, flush=True))
    names = class_names(root)
    if len(names) != num_classes:
        raise ValueError(
            f"{root} has {len(names)} classes, but the net has outputs for {num_classes}"
        )
    label_of = {name: label for label, name in enumerate(names)}
    train = train_folder(root)
    labels = labels_by_class(train, names, label_of)

    tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if train == root or not tests:
        train_labels, test_labels = split_by_class(labels, names, train, test_fraction, split_seed)
        report(
            f"{root} has no test/ or val/ next to train/: {len(test_labels):,} of {len(labels):,} "
            f"images, {test_fraction:.0%} of each class, are the test set (data.split_seed="
            f"{split_seed})"
        )
        return ImageFiles(train, train_labels), ImageFiles(train, test_labels)

    test, *unused = tests
    if unused:
        report(f"{test} has the test images: {unused[0]} is not used")
    test_names = subfolders(test)
    check_known_classes(test, test_names, train, names)
    if not test_names:
        raise FileNotFoundError(f"there are no images in {test}: it needs a folder for each class")
    missing = sorted({*names} - {*test_names})
    if missing:
        report(f"{test} lacks {len(missing)} of {len(names)} classes, such as {missing[0]}")
    # By the names of the training classes, as some may be missing here.
    test_labels = labels_by_class(test, test_names, label_of)
    return ImageFiles(train, labels), ImageFiles(test, test_labels)


def split_by_class(
    labels: dict[str, int], names: list[str], folder: Path, test_fraction: float, seed: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Split images at random into training and test images, with at least one of each class.

    Args:
        labels: The class of each image, by its path below `folder`.
        names: The names of the classes.
        folder: The directory that holds them.
        test_fraction: The part of each class for the test set.
        seed: Seed of the split.

    Raises:
        ValueError: If a class has only one image.
    """
    rng = np.random.default_rng(seed)
    label_of_image = np.array([*labels.values()])
    in_test = np.zeros(len(labels), bool)
    for label, name in enumerate(names):
        members = np.flatnonzero(label_of_image == label)
        if len(members) < 2:
            raise ValueError(
                f"{folder / name} has one image, too few for a training and a test set: add images "
                "or remove the folder"
            )
        # At least one image on either side, or the class would be missing there.
        count = min(max(1, round(test_fraction * len(members))), len(members) - 1)
        in_test[rng.permutation(members)[:count]] = True

    train, test = (dict(compress(labels.items(), chosen)) for chosen in (~in_test, in_test))
    return train, test
