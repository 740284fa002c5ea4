"""Images in files with boxes around their objects, as annotations of some format tell."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_only

from src.data.examples import Example, make_target
from src.data.image_reader import read_image
from src.data.object_data import ObjectData


class Annotation(NamedTuple):
    """What an annotation says of an image.

    Attributes:
        image: The file of the image.
        image_id: A number of its own for each image of a split.
        size: Width and height of the image.
        boxes: x1, y1, x2, y2 of each object, from the image's upper left corner, float [K, 4].
        labels: The class of each object, from 1 on, int [K].
        ignored: 1 for what counts neither as found nor as missed, int [K].
        areas: Pixels of each object, float [K]; None for those of its box.
    """

    image: Path
    image_id: int
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray | None = None


class AnnotatedImages(ObjectData):
    """Images that are decoded when they are needed; a subclass reads their annotations.

    Args:
        root: The directory that holds everything.
        source: Where to get the data, for the message if `root` is missing.
        train: What `read_split` takes for the training images.
        test: Likewise for the test images.
        **common: Arguments of `ObjectData`.
    """

    def __init__(self, root: str, source: str, train: Any, test: Any, **common: Any) -> None:
        super().__init__(**common)
        self.root, self.source = Path(root), source
        self.splits = train, test
        self.image_shape = (3, self.min_size, self.max_size)

    @abstractmethod
    def read_split(self, split: Any) -> Iterable[Annotation]:
        """Read the annotations of a split.

        Args:
            split: `train` or `test` of the constructor.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file cannot be read, or an object is of an unknown class.
        """

    @cached_property
    def annotations(self) -> tuple[list[Annotation], list[Annotation]]:
        """Those of the training images, held-out ones included, and of the test images."""
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"there is no directory {self.root}: get the data from {self.source}, "
                "or set data.root=DIRECTORY"
            )
        skipped: list[str] = []
        train, test = ([tidy(a, skipped) for a in self.read_split(s)] for s in self.splits)
        if skipped:
            rank_zero_only(print)(
                f"{self.root}: skipped boxes without an area ({len(skipped)}), in "
                f"{', '.join(skipped[:10])}{', ...' if len(skipped) > 10 else ''}",
                flush=True,
            )
        return train, test

    @property
    def sizes(self) -> tuple[int, int]:
        """The number of training and of test images."""
        train, test = self.annotations
        return len(train), len(test)

    def content(self) -> Iterator[bytes]:
        """Yield the annotations; to read all images would take minutes."""
        yield repr(self.classes).encode()
        for split in self.annotations:
            yield f"{len(split)} images".encode()
            for annotation in split:
                yield annotation.image.name.encode()
                for array in annotation[3:]:  # boxes, labels, ignored and areas
                    yield b"" if array is None else np.ascontiguousarray(array).tobytes()

    def read(self, split: str, index: int) -> Example:
        """Return an image with its objects.

        Raises:
            ValueError: The image cannot be decoded, or its annotation is of another size.
        """
        return read_example(self.annotations[split == "test"][index])


def read_example(annotation: Annotation) -> Example:
    """Return an image with its objects, whose boxes are in it and have an area.

    Raises:
        ValueError: The image cannot be decoded, or its annotation is of another size.
    """
    path = annotation.image
    image = read_image(path)
    height, width = image.shape[1:]
    if (width, height) != annotation.size:
        raise ValueError(
            f"{path} has {width}x{height} pixels, but its annotation is of an image of "
            f"{'x'.join(map(str, annotation.size))}"
        )
    others = {"iscrowd": torch.from_numpy(annotation.ignored)}
    if annotation.areas is not None:
        others["area"] = torch.from_numpy(annotation.areas)
    boxes, labels = annotation.boxes.tolist(), annotation.labels.tolist()
    return Example(image, make_target(annotation.image_id, boxes, labels, **others))


def tidy(annotation: Annotation, skipped: list[str]) -> Annotation:
    """Clip the boxes of an annotation to its image, and leave out those without an area.

    Args:
        annotation: Its boxes may be anything.
        skipped: Receives the name of the image for each box that is left out.
    """
    boxes = annotation.boxes.reshape(-1, 4)
    clipped = boxes.clip(0, [*annotation.size] * 2).astype(np.float32)
    kept = (clipped[:, :2] < clipped[:, 2:]).all(1)
    skipped += [annotation.image.name] * int((~kept).sum())
    areas = annotation.areas
    return annotation._replace(
        boxes=clipped[kept],
        labels=annotation.labels[kept],
        ignored=annotation.ignored[kept],
        areas=None if areas is None else areas[kept],
    )


def check_file(path: Path, hint: str) -> Path:
    """Return the path of a file.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: {hint}")
    return path
