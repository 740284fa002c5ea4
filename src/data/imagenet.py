"""ImageNet 2012 (Russakovsky et al. 2015): 1,281,167 training and 50,000 validation photos of 1,000 classes.

`python -m src.data.imagenet ROOT` computes the mean image of the training photos, which the first run does otherwise.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from tqdm import tqdm

from src.data.image_folder import Files, read_folders
from src.data.in_memory import nchw
from src.data.loader import Augmented, Made, Photos, TestBatches, TrainBatches, read_mean
from src.data.photo import SIZE, RandomArea, RandomScale
from src.data.sampler import Batch, Stream, check_batch_divides, check_enough_images, train_val_split
from src.data.transforms import normalize
from src.data.webdataset import Shards, read_shards
from src.data.workers import prefetch
from src.runs.environment import cpu_count

COMMAND = "Computes the mean image of the training photos and keeps it in ROOT, for data.normalization=pixel."
TEST_BATCH = 100
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0 .. 1, as torchvision's nets have them
CHOICES = {
    "crop": ("scale", "area"),
    "normalization": ("pixel", "channel_mean", "channel"),
    "on_bad": ("stop", "skip"),
}


class ImageNet(LightningDataModule):
    """Photos below `root`, in folders (see `folder.py`) or shards (see `shards.py`); the official val/ is for testing.

    Args:
        val_images: training photos held out by seed for validation; 0 trains on all, and val/ is tested on.
        crop: "scale" draws the shorter side from `scales`, [smallest, largest], then any 224x224 of that (Sec. 3.4);
            "area" is torchvision's random-resized crop.
        color: deviation of the alphas of AlexNet's color noise, 0.1 in the paper; 0 for none.
        normalization: "pixel" subtracts the mean image; "channel_mean" the well-known mean of each channel;
            "channel" also divides by its deviation.
        mean: a .npy file with a mean image [224, 224, 3] in 0 .. 255 to use with "pixel", None for that of the photos.
        bgr: give the net its channels in the order B, G, R; those in the file `mean` are in the order of the net's.
        on_bad: what to do with a photo that cannot be decoded: "stop" the run, or "skip" it and say so.
        num_workers: processes that read photos for each device; None shares the cores out among the devices.
        seed, batch_size, iterations: of the training stream; testing needs the seed alone.
    """

    image_shape = (3, SIZE, SIZE)
    protocols = ("center", "10crop", "multiscale")

    def __init__(
        self,
        root: str,
        val_images: int,
        crop: str,
        scales: list[int],
        color: float,
        normalization: str,
        on_bad: str,
        num_workers: int | None,
        seed: int,
        batch_size: int | None = None,
        iterations: int | None = None,
        mean: str | None = None,
        bgr: bool = False,
    ) -> None:
        super().__init__()
        for key, value in {"crop": crop, "normalization": normalization, "on_bad": on_bad}.items():
            if value not in CHOICES[key]:
                raise ValueError(f"data.{key}={value} is not one of {', '.join(CHOICES[key])}")
        if len(scales) != 2 or not SIZE <= scales[0] <= scales[1]:
            raise ValueError(f"data.scales={scales} must be [smallest, largest], from {SIZE} up")
        if mean is not None and normalization != "pixel":
            raise ValueError(f"data.mean={mean} is a mean image, which data.normalization={normalization} does not use")
        self.root, self.val_images, self.color = Path(root), val_images, color
        self.given_mean, self.bgr = mean, bgr
        self.crop = RandomScale(*scales) if crop == "scale" else RandomArea()
        self.normalization, self.skip, self.num_workers = normalization, on_bad == "skip", num_workers
        self.seed, self.batch_size, self.iterations = seed, batch_size, iterations
        self.photos: dict[str, Photos] = {}
        self.skipped: set[str] = set()  # a line for each photo

    def prepare_data(self) -> None:
        """Computes the mean image, if it is wanted and neither given nor kept below `root` yet."""
        if self.normalization == "pixel" and self.given_mean is None and not self.mean_path.exists():
            self._keep_mean()

    @cached_property
    def sources(self) -> tuple[Files | Shards, Files | Shards]:
        """Of the training and the testing photos."""
        folders = (self.root / "train").is_dir() or not list(self.root.glob("*.tar"))
        return read_folders(self.root) if folders else read_shards(self.root)

    @property
    def mean_path(self) -> Path:
        return self.root / f"mean-{SIZE}.npy"

    def _keep_mean(self) -> None:
        """Of the training photos as they are tested, in the middle: the paper does not say of which crops."""
        photos = Photos(self.sources[0], np.arange(len(self.sources[0].labels)), self.skip)
        print(f"the mean image of {len(photos):,} photos is computed once and kept in {self.mean_path}", flush=True)
        total, count = torch.zeros((SIZE, SIZE, 3), dtype=torch.int64), 0
        with tqdm(desc="mean image", total=len(photos), unit=" photos", disable=None) as bar:
            for images, _ in self._read(photos.center, _batches(range(len(photos)))):
                total += images.sum(0)
                count += len(images)
                bar.update(len(images))
        if not count:
            raise ValueError(f"none of the photos in {self.root} can be read")
        aside = self.mean_path.with_name(f"{self.mean_path.name}.{os.getpid()}.part")
        with aside.open("wb") as file:
            np.save(file, (total / count).float().numpy())
        aside.replace(self.mean_path)

    def setup(self, stage: str | None = None) -> None:
        """Splits the photos, once.

        Raises ValueError if the validation set takes them all, the batch does not divide among the devices, or the
        mean that was given is none, FileNotFoundError if it is not there.
        """
        if self.photos:
            return
        check_batch_divides(self.batch_size, self._rank_and_world()[1])
        train, test = self.sources
        trained, validated = train_val_split(len(train.labels), self.val_images, self.seed)
        self.train_images = len(trained)
        if self.given_mean is not None:
            self.mean = read_mean(Path(self.given_mean))
            self.mean = self.mean.flip(-1) if self.bgr else self.mean
        elif self.normalization == "pixel":
            self.mean = torch.from_numpy(np.load(self.mean_path))
        else:
            self.mean = 255 * torch.tensor(MEAN).repeat(SIZE, 1)  # a row of pixels: a CPU is slow at three numbers
        self.std = 255 * torch.tensor(STD).repeat(SIZE, 1) if self.normalization == "channel" else None
        self.fingerprint = fingerprint(train, test, self.mean)
        splits = {"train": (train, trained), "test": (test, np.arange(len(test.labels)))}
        if self.val_images:
            splits["val"] = train, validated
        self.photos = {split: Photos(*those, self.skip) for split, those in splits.items()}

    def train_dataloader(self) -> "TrainBatches":
        """The training stream, from its first iteration."""
        photos = self.photos["train"]
        make = Augmented(photos, self.crop, self.color)
        rank_and_world = self._rank_and_world()
        stream = Stream(make, len(photos), self.batch_size, self.iterations, self.seed, *rank_and_world)
        return TrainBatches(stream, self._read)

    def val_dataloader(self) -> "TestBatches":
        return self._test_batches("val" if "val" in self.photos else "test")

    def test_dataloader(self) -> "TestBatches":
        return self._test_batches("test")

    def _test_batches(self, split: str) -> "TestBatches":
        photos, (rank, world) = self.photos[split], self._rank_and_world()
        check_enough_images(len(photos), world)
        return TestBatches(photos.center, _batches(range(rank, len(photos), world)), self._read)

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], _: int) -> Batch:
        """Normalizes a batch on its device, and adds the color shifts if it has them: float32 [n, 3, 224, 224]."""
        images, labels, *shifts = batch
        self.mean = self.mean.to(images.device)
        self.std = None if self.std is None else self.std.to(images.device)
        images = normalize(images, self.mean, self.std)
        for shift in shifts:
            rows = shift[:, None, None].repeat(1, 1, SIZE, 1)
            images += rows if self.std is None else rows / self.std
        return nchw(images.flip(-1) if self.bgr else images), labels

    def _read(self, make: Callable[[Any], Made], items: Sequence[Any]) -> Iterator[tuple[Tensor, ...]]:
        """Batches made by worker processes, telling of each photo that is skipped, once."""
        workers, pin = self.num_workers, False
        if workers is None:
            workers = max(1, cpu_count() // (self.trainer.num_devices if self.trainer else 1))
        if self.trainer:
            pin = self.trainer.strategy.root_device.type == "cuda"
        for batch, skipped in prefetch(make, items, workers, pin):
            for line in skipped:
                if line not in self.skipped:
                    self.skipped.add(line)
                    tqdm.write(f"{line}: skipped, {len(self.skipped)} so far", file=sys.stderr)
            yield batch

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _batches(indices: range) -> list[range]:
    return [indices[first : first + TEST_BATCH] for first in range(0, len(indices), TEST_BATCH)]


def fingerprint(train: Files | Shards, test: Files | Shards, mean: Tensor) -> str:
    """A hash of the names and labels of all photos and of the mean, but not of 150 GB of pixels."""
    digest = hashlib.sha256(mean.numpy())
    for source in (train, test):
        digest.update(b"\0".join(source.names.tolist()))
        digest.update(source.labels)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m src.data.imagenet", description=COMMAND)
    parser.add_argument("root", help="holds train/ and val/, or shards of them")
    parser.add_argument("--on-bad", choices=CHOICES["on_bad"], default="stop", help="photos that cannot be decoded")
    options = parser.parse_args()
    ImageNet(options.root, 0, "scale", [256, 480], 0, "pixel", options.on_bad, None, seed=0).prepare_data()


if __name__ == "__main__":
    from src.cli import run_entry_point as entry

    entry(main)
