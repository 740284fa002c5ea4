"""Images with boxes in COCO's format: a JSON file of annotations and a directory of images."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.data.annotated_images import AnnotatedImages, Annotation, check_file


class COCO(AnnotatedImages):
    """COCO, and whatever has its format.

    A split is the path of a JSON file and that of the directory of its images, below the root.
    The classes are its categories in the order of their ids, which need not be 1, 2, ...
    """

    def __init__(self, **common: Any) -> None:
        super().__init__(classes=[], **common)

    def read_split(self, split: Sequence[str]) -> Iterator[Annotation]:
        """Read the annotations of a JSON file."""
        if len(split) != 2:
            raise ValueError("data.train and data.test must be [JSON FILE, DIRECTORY OF IMAGES]")
        file, folder = (self.root / part for part in split)
        check_file(file, "set data.train and data.test to [JSON FILE, DIRECTORY OF IMAGES]")
        try:
            content = json.loads(file.read_text())
            images = content["images"]
            names = {entry["id"]: entry["name"] for entry in content["categories"]}
            objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
            for entry in content["annotations"]:
                objects[entry["image_id"]].append(entry)
            self._set_classes(dict(sorted(names.items())), file)
            for entry in images:  # of an image without objects there is no annotation
                yield self._annotation(folder, entry, objects[entry["id"]], file)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is not in COCO's format ({error!r})") from error

    def _set_classes(self, names: dict[int, str], file: Path) -> None:
        """Set the classes to the names of the categories by their ids."""
        if self.classes and (self.classes, self.category_ids) != ([*names.values()], [*names]):
            raise ValueError(f"{file} has other categories than the training images")
        self.classes, self.category_ids = [*names.values()], [*names]

    def _annotation(
        self, folder: Path, image: dict[str, Any], objects: Sequence[dict[str, Any]], file: Path
    ) -> Annotation:
        label_of = {category: label for label, category in enumerate(self.category_ids, start=1)}
        unknown = [o["category_id"] for o in objects if o["category_id"] not in label_of]
        if unknown:
            raise ValueError(
                f"{file}: image {image['id']} has an object of category {unknown[0]}, which is not "
                "one of its categories"
            )
        boxes = np.array([o["bbox"] for o in objects], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # x, y, width, height
        return Annotation(
            check_file(folder / image["file_name"], f"{file} names it"),
            image["id"],
            (image["width"], image["height"]),
            boxes,
            np.array([label_of[o["category_id"]] for o in objects], np.int64),
            np.array([o.get("iscrowd", 0) for o in objects], np.int64),
            # That of the object's outline, by which COCO tells small objects from large ones.
            np.array([o.get("area", o["bbox"][2] * o["bbox"][3]) for o in objects], np.float32),
        )
