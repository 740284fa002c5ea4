"""ImageNet with boxes (ILSVRC's localization task): each image has an XML file in VOC's format.

    ROOT/train/<wnid>/NAME.JPEG and NAME.xml    images without an XML file are left out
    ROOT/val/[<wnid>/]NAME.JPEG and NAME.xml    every image has one

The XML files may also be below a directory of their own, in the same subdirectories.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.data.annotated_images import read_example, tidy
from src.data.examples import Example
from src.data.image_folder import subfolders
from src.data.object_data import ObjectData
from src.data.transforms import CROP_SIZE
from src.data.voc import SUFFIXES, read_annotation


class ImageNetLoc(ObjectData):
    """Images of one class each, with the boxes of its objects. The names of all are listed at once.

    Args:
        root: The directory that holds `train` and `val`.
        annotations: The directory that holds the XML files of `train` and `val`; None: `root`.
        classes: The wnids; None for the names of the directories in `train`.
        **common: Arguments of `ObjectData`.
    """

    image_shape = (3, CROP_SIZE, CROP_SIZE)

    def __init__(
        self, root: str, annotations: str | None, classes: list[str] | None, **common: Any
    ) -> None:
        self.root, self.annotations = Path(root), Path(annotations or root)
        train = self.root / "train"
        if classes is None:
            if not train.is_dir():
                raise FileNotFoundError(
                    f"there is no directory {train.absolute()}: name with data.root= what holds "
                    "train/<wnid>/*.JPEG, and with data.annotations= what holds the XML files"
                )
            classes = subfolders(train)
        super().__init__(classes=classes, **common)
        self.label_of = {wnid: label for label, wnid in enumerate(classes, start=1)}
        self.images = {"train": self._list("train"), "test": self._list("val")}

    def _list(self, folder: str) -> list[str]:
        """Return the images of a split that have an XML file, as paths below the root.

        Raises:
            FileNotFoundError: There are none, or no XML file of a test image.
        """
        images = relative_files(self.root, folder, SUFFIXES)
        if not images:
            raise FileNotFoundError(f"there are no images in {self.root / folder}")
        described = {
            name.rpartition(".")[0] for name in relative_files(self.annotations, folder, (".xml",))
        }
        with_boxes = [name for name in images if name.rpartition(".")[0] in described]
        missing = len(images) - len(with_boxes)
        if not with_boxes or (missing and folder == "val"):
            raise FileNotFoundError(
                f"{missing} of {len(images)} images in {self.root / folder} have no XML file with "
                f"their boxes below {self.annotations / folder}: set data.annotations=DIRECTORY"
            )
        return with_boxes

    @property
    def sizes(self) -> tuple[int, int]:
        """The number of training and of test images."""
        return len(self.images["train"]), len(self.images["test"])

    def content(self) -> Iterator[bytes]:
        """Yield the names of the images; to read all boxes would take minutes."""
        yield repr(self.classes).encode()
        for names in self.images.values():
            yield "\n".join(names).encode()

    def read(self, split: str, index: int) -> Example:
        """Return an image with its objects.

        Raises:
            ValueError: The image or its XML file cannot be read, or no box in it has an area.
        """
        name = self.images[split][index]
        xml = (self.annotations / name).with_suffix(".xml")
        annotation = tidy(read_annotation(xml, self.root / name, index, self.label_of), [])
        if not len(annotation.labels):
            raise ValueError(f"{xml} has no box with an area: remove this file and the image")
        return read_example(annotation)


def relative_files(root: Path, folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return the files in a directory and those below it, sorted, as paths below the root.

    A subset may consist of links to the directories of some classes.
    """
    return sorted(
        os.path.relpath(os.path.join(parent, name), root)
        for parent, _, names in os.walk(root / folder, followlinks=True)
        for name in names
        if name.endswith(suffixes)
    )
