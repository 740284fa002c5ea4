"""ImageNet 2012 (Russakovsky et al. 2015): 1,281,167 training images, 1,000 classes.

`python -m src.data.imagenet ROOT` computes the mean image, which otherwise the first run does.
"""

import argparse
import hashlib
import re
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.data.image_datamodule import ImageDataModule
from src.data.image_folder import read_folders
from src.data.image_subset import ImageSource, ImageSubset
from src.data.loader import EvalLoader, TrainLoader, Workers
from src.data.mean_image import compute_mean_image, mean_image_path, read_mean_image
from src.data.sampler import (
    Batch,
    check_batch_divides,
    check_enough_images,
    rank_and_world_size,
    train_val_split,
)
from src.data.transforms import CROP_SIZE, RandomResizedCrop, RandomScaleCrop, nchw, normalize
from src.data.webdataset import Shards, read_shards
from src.runs.environment import cpu_count

DESCRIPTION = (
    "Compute the mean image of the training images and save it in ROOT, for "
    "data.normalization=pixel."
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0 .. 1, torchvision's
CHOICES = {
    "crop": ("scale", "area"),
    "normalization": ("pixel", "channel_mean", "channel"),
    "on_bad": ("stop", "skip"),
}


class ImageNet(ImageDataModule):
    """Images below `root`, in folders (image_folder.py) or in shards (webdataset.py).

    The official validation images are the test set, as in the paper.

    Args:
        root: Directory of the dataset.
        crop: "scale" resizes the shorter side to a random length from `scales` and takes any
            224x224 of that (Sec. 3.4); "area" is torchvision's random-resized crop.
        scales: [smallest, largest] shorter side in pixels.
        color_noise: Standard deviation of the alphas of AlexNet's color noise; 0 for none.
        normalization: "pixel" subtracts the mean image, "channel_mean" torchvision's mean of each
            channel; "channel" also divides by torchvision's standard deviations.
        on_bad: At an image that cannot be decoded, "stop" the run or "skip" it with a message.
        num_workers: Processes that read images, for each device; None shares the cores.
        num_classes: Number of classes, as the net has outputs; None leaves that to the net.
        mean: A .npy file with a mean image [224, 224, 3] in 0 .. 255, used instead of the mean of
            the training images; its channels are in the net's order.
        bgr: Give the net its channels in the order B, G, R.
        **common: Arguments of `ImageDataModule`.

    Raises:
        ValueError: If an argument has an invalid value.
    """

    image_shape = (3, CROP_SIZE, CROP_SIZE)
    # Of evaluation. The last is an example: any shorter sides can be asked for.
    protocols = ("center", "10crop", "multiscale", "scales256-384-512")

    def __init__(
        self,
        root: str,
        crop: str,
        scales: list[int],
        color_noise: float,
        normalization: str,
        on_bad: str,
        num_workers: int | None,
        num_classes: int | None = None,
        mean: str | None = None,
        bgr: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        for key, value in {"crop": crop, "normalization": normalization, "on_bad": on_bad}.items():
            if value not in CHOICES[key]:
                raise ValueError(f"data.{key}={value} is not one of {', '.join(CHOICES[key])}")
        if len(scales) != 2 or not CROP_SIZE <= scales[0] <= scales[1]:
            raise ValueError(
                f"data.scales={scales} must be [smallest, largest], smallest at least {CROP_SIZE}"
            )
        if mean is not None and normalization != "pixel":
            raise ValueError(
                f"data.mean={mean} is a mean image, which data.normalization={normalization} "
                "does not use: set data.normalization=pixel"
            )
        self.root = Path(root)
        self.crop = RandomScaleCrop(*scales) if crop == "scale" else RandomResizedCrop()
        self.color_noise, self.normalization = color_noise, normalization
        self.given_mean, self.bgr = mean, bgr
        self.skip_corrupt, self.num_workers = on_bad == "skip", num_workers
        self.num_classes = num_classes
        self.splits: dict[str, ImageSubset] = {}
        self.skipped: set[str] = set()  # one message for each image

    @cached_property
    def sources(self) -> tuple[ImageSource, ImageSource]:
        """All training images, and all test images."""
        return find_images(self.root)

    @property
    def mean_path(self) -> Path:
        """The file that keeps the mean image."""
        return mean_image_path(self.root)

    def check_protocol(self, protocol: str) -> None:
        """Check that an evaluation protocol applies to the images, and to shards of them.

        Raises:
            ValueError: It does not.
        """
        if not re.fullmatch(r"scales[1-9]\d*(-[1-9]\d*)*", protocol):
            super().check_protocol(protocol)
        if protocol in ("center", "10crop"):
            return  # at a shorter side of 256, which no shard is reduced below

        test = self.sources[1]
        reduced = test.reduced if isinstance(test, Shards) else {}
        if reduced:
            path, side = next(iter(reduced.items()))
            raise ValueError(
                f"{path} was made by an earlier version, which reduced its images to {side} "
                f"pixels, too few for protocol={protocol}: make the shards again with python -m "
                "src.data.webdataset, or set protocol=center or 10crop"
            )

    def prepare_data(self) -> None:
        """Compute the mean image, if it is needed and not saved below `root` yet."""
        if self.normalization == "pixel" and self.given_mean is None:
            images = ImageSubset(self.sources[0], self.skip_corrupt)
            compute_mean_image(self.mean_path, images, self._workers())

    @property
    def test_labels(self) -> np.ndarray:
        """The labels of the official validation images, in order."""
        return self.sources[1].labels

    def setup(self, stage: str | None = None) -> None:
        """Split the images and read the mean, once.

        Raises:
            FileNotFoundError: If the images or the given mean image are missing.
            ValueError: If the images or the mean image are not what they should be, there are more
                classes than the config says, no image is left for training, or the batch does not
                divide among the processes.
        """
        if self.splits:
            return  # Lightning calls it for fit and for test
        check_batch_divides(self.batch_size, rank_and_world_size(self.trainer)[1])
        train, test = self.sources
        classes = 1 + int(max(train.labels.max(), test.labels.max()))
        if self.num_classes is not None and classes > self.num_classes:
            raise ValueError(
                f"{self.root} has {classes} classes, but the net has outputs for "
                f"{self.num_classes}: set data.num_classes={classes}"
            )
        train_indices, val_indices = train_val_split(len(train.labels), self.val_images, self.seed)
        self.train_images = len(train_indices)
        self.mean = self._read_mean()
        self.std = _row_of_pixels(STD) if self.normalization == "channel" else None
        # Stored in checkpoints: a run must not resume on other images.
        self.fingerprint = fingerprint(train, test, self.mean)

        self.splits["train"] = ImageSubset(train, self.skip_corrupt, train_indices)
        self.splits["test"] = ImageSubset(test, self.skip_corrupt)
        if self.val_images:
            self.splits["val"] = ImageSubset(train, self.skip_corrupt, val_indices)

    def _read_mean(self) -> Tensor:
        """Return the mean in the order R, G, B."""
        if self.given_mean is not None:
            # In the net's order, whereas pixels are normalized before they change theirs.
            mean = read_mean_image(Path(self.given_mean))
            return mean.flip(-1) if self.bgr else mean
        if self.normalization == "pixel":
            return torch.from_numpy(np.load(self.mean_path))
        return _row_of_pixels(MEAN)

    def train_dataloader(self) -> TrainLoader:
        """Return the training stream from its first iteration."""
        load_augmented = self.splits["train"].load_augmented
        make_batch = partial(load_augmented, self.crop, self.color_noise)
        return TrainLoader(self.training_stream(make_batch), self._workers())

    def eval_loader(self, split: str) -> EvalLoader:
        """Return the images of a split in order, center-cropped."""
        images, (rank, world_size) = self.splits[split], rank_and_world_size(self.trainer)
        check_enough_images(len(images), world_size)
        # Each image on one process only, and as many on each as possible.
        indices = range(rank, len(images), world_size)
        return EvalLoader(images.load_center_crops, indices, self._workers())

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], _: int) -> Batch:
        """Normalize a batch on its device and add color noise to training images.

        Args:
            batch: Images uint8 [n, 224, 224, 3], labels [n] and, in training, noise [n, 3].

        Returns:
            Images float32 [n, 3, 224, 224], channels-last, and labels [n].
        """
        images, labels, *color_noise = batch
        # Moved at the first batch; after that `to` returns the same tensor.
        self.mean = self.mean.to(images.device)
        self.std = None if self.std is None else self.std.to(images.device)
        images = normalize(images, self.mean, self.std)
        for noise in color_noise:  # one tensor, or none
            # Repeated over a row of pixels for the same reason as the mean.
            rows = noise[:, None, None].repeat(1, 1, CROP_SIZE, 1)
            images += rows if self.std is None else rows / self.std
        return nchw(images.flip(-1) if self.bgr else images), labels

    def _workers(self) -> Workers:
        devices = self.trainer.num_devices if self.trainer else 1
        share = max(1, cpu_count() // devices)
        processes = share if self.num_workers is None else self.num_workers
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Workers(processes, pin, self.skipped)


def find_images(root: Path) -> tuple[ImageSource, ImageSource]:
    """Find all training images and all test images below `root`, in folders or in shards."""
    # Without either, the message about folders is the more helpful one.
    has_folders = (root / "train").is_dir() or not list(root.glob("*.tar"))
    return read_folders(root) if has_folders else read_shards(root)


def _row_of_pixels(channels: tuple[float, ...]) -> Tensor:
    """Repeat a value of each channel in 0 .. 1 along a row of pixels, [224, 3] in 0 .. 255."""
    # Rather than three numbers, which a CPU broadcasts slowly.
    return 255 * torch.tensor(channels).repeat(CROP_SIZE, 1)


def fingerprint(train: ImageSource, test: ImageSource, mean: Tensor) -> str:
    """Hash the names and labels of all images and the mean, but not 150 GB of pixels."""
    digest = hashlib.sha256(mean.numpy().data)
    for source in (train, test):
        digest.update(b"\0".join(source.names.tolist()))
        digest.update(source.labels.data)
    return digest.hexdigest()


def main() -> None:
    """Compute the mean image of the dataset on the command line."""
    parser = argparse.ArgumentParser(prog="python -m src.data.imagenet", description=DESCRIPTION)
    parser.add_argument("root", type=Path, help="holds train/ and val/, or shards")
    choices = CHOICES["on_bad"]
    parser.add_argument(
        "--on-bad", choices=choices, default="stop", help="at images that cannot be decoded"
    )
    options = parser.parse_args()
    images = ImageSubset(find_images(options.root)[0], options.on_bad == "skip")
    path = mean_image_path(options.root)
    compute_mean_image(path, images, Workers(cpu_count(), pin=False, reported=set()))


if __name__ == "__main__":
    from src.cli import run_entry_point

    run_entry_point(main)
