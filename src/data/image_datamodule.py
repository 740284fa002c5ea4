"""What every dataset offers to training, evaluation and export."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from pytorch_lightning import LightningDataModule
from torch import Tensor

from src.data.sampler import Batch, TrainingStream, rank_and_world_size


class ImageDataModule(LightningDataModule):
    """A dataset of images with a training stream.

    Args:
        val_images: Training images held out for validation, chosen by the seed; 0 trains on all.
        seed: Seed of the run.
        batch_size: Images per iteration over all processes; needed for training only.
        iterations: Length of the run; needed for training only.

    Attributes:
        protocols: The evaluation protocols that make sense for its images.
        image_shape: [3, height, width] of the images that the net is given.
        train_images: Number of images that it is trained on, known after `setup`.
        mean, std: What images are normalized with, in 0 to 255 and in the order R, G, B.
        fingerprint: A hash that tells whether a checkpoint was trained on the same images.
    """

    protocols: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train_images: int
    mean: Tensor
    std: Tensor | None
    fingerprint: str

    def __init__(
        self,
        val_images: int,
        seed: int,
        batch_size: int | None = None,
        iterations: int | None = None,
    ) -> None:
        super().__init__()
        self.val_images, self.seed = val_images, seed
        self.batch_size, self.iterations = batch_size, iterations

    @property
    @abstractmethod
    def test_labels(self) -> np.ndarray:
        """The labels of all test images in order, known after `setup`."""

    def check_protocol(self, protocol: str) -> None:
        """Check that an evaluation protocol applies to the images.

        Raises:
            ValueError: It does not.
        """
        if protocol not in self.protocols:
            raise ValueError(
                f"protocol={protocol} does not apply to these images: "
                f"set protocol={' or '.join(self.protocols)}"
            )

    @abstractmethod
    def eval_loader(self, split: str) -> Any:
        """Return an iterable over this process's part of a split, `train`, `val` or `test`."""

    def val_dataloader(self) -> Any:
        """Return the held-out images, or the test images if none are held out."""
        return self.eval_loader("val" if self.val_images else "test")

    def test_dataloader(self) -> Any:
        """Return the test images."""
        return self.eval_loader("test")

    def augment(self, *batch: Tensor) -> Batch:
        """Return images float32 [N, 3, H, W] and labels [N] of a training batch on its device.

        The LightningModule calls this as part of its training step, so that a captured step
        contains it. By default the batch is complete already.
        """
        images, labels = batch
        return images, labels

    def training_stream(
        self, make_batch: Callable[[Tensor, np.random.Generator, slice], Any]
    ) -> TrainingStream:
        """Return the training stream of this process, from its first iteration."""
        # Evaluation and export build the dataset without a recipe, so without these two.
        assert self.batch_size is not None, "made for evaluation"
        assert self.iterations is not None, "made for evaluation"
        return TrainingStream(
            make_batch,
            self.train_images,
            self.batch_size,
            self.iterations,
            self.seed,
            *rank_and_world_size(self.trainer),
        )
