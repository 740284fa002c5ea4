"""ImageNet 2012 (Russakovsky et al. 2015): 1,281,167 training images, 1,000 classes.

`python -m src.data.imagenet ROOT` computes the mean image, which otherwise the first run does.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.data.image_datamodule import ImageDataModule
from src.data.image_folder import read_folders
from src.data.image_reader import ImageSource, ImageSubset, LoadedBatch
from src.data.loader import EvalLoader, TrainBatchMaker, TrainLoader, prefetch
from src.data.mean_image import mean_image_path, read_mean_image, write_mean_image
from src.data.sampler import (
    Batch,
    check_batch_divides,
    check_enough_images,
    rank_and_world_size,
    train_val_split,
)
from src.data.transforms import CROP_SIZE, RandomResizedCrop, RandomScaleCrop, nchw, normalize
from src.data.webdataset import read_shards
from src.runs.environment import cpu_count

DESCRIPTION = (
    "Compute the mean image of the training images and save it in ROOT, for "
    "data.normalization=pixel."
)
TEST_BATCH = 100  # images of a process
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
        val_images: Training images held out for validation, chosen by the seed.
        crop: "scale" resizes the shorter side to a random length from `scales` and takes any
            224x224 of that (Sec. 3.4); "area" is torchvision's random-resized crop.
        scales: [smallest, largest] shorter side in pixels.
        color_noise: Standard deviation of the alphas of AlexNet's color noise; 0 for none.
        normalization: "pixel" subtracts the mean image, "channel_mean" torchvision's mean of each
            channel; "channel" also divides by torchvision's standard deviations.
        on_bad: At an image that cannot be decoded, "stop" the run or "skip" it with a message.
        num_workers: Processes that read images, for each device; None shares the cores.
        seed: Seed of the run.
        batch_size: Images per iteration over all processes; needed for training only.
        iterations: Length of the run; needed for training only.
        mean: A .npy file with a mean image [224, 224, 3] in 0 .. 255, used instead of the mean of
            the training images; its channels are in the net's order.
        bgr: Give the net its channels in the order B, G, R.

    Raises:
        ValueError: If an argument has none of its values.
    """

    image_shape = (3, CROP_SIZE, CROP_SIZE)
    protocols = ("center", "10crop", "multiscale")  # of evaluation

    def __init__(
        self,
        root: str,
        val_images: int,
        crop: str,
        scales: list[int],
        color_noise: float,
        normalization: str,
        on_bad: str,
        num_workers: int | None,
        seed: int,
        batch_size: int | None = None,
        iterations: int | None = None,
        mean: str | None = None,
        bgr: bool = False,
    ) -> None:
        super().__init__(val_images, seed, batch_size, iterations)
        given = {"crop": crop, "normalization": normalization, "on_bad": on_bad}
        for key, value in given.items():
            if value not in CHOICES[key]:
                raise ValueError(f"data.{key}={value} is not one of {', '.join(CHOICES[key])}")
        if len(scales) != 2 or not CROP_SIZE <= scales[0] <= scales[1]:
            raise ValueError(
                f"data.scales={scales} must be [smallest, largest], with smallest at least "
                f"{CROP_SIZE}"
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
        self.splits: dict[str, ImageSubset] = {}
        self.skipped: set[str] = set()  # one message for each image

    @cached_property
    def sources(self) -> tuple[ImageSource, ImageSource]:
        """All training images, and all test images."""
        has_folders = (self.root / "train").is_dir() or not list(self.root.glob("*.tar"))
        return read_folders(self.root) if has_folders else read_shards(self.root)

    def prepare_data(self) -> None:
        """Compute the mean image, if it is needed and not saved below `root` yet."""
        path = mean_image_path(self.root)
        if self.normalization != "pixel" or self.given_mean is not None or path.exists():
            return
        # The paper does not say of which crops: center crops, as the images are tested.
        num_images = len(self.sources[0].labels)
        images = ImageSubset(self.sources[0], np.arange(num_images), self.skip_corrupt)
        print(f"computing the mean image of {num_images:,} images, once: {path}", flush=True)
        batches = self._read_batches(images.load_center_crops, _batches(range(num_images)))
        write_mean_image(path, batches, num_images)

    @property
    def test_labels(self) -> np.ndarray:
        """The labels of the official validation images, in order."""
        return self.sources[1].labels

    def setup(self, stage: str | None = None) -> None:
        """Split the images and read the mean, once.

        Raises:
            FileNotFoundError: If the images or the given mean image are missing.
            ValueError: If the images or the mean image are not what they should be, no image is
                left for training, or the batch does not divide among the processes.
        """
        if self.splits:
            return  # Lightning calls it for fit and for test
        check_batch_divides(self.batch_size, rank_and_world_size(self.trainer)[1])
        train, test = self.sources
        train_indices, val_indices = train_val_split(len(train.labels), self.val_images, self.seed)
        self.train_images = len(train_indices)
        self.mean, self.std = self._read_mean(), None
        if self.normalization == "channel":
            self.std = 255 * torch.tensor(STD).repeat(CROP_SIZE, 1)
        self.fingerprint = fingerprint(train, test, self.mean)

        splits = {"train": (train, train_indices), "test": (test, np.arange(len(test.labels)))}
        if self.val_images:
            splits["val"] = train, val_indices
        self.splits = {
            split: ImageSubset(source, indices, self.skip_corrupt)
            for split, (source, indices) in splits.items()
        }

    def _read_mean(self) -> Tensor:
        """Return the mean in the order R, G, B."""
        if self.given_mean is not None:
            mean = read_mean_image(Path(self.given_mean))
            return mean.flip(-1) if self.bgr else mean
        if self.normalization == "pixel":
            return torch.from_numpy(np.load(mean_image_path(self.root)))
        # A row of pixels rather than three numbers, which a CPU broadcasts slowly.
        return 255 * torch.tensor(MEAN).repeat(CROP_SIZE, 1)

    def train_dataloader(self) -> TrainLoader:
        """Return the training stream from its first iteration."""
        images = self.splits["train"]
        make_batch = TrainBatchMaker(images, self.crop, self.color_noise)
        return TrainLoader(self.training_stream(make_batch), self._read_batches)

    def val_dataloader(self) -> EvalLoader:
        """Return the held-out images, or the test images if none are held out."""
        return self._eval_loader("val" if "val" in self.splits else "test")

    def test_dataloader(self) -> EvalLoader:
        """Return the test images, center-cropped."""
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> EvalLoader:
        images, (rank, world_size) = self.splits[split], rank_and_world_size(self.trainer)
        check_enough_images(len(images), world_size)
        index_batches = _batches(range(rank, len(images), world_size))
        return EvalLoader(images.load_center_crops, index_batches, self._read_batches)

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

    def _read_batches(
        self, make_batch: Callable[[Any], LoadedBatch], items: Sequence[Any]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches made by worker processes, and report each skipped image once."""
        workers, pin = self.num_workers, False
        if workers is None:
            devices = self.trainer.num_devices if self.trainer else 1
            workers = max(1, cpu_count() // devices)
        if self.trainer:
            # Only pinned memory is copied to a GPU while it computes.
            pin = self.trainer.strategy.root_device.type == "cuda"
        for batch, skipped in prefetch(make_batch, items, workers, pin):
            for message in skipped:
                # Training meets an image once each epoch.
                if message not in self.skipped:
                    self.skipped.add(message)
                    total = len(self.skipped)
                    tqdm.write(f"{message}: skipped, {total} so far", file=sys.stderr)
            yield batch


def _batches(indices: range) -> list[range]:
    return [indices[i : i + TEST_BATCH] for i in range(0, len(indices), TEST_BATCH)]


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
    parser.add_argument("root", help="holds train/ and val/, or shards")
    parser.add_argument(
        "--on-bad",
        choices=CHOICES["on_bad"],
        default="stop",
        help="at images that cannot be decoded",
    )
    options = parser.parse_args()
    ImageNet(
        root=options.root,
        val_images=0,
        crop="scale",
        scales=[256, 480],
        color_noise=0,
        normalization="pixel",
        on_bad=options.on_bad,
        num_workers=None,
        seed=0,
    ).prepare_data()


if __name__ == "__main__":
    from src.cli import run_entry_point

    run_entry_point(main)
