"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images, 32x32 pixels, 10 classes."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from src.data.in_memory import ImagesInMemory


class CIFAR10(ImagesInMemory):
    """The official Python batches in `root`/cifar-10-batches-py, checked by MD5.

    Args:
        root: Directory that holds cifar-10-batches-py.
        download: Download the files if they are missing or damaged.
        **common: Arguments of `ImagesInMemory`.
    """

    def __init__(self, root: str, download: bool, **common: Any) -> None:
        super().__init__(**common)
        self.root, self.download = root, download

    def prepare_data(self) -> None:
        """Check the files and download them if necessary.

        Raises:
            FileNotFoundError: If files are missing or damaged and cannot be downloaded.
        """
        folder = Path(self.root) / datasets.CIFAR10.base_folder
        meta = datasets.CIFAR10.meta["filename"], datasets.CIFAR10.meta["md5"]
        files = [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list, meta]
        # torchvision's own check says only that something is wrong, not which file.
        wrong = [name for name, md5 in files if not check_integrity(str(folder / name), md5)]
        if not wrong:
            return

        problem = (
            f"CIFAR-10 is incomplete in {folder.absolute()} ({', '.join(wrong)} missing or damaged)"
        )
        remedy = "put the official Python batches there or set data.root= to their parent folder"
        if not self.download:
            raise FileNotFoundError(f"{problem}: {remedy}, or set data.download=true")
        try:
            datasets.CIFAR10(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{problem} and could not be downloaded ({error}): {remedy}"
            ) from error

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return training images and labels, then test images and labels."""
        train, test = (datasets.CIFAR10(self.root, train=train) for train in (True, False))
        # torchvision has the labels as lists.
        return train.data, np.array(train.targets), test.data, np.array(test.targets)
