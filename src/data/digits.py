"""scikit-learn's 1,797 handwritten digits of 8x8 pixels: real images that need no download."""

from typing import Any

import numpy as np

from src.data.in_memory import ImagesInMemory


class Digits(ImagesInMemory):
    """The digits as images of three equal channels, in 0 .. 240.

    Args:
        test_images: Size of the test set, which does not depend on the seed of the run.
        **common: Arguments of `ImagesInMemory`.
    """

    def __init__(self, test_images: int, **common: Any) -> None:
        super().__init__(**common)
        self.test_images = test_images

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return training images and labels, then test images and labels.

        Raises:
            ValueError: No image is left for training, or none for the test set.
        """
        from sklearn.datasets import load_digits  # here, as importing scikit-learn takes a second

        digits = load_digits()
        if not 0 < self.test_images < len(digits.images):
            raise ValueError(
                f"data.test_images={self.test_images} must be from 1 to {len(digits.images) - 1}"
            )
        # Values are 0 .. 16: times 15 they fit into uint8.
        images = (15 * digits.images).astype(np.uint8)[..., None].repeat(3, axis=3)
        labels = digits.target.astype(np.int64)
        order = np.random.default_rng(0).permutation(len(images))
        test, train = order[: self.test_images], order[self.test_images :]
        return images[train], labels[train], images[test], labels[test]
