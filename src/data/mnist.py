"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017), which has the same format.

Both have 60,000 training and 10,000 test images of 28x28 gray pixels in 10 classes.
"""

import numpy as np
from torchvision import datasets

from src.data.torchvision_dataset import TorchvisionDataset


class MNIST(TorchvisionDataset):
    """The official files in `root`/MNIST/raw, as images of three equal channels."""

    title = "MNIST"
    dataset = datasets.MNIST
    folder = "MNIST/raw"

    def files(self) -> list[tuple[str, str | None]]:
        """Return the names of the unpacked files; torchvision has MD5s of the archives only."""
        return [(name.removesuffix(".gz"), None) for name, _ in self.dataset.resources]

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return training images and labels, then test images and labels.

        Raises:
            ValueError: If a file is damaged.
        """
        arrays = []
        for train in (True, False):
            try:
                split = self.dataset(self.root, train=train)
            # torchvision checks the length and the header by assertions and by torch's errors.
            except (AssertionError, RuntimeError, ValueError, IndexError) as error:
                raise ValueError(
                    f"{self.title} is damaged in {self.root}/{self.folder}: remove that folder, "
                    "then put the official files there or set data.download=true"
                ) from error
            # The nets take three channels, as for all data, so that they are the paper's.
            arrays += [split.data.numpy()[..., None].repeat(3, axis=3), split.targets.numpy()]
        return arrays[0], arrays[1], arrays[2], arrays[3]


class FashionMNIST(MNIST):
    """The official files in `root`/FashionMNIST/raw, as images of three equal channels."""

    title = "Fashion-MNIST"
    dataset = datasets.FashionMNIST
    folder = "FashionMNIST/raw"
