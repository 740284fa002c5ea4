"""Scenes: real handwritten digits, enlarged and colored, on noise. They need no download.

Scene i of a split is a pure function of i, the same in every run. The digits of training and test
scenes are disjoint.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from src.data.examples import Example, make_target
from src.data.object_data import ObjectData
from src.data.sampler import rng_for

TEST_DIGITS = 500  # of 1,797, never in a training scene
ENLARGEMENT = (1.25, 3.0)  # of the 8x8 digits
NOISE = (90, 30)  # mean and standard deviation of the background, of 0 to 255
INK = 0.4  # where a digit is at least so dark, of 0 to 1, its pixels belong to it
ATTEMPTS = 20  # at finding a place for an object that overlaps no other


class Scenes(ObjectData):
    """Scenes of one digit or several, which do not overlap, with tight boxes and a mask.

    Args:
        train_scenes: Number of training scenes, held-out ones included.
        test_scenes: Number of test scenes.
        size: Side length of a scene in pixels.
        max_objects: Of a scene; each has one at least.
        **common: Arguments of `ObjectData`.
    """

    def __init__(
        self, train_scenes: int, test_scenes: int, size: int, max_objects: int = 5, **common: Any
    ) -> None:
        super().__init__(**common)
        self.sizes_of_splits, self.size = (train_scenes, test_scenes), size
        self.max_objects = max_objects
        self.image_shape = (3, size, size)

    @property
    def sizes(self) -> tuple[int, int]:
        """The number of training and of test scenes."""
        return self.sizes_of_splits

    @cached_property
    def digits(self) -> tuple[np.ndarray, np.ndarray]:
        """The digits float32 [1797, 8, 8], from 0 to 1, and what they are; test digits first."""
        from sklearn.datasets import load_digits  # here, as importing scikit-learn takes a second

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.images))
        return (digits.images[order] / 16).astype(np.float32), digits.target[order]

    def content(self) -> Iterator[bytes]:
        """Yield the digits and everything that scenes are made with."""
        for array in self.digits:
            yield np.ascontiguousarray(array).tobytes()
        yield repr((self.sizes, self.size, ENLARGEMENT, NOISE, INK, self.max_objects)).encode()

    def read(self, split: str, index: int) -> Example:
        """Return a scene."""
        rng = rng_for(split == "test", index)
        images, labels = self.digits
        own = slice(TEST_DIGITS) if split == "test" else slice(TEST_DIGITS, None)
        canvas = rng.normal(*NOISE, (self.size, self.size, 3))
        mask = np.zeros((self.size, self.size), np.uint8)
        boxes: list[list[int]] = []
        classes: list[int] = []
        for _ in range(rng.integers(1, self.max_objects + 1)):
            chosen = rng.integers(len(labels[own]))
            ink = enlarged(images[own][chosen], rng.uniform(*ENLARGEMENT))
            height, width = ink.shape
            place = free_place(rng, self.size, height, width, boxes)
            if place is None:
                continue
            (top, left), covered = place, ink >= INK
            bottom, right = top + height, left + width
            color = rng.uniform(0, 255, 3)
            color[rng.integers(3)] = 255  # bright enough to stand out
            region, opacity = canvas[top:bottom, left:right], ink[..., None] * covered[..., None]
            region += opacity * (color - region)
            label = int(labels[own][chosen]) + 1
            mask[top:bottom, left:right][covered] = label
            boxes.append([left, top, right, bottom])
            classes.append(label)
        image = torch.from_numpy(canvas.clip(0, 255).astype(np.uint8)).movedim(-1, 0).contiguous()
        return Example(image, make_target(index, boxes, classes, mask=torch.from_numpy(mask)))


def enlarged(digit: np.ndarray, factor: float) -> np.ndarray:
    """Return a digit [h, w], enlarged and cut to its ink, so that its box is tight."""
    side = round(len(digit) * factor)
    ink = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BILINEAR))
    rows, columns = (np.flatnonzero((ink >= INK).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def free_place(
    rng: np.random.Generator, size: int, height: int, width: int, boxes: list[list[int]]
) -> tuple[int, int] | None:
    """Return top and left of a place a pixel away from all boxes; None if none is found."""
    for _ in range(ATTEMPTS):
        top, left = (int(rng.integers(size - side + 1)) for side in (height, width))
        apart = (
            left + width < x1 or x2 < left or top + height < y1 or y2 < top
            for x1, y1, x2, y2 in boxes
        )
        if all(apart):
            return top, left
    return None
