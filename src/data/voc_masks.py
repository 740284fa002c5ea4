"""Images with a mask each, in the directories of PASCAL VOC's segmentation task."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.data.examples import IGNORED, Example, make_target
from src.data.image_reader import read_image
from src.data.object_data import ObjectData

IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
FILES = {"train": "train.txt", "test": "val.txt"}  # as in VOC, whose test masks are not public
INDEX_MODES = ("P", "L", "1")  # Pillow's, of images whose pixels are one number: the class


class VocMasks(ObjectData):
    """Segmentation data below one directory.

    `JPEGImages/NAME.*` are the images and `SegmentationClass/NAME.png` the masks: palette or gray
    images of 0 for background, 1, 2, ... for the classes and 255 for pixels that do not count.
    `ImageSets/Segmentation/train.txt` and `val.txt` list the names of training and test images.

    Args:
        root: The directory.
        source: Where the data come from, for the message if they are missing.
        **common: Arguments of `ObjectData`.
    """

    def __init__(self, root: str, source: str, **common: Any) -> None:
        super().__init__(min_size=0, max_size=0, **common)  # sizes for detectors, which need boxes
        self.root, self.source = Path(root), source

    def prepare_data(self) -> None:
        """Check that the directory has VOC's layout.

        Raises:
            FileNotFoundError: A list or directory is missing.
        """
        parts = [IMAGES, MASKS, *(f"{LISTS}/{file}" for file in FILES.values())]
        missing = [part for part in parts if not (self.root / part).exists()]
        if missing:
            raise FileNotFoundError(
                f"data.root={self.root} lacks {', '.join(missing)}: it needs the layout of PASCAL "
                f"VOC's segmentation (src/data/README.md); the source is {self.source}"
            )

    def setup(self, stage: str | None = None) -> None:
        """Split the images, once, after all files have been read and checked.

        Raises:
            FileNotFoundError: An image or its mask is missing.
            ValueError: One cannot be read, or does not fit; or as in `ObjectData`.
        """
        super().setup(stage)
        self.image_shape = tuple(self.example("test", 0).image.shape)  # type: ignore[assignment]

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """The names of the images of `train` and `test`."""
        names = {}
        for split, file in FILES.items():
            path = self.root / LISTS / file
            names[split] = path.read_text().split()
            if not names[split]:
                raise ValueError(f"{path} lists no images")
        return names

    @cached_property
    def images(self) -> dict[str, Path]:
        """The files of the images, of any format, by name."""
        return {path.stem: path for path in sorted((self.root / IMAGES).iterdir())}

    @property
    def sizes(self) -> tuple[int, int]:
        """The number of training images, held-out ones included, and of test images."""
        return len(self.names["train"]), len(self.names["test"])

    def content(self) -> Iterator[bytes]:
        """Yield the pixels of all images and masks, which checks them."""
        for split, names in self.names.items():
            yield f"{split} {len(names)}".encode()
            found: set[int] = set()
            for index in range(len(names)):
                image, target = self.read(split, index)
                found.update(target["mask"].unique().tolist())
                yield image.numpy().tobytes()
                yield target["mask"].numpy().tobytes()
            if split == "train" and not found - {0, IGNORED}:
                raise ValueError(
                    f"no training mask in {self.root / MASKS} has a pixel of a class: 1 stands for "
                    f"the first class, and {IGNORED} for pixels that count for none"
                )

    def read(self, split: str, index: int) -> Example:
        """Return an image with its mask, and without boxes.

        Raises:
            FileNotFoundError: There is no such image or mask.
            ValueError: One cannot be read, or the mask has another size or unknown classes.
        """
        name = self.names[split][index]
        if name not in self.images:
            list_file = self.root / LISTS / FILES[split]
            raise FileNotFoundError(
                f"{list_file} lists {name}, but there is no {self.root / IMAGES / name}.*"
            )
        path = self.images[name]
        image = read_image(path)
        mask = read_mask(self.root / MASKS / f"{name}.png", len(self.classes))
        if mask.shape != image.shape[1:]:
            sizes = " and ".join(f"{x.shape[-1]}x{x.shape[-2]}" for x in (mask, image))
            raise ValueError(f"{self.root / MASKS / name}.png and {path} differ in size: {sizes}")
        return Example(image, make_target(index, [], [], mask=mask))


def read_mask(path: Path, num_classes: int) -> Tensor:
    """Return the class of each pixel, uint8 [H, W].

    Args:
        path: A palette or gray image.
        num_classes: Number of classes, background not counted.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or is not a mask of these classes.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no mask {path}")
    try:
        with Image.open(path) as file:
            mode, classes = file.mode, np.array(file, dtype=np.uint8)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others
        raise ValueError(f"the mask {path} cannot be decoded ({error})") from error
    if mode not in INDEX_MODES:
        raise ValueError(f"the mask {path} has colors ({mode}): it needs a class for each pixel")
    foreign = [c for c in np.unique(classes).tolist() if c > num_classes and c != IGNORED]
    if foreign:
        raise ValueError(
            f"the mask {path} has class {foreign[0]}, but data.classes has {num_classes}: "
            f"masks are of 0 to {num_classes}, and {IGNORED} where no class counts"
        )
    return torch.from_numpy(classes)
