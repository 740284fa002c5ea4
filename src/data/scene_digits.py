"""Scenes of one digit as images to classify, for the classes that a localizer is given."""

from typing import Any

import numpy as np

from src.data.in_memory import ImagesInMemory
from src.data.scenes import Scenes


class SceneDigits(ImagesInMemory):
    """The images of `Scenes` of one digit each, whose class is that of the digit.

    Args:
        train_scenes: Number of training scenes, held-out ones included.
        test_scenes: Number of test scenes.
        size: Side length of a scene in pixels.
        seed: Seed of the run, on which the scenes do not depend.
        **common: Arguments of `ImagesInMemory`.
    """

    def __init__(
        self, train_scenes: int, test_scenes: int, size: int, seed: int, **common: Any
    ) -> None:
        super().__init__(seed=seed, **common)
        self.scenes = Scenes(
            train_scenes,
            test_scenes,
            size,
            max_objects=1,
            classes=[str(digit) for digit in range(10)],
            tasks=["localization"],
            min_size=size,
            max_size=size,
            flip=False,
            val_images=0,
            seed=seed,
        )

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return training images and labels, then test images and labels."""
        train, test = self.scenes.sizes
        return *self._split("train", train), *self._split("test", test)

    def _split(self, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        examples = [self.scenes.read(split, index) for index in range(count)]
        images = [example.image.movedim(0, -1).numpy() for example in examples]
        # Their labels count the background as the first class.
        labels = [int(example.target["labels"][0]) - 1 for example in examples]
        return np.stack(images), np.array(labels)
