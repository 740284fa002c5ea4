"""Images in folders: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, or a flat `val/` with a list.

The list of classes is `val.txt`, or the ground truth in ImageNet's devkit, an archive next to val/.
"""

import os
from pathlib import Path

import numpy as np

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LINE_FORMAT = (
    "one line for each image, as ILSVRC2012_val_00000001.JPEG n01751748 "
    "(or 65, its index in the sorted wnids)"
)


class ImageFiles:
    """The images of a split as files.

    Args:
        folder: The directory that holds them.
        names: Paths below `folder`, as n01440764/a.JPEG.
        labels: The class of each image.
    """

    def __init__(self, folder: Path, names: list[str], labels: list[int]) -> None:
        self.folder = folder
        # An array of bytes, not a list of strings: reference counts in a list make worker processes
        # copy its memory.
        self.names = np.array([os.fsencode(name) for name in names])
        self.labels = np.array(labels, np.int64)

    def location(self, index: int) -> str:
        """Return the path of an image."""
        return f"{self.folder}/{os.fsdecode(self.names[index])}"

    def read(self, index: int) -> np.ndarray:
        """Return the content of an image file, uint8 [bytes]."""
        return np.fromfile(self.location(index), np.uint8)


def read_folders(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """List the training and validation images below `root`; classes are the sorted wnids of train/.

    Raises:
        FileNotFoundError: If a directory is missing or empty.
        ValueError: If val/ or its list does not match train/.
    """
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise FileNotFoundError(
                f"there is no folder {(root / split).absolute()}: name with data.root= the folder "
                "that holds train/<wnid>/*.JPEG and val/, or shards (*train*.tar and *val*.tar)"
            )

    wnids = _subfolders(root / "train")
    if not wnids:
        raise FileNotFoundError(
            f"{root / 'train'} has no folder in it: it needs one for each class, as n01440764"
        )
    val_wnids = _subfolders(root / "val")
    unknown = sorted(set(val_wnids) - set(wnids))
    if unknown:
        raise ValueError(
            f"{root / 'val'} has {len(unknown)} classes that {root / 'train'} does not have "
            f"({unknown[0]}, ...): use train/ and val/ of the same dataset"
        )

    train = _images_by_class(root / "train", wnids, wnids)
    if val_wnids:
        return train, _images_by_class(root / "val", val_wnids, wnids)
    return train, _images_by_list(root, wnids)


def _subfolders(path: Path) -> list[str]:
    entries = os.scandir(path)
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _files(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith("."))


def _images_by_class(folder: Path, classes: list[str], wnids: list[str]) -> ImageFiles:
    """List the images of some classes, each in a directory of its own."""
    names, labels = [], []
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for wnid in classes:
        files = _files(folder / wnid)
        if not files:
            raise FileNotFoundError(
                f"{folder / wnid} has no image in it: unpack the class again, or remove the folder"
            )
        names += [f"{wnid}/{name}" for name in files]
        labels += [label_of[wnid]] * len(files)
    return ImageFiles(folder, names, labels)


def _images_by_list(root: Path, wnids: list[str]) -> ImageFiles:
    """List the images of a flat val/, with the classes from val.txt or from the devkit."""
    folder, list_path, devkit = root / "val", root / "val.txt", root / DEVKIT
    if list_path.exists():
        lines = list_path.read_text().splitlines()
    elif devkit.exists():
        list_path, lines = devkit, _devkit_lines(devkit)
    else:
        raise FileNotFoundError(
            f"{folder} has no folders of classes: put {DEVKIT} next to it, or {list_path} with "
            f"the classes, {LINE_FORMAT}"
        )
    labels = _parse_lines(lines, list_path, wnids)

    names = _files(folder)
    unlisted, missing = sorted(set(names) - set(labels)), sorted(set(labels) - set(names))
    for differing, what in (
        (unlisted, "not listed in it"),
        (missing, f"listed but not in {folder}"),
    ):
        if differing:
            raise ValueError(
                f"{list_path} does not match the images: {len(differing)} are {what}, the first is "
                f"{differing[0]} ({len(names):,} images, {len(labels):,} lines)"
            )
    if not names:
        raise FileNotFoundError(f"{folder} has no image in it: unpack the validation images there")
    return ImageFiles(folder, names, [labels[name] for name in names])


def _parse_lines(lines: list[str], path: Path, wnids: list[str]) -> dict[str, int]:
    """Return the label of each image that a list names, by its wnid or by its label."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    label_of |= {str(label): label for label in range(len(wnids))}
    labels = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) != 2 or words[1] not in label_of:
            raise ValueError(
                f"line {number} of {path} is {line!r}: expected {LINE_FORMAT}; "
                f"train/ has {len(wnids)} classes, {wnids[0]} .. {wnids[-1]}"
            )
        name, label = words
        if name in labels:
            raise ValueError(f"line {number} of {path} lists {name} a second time")
        labels[name] = label_of[label]
    return labels


def _devkit_lines(devkit: Path) -> list[str]:
    """Return the devkit's ground truth as lines of val.txt."""
    from torchvision.datasets.imagenet import META_FILE, load_meta_file, parse_devkit_archive

    # torchvision maps the devkit's class numbers, which are not in the order of the wnids, and
    # saves the result next to the archive.
    if not (devkit.parent / META_FILE).exists():
        try:
            parse_devkit_archive(devkit.parent)
        except RuntimeError as error:
            raise ValueError(f"{devkit} is incomplete: download it again ({error})") from error
    _, wnids = load_meta_file(devkit.parent)
    return [f"ILSVRC2012_val_{i:08}.JPEG {wnid}" for i, wnid in enumerate(wnids, 1)]
