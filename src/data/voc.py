"""Images with boxes in the layout of PASCAL VOC: JPEGImages, Annotations and ImageSets/Main."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from src.data.annotated_images import AnnotatedImages, Annotation, check_file

SIDES = ("xmin", "ymin", "xmax", "ymax")
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")  # VOC's is the first


class VOC(AnnotatedImages):
    """PASCAL VOC, and whatever has its layout.

    A split is some of the lists ImageSets/Main/NAME.txt, as NAME, or DIRECTORY/NAME for a layout
    in a directory below the root. Objects that are `difficult` are marked as `iscrowd`.
    """

    def read_split(self, split: Sequence[str]) -> Iterator[Annotation]:
        """Read the annotations of the images in some lists."""
        label_of = {name: label for label, name in enumerate(self.classes, start=1)}
        names = [(self.root / Path(part).parent, n) for part in split for n in self._names(part)]
        for image_id, (folder, name) in enumerate(names):
            image = find_image(folder / "JPEGImages", name)
            xml = check_file(folder / "Annotations" / f"{name}.xml", f"it is to describe {image}")
            yield read_annotation(xml, image, image_id, label_of)

    def _names(self, part: str) -> list[str]:
        """Return the names of the images in a list."""
        folder = self.root / Path(part).parent / "ImageSets" / "Main"
        path = check_file(
            folder / f"{Path(part).name}.txt", "set data.train and data.test to lists of images"
        )
        # A list for one class has a second column.
        names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        if not names:
            raise ValueError(f"{path} names no image")
        return names


def find_image(folder: Path, name: str) -> Path:
    """Return the file of an image.

    Raises:
        FileNotFoundError: There is none.
    """
    for suffix in SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise FileNotFoundError(f"there is no image {folder / name}.jpg, .jpeg or .png")


def read_annotation(xml: Path, image: Path, image_id: int, label_of: dict[str, int]) -> Annotation:
    """Read what an XML file says of an image.

    Raises:
        ValueError: The XML file or the image cannot be read, or a class is unknown.
    """
    names, corners, difficult = [], [], []
    try:
        for entry in ElementTree.parse(xml).getroot().findall("object"):
            names.append(entry.findtext("name", "").strip())
            corners.append([float(entry.findtext(f"bndbox/{side}", "missing")) for side in SIDES])
            difficult.append(int(entry.findtext("difficult") or 0))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{xml} is not an annotation in VOC's format ({error})") from error
    unknown = [name for name in names if name not in label_of]
    if unknown:
        raise ValueError(f"{xml}: {unknown[0]} is not one of data.classes=[{','.join(label_of)}]")
    try:
        with Image.open(image) as opened:  # reads no more than its size, which many XML files lack
            size = opened.size
    except OSError as error:
        raise ValueError(f"{image} is not an image") from error

    boxes = np.array(corners, float).reshape(-1, 4)
    # A single point, which some files have, is not an object; the next line would give it an area.
    boxes[(boxes[:, :2] >= boxes[:, 2:]).any(1)] = 0
    # In VOC pixels are counted from 1, and a box includes its last one.
    boxes[:, :2] -= 1
    return Annotation(
        image,
        image_id,
        size,
        boxes,
        np.array([label_of[name] for name in names], np.int64),
        np.array(difficult, np.int64),
    )
