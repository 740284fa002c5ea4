"""scikit-learn's 1,797 handwritten digits of 8x8 pixels: real images that come with the installation."""

import numpy as np

from src.data.in_memory import ImagesInMemory


class Digits(ImagesInMemory):
    """The digits as 3-channel images of 0 .. 240. `test_images` of them, the same ones always, are for testing."""

    def __init__(self, test_images: int, **of_every_data_set: object) -> None:
        super().__init__(**of_every_data_set)
        self.test_images = test_images

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (15 * digits.images).astype(np.uint8)[..., None].repeat(3, axis=3)
        order = np.random.default_rng(0).permutation(len(images))
        test, train = order[: self.test_images], order[self.test_images :]
        labels = digits.target.astype(np.int64)
        return images[train], labels[train], images[test], labels[test]
