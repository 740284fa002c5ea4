"""A data set small enough to lie in memory: one uint8 tensor of images on the training device."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from src.data.sampler import Batch, Stream, check_batch_divides, check_enough_images, train_val_split
from src.data.transforms import CropParams, crop_and_flip, draw, normalize

TEST_BATCH = 500


class ImagesInMemory(LightningDataModule):
    """Splits, normalization and augmentation of one data set; a subclass reads it.

    Args:
        val_images: training images held out by seed for validation (45k/5k in Sec. 4.2); 0 trains on all.
        normalization: "pixel" subtracts each pixel's mean over the training images and divides by nothing, as
            the paper; "channel" subtracts the mean and divides by the deviation of each channel.
        padding, flip: of the augmentation; see `augment.draw`.
        seed, batch_size, iterations: of the training stream; testing needs the seed alone.
    """

    protocols = ("center",)

    def __init__(
        self,
        val_images: int,
        normalization: str,
        padding: int,
        flip: bool,
        seed: int,
        batch_size: int | None = None,
        iterations: int | None = None,
    ) -> None:
        super().__init__()
        if normalization not in ("pixel", "channel"):
            raise ValueError(f"data.normalization={normalization} is not one of pixel and channel")
        self.val_images, self.normalization = val_images, normalization
        self.padding, self.flip = padding, flip
        self.seed, self.batch_size, self.iterations = seed, batch_size, iterations
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Training images uint8 [N, H, W, 3] and labels [N], then test images and labels."""

    def setup(self, stage: str | None = None) -> None:
        """Reads and splits the images, once.

        Raises ValueError if the validation set takes them all, or the batch does not divide among the devices.
        """
        if self.splits:
            return
        check_batch_divides(self.batch_size, self._rank_and_world()[1])
        images, labels, test_images, test_labels = self.read()
        train, val = train_val_split(len(images), self.val_images, self.seed)
        self.image_shape = (3, *images.shape[1:3])
        self.fingerprint = fingerprint(images, labels, test_images, test_labels)
        train_images = images[train]
        self.train_images = len(train_images)
        self.mean, self.std = torch.from_numpy(train_images.mean(0)).float(), None
        if self.normalization == "channel":
            self.mean = self.mean.double().mean((0, 1)).float()
            self.std = torch.tensor([train_images[..., c].std() for c in range(3)]).float()
        splits = {"train": (train_images, labels[train]), "test": (test_images, test_labels)}
        if self.val_images:
            splits["val"] = images[val], labels[val]
        self.splits = {name: (torch.from_numpy(x), torch.from_numpy(y)) for name, (x, y) in splits.items()}

    def train_dataloader(self) -> Stream:
        """The training stream, from its first iteration."""
        images, labels, mean, std = self._on_device("train")

        def make(indices: Tensor, rng: np.random.Generator, share: slice) -> Batch:
            choices = torch.stack([indices, *draw(rng, len(indices), self.padding, self.flip)])[:, share]
            indices, top, left, flip = choices.to(images.device, non_blocking=True)  # in one copy
            batch = normalize(images.index_select(0, indices), mean, std)
            batch = crop_and_flip(batch, CropParams(top, left, flip.bool()), self.padding)
            return nchw(batch), labels.index_select(0, indices)

        return Stream(make, len(images), self.batch_size, self.iterations, self.seed, *self._rank_and_world())

    def val_dataloader(self) -> "Batches":
        return self._batches("val" if "val" in self.splits else "test")

    def test_dataloader(self) -> "Batches":
        return self._batches("test")

    def transfer_batch_to_device(self, batch: Batch, *_: object) -> Batch:
        return batch

    def _batches(self, split: str) -> "Batches":
        return Batches(*self._on_device(split), *self._rank_and_world())

    def _on_device(self, split: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        std = None if self.std is None else self.std.to(device)
        return *(x.to(device) for x in (*self.splits[split], self.mean)), std

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def fingerprint(*arrays: np.ndarray) -> str:
    """A hash of all that the arrays hold, in 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


class Batches:
    """A split for testing: each image once over all processes, in order, not augmented."""

    def __init__(
        self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor | None, rank: int = 0, world: int = 1
    ) -> None:
        check_enough_images(len(images), world)
        self.images, self.labels, self.mean, self.std = images[rank::world], labels[rank::world], mean, std

    def __len__(self) -> int:
        return -(-len(self.images) // TEST_BATCH)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in zip(self.images.split(TEST_BATCH), self.labels.split(TEST_BATCH), strict=True):
            yield nchw(normalize(images, self.mean, self.std)), labels


def nchw(images: Tensor) -> Tensor:
    """[N, H, W, C] seen as [N, C, H, W]: the same memory, which PyTorch then calls channels-last."""
    return images.permute(0, 3, 1, 2)
