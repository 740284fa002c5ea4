"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images, 32x32 pixels, 10 classes."""

import numpy as np
from torchvision import datasets

from src.data.torchvision_dataset import TorchvisionDataset


class CIFAR10(TorchvisionDataset):
    """The official Python batches in `root`/cifar-10-batches-py, checked by MD5."""

    title = "CIFAR-10"
    dataset = datasets.CIFAR10
    folder = datasets.CIFAR10.base_folder

    def files(self) -> list[tuple[str, str | None]]:
        """Return the names of the batches and their MD5s."""
        meta = self.dataset.meta["filename"], self.dataset.meta["md5"]
        return [*self.dataset.train_list, *self.dataset.test_list, meta]

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return training images and labels, then test images and labels."""
        train, test = (self.dataset(self.root, train=train) for train in (True, False))
        # torchvision has the labels as lists.
        return train.data, np.array(train.targets), test.data, np.array(test.targets)
