"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 pixels in 10 classes."""

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10 as Files
from torchvision.datasets.utils import check_integrity

from src.data.in_memory import ImagesInMemory


class CIFAR10(ImagesInMemory):
    """The official Python batches under `root`, checked by MD5; `download` fetches them if they are not there.

    Raises FileNotFoundError if the files are missing or damaged and cannot be had.
    """

    def __init__(self, root: str, download: bool, **of_every_data_set: object) -> None:
        super().__init__(**of_every_data_set)
        self.root, self.download = root, download

    def prepare_data(self) -> None:
        folder = Path(self.root) / Files.base_folder
        files = [*Files.train_list, *Files.test_list, (Files.meta["filename"], Files.meta["md5"])]
        wrong = [name for name, md5 in files if not check_integrity(str(folder / name), md5)]
        if not wrong:
            return
        problem = f"CIFAR-10 is not whole in {folder.absolute()} ({', '.join(wrong)} missing or damaged)"
        remedy = "put the official Python batches there or name their parent folder with data.root="
        if not self.download:
            raise FileNotFoundError(f"{problem}: {remedy}, or let data.download=true fetch them")
        try:
            Files(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(f"{problem} and could not be downloaded ({error}): {remedy}") from error

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        train, test = Files(self.root, train=True), Files(self.root, train=False)
        return train.data, np.array(train.targets), test.data, np.array(test.targets)
