"""Images in folders: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, or a flat `val/` with a list.

The list of classes is `val.txt`, or the ground truth in ImageNet's devkit, an archive next to val/.
Without torch, as configs are composed before it is imported, and need the classes of data=images.
"""

import os
from pathlib import Path

import numpy as np

TEST_FOLDERS = ("test", "val")  # of data=images: the first one that exists has the test images
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LINE_FORMAT = (
    "one line for each image, as ILSVRC2012_val_00000001.JPEG n01751748 "
    "(or 65, its index in the sorted wnids)"
)


class ImageFiles:
    """The images of a split as files.

    Args:
        folder: The directory that holds them.
        labels: The class of each image, by its path below `folder`, as n01440764/a.JPEG.
    """

    def __init__(self, folder: Path, labels: dict[str, int]) -> None:
        self.folder = folder
        # An array of bytes, not a list of strings: reference counts in a list make worker processes
        # copy its memory.
        self.names = np.array([os.fsencode(name) for name in labels])
        self.labels = np.array(list(labels.values()), np.int64)

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
    train, val = root / "train", root / "val"
    for folder in (train, val):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {folder.absolute()}: name with data.root= the folder "
                "that holds train/<wnid>/*.JPEG and val/, or shards (*train*.tar and *val*.tar)"
            )

    wnids, val_wnids = subfolders(train), subfolders(val)
    if not wnids:
        raise FileNotFoundError(
            f"{train} has no folder in it: it needs one for each class, as n01440764"
        )
    check_known_classes(val, val_wnids, train, wnids)

    # val/ may lack a class, so its labels are those of train/.
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    labels = labels_by_class(val, val_wnids, label_of) or _labels_by_list(val, label_of)
    return ImageFiles(train, labels_by_class(train, wnids, label_of)), ImageFiles(val, labels)


def check_known_classes(test: Path, test_names: list[str], train: Path, names: list[str]) -> None:
    """Check that a folder of test images has no class that the training images do not have.

    Raises:
        ValueError: It has.
    """
    unknown = sorted(set(test_names) - set(names))
    if unknown:
        raise ValueError(
            f"{test} has {len(unknown)} classes that {train} does not have "
            f"({unknown[0]}, ...): use train/ and {test.name}/ of the same dataset"
        )


def train_folder(root: Path) -> Path:
    """Return the folder of the training images of data=images: train/, or `root` without one."""
    return root / "train" if (root / "train").is_dir() else root


def class_names(root: Path) -> list[str]:
    """Return the classes of data=images, which are the sorted folders of its training images.

    Raises:
        FileNotFoundError: If there is no such folder, or no classes in it.
        ValueError: If there is only one class.
    """
    folder = train_folder(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder data.root={root}: set it to your images")
    names = subfolders(folder)
    if not set(names) - {*TEST_FOLDERS}:
        raise FileNotFoundError(
            f"there are no training images in {folder}: it needs one folder for each class with "
            "the images in it, or such folders in train/ and test/"
        )
    if len(names) == 1:
        raise ValueError(f"{folder} has one class only, {names[0]}: a net needs at least two")
    return names


def subfolders(path: Path) -> list[str]:
    """Return the sorted names of the folders in one, without hidden ones."""
    # scandir knows which entries are folders without a further look at each of 50,000 images.
    entries = os.scandir(path)
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _files(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith("."))


def labels_by_class(folder: Path, wnids: list[str], label_of: dict[str, int]) -> dict[str, int]:
    """Return the label of each image, by its path in `folder`; each class has a directory."""
    labels: dict[str, int] = {}
    for wnid in wnids:
        names = _files(folder / wnid)
        if not names:
            raise FileNotFoundError(
                f"{folder / wnid} has no image in it: unpack the class again, or remove the folder"
            )
        labels |= {f"{wnid}/{name}": label_of[wnid] for name in names}
    return labels


def _labels_by_list(folder: Path, label_of: dict[str, int]) -> dict[str, int]:
    """Return the label of each image of a flat val/, as val.txt or the devkit list them."""
    path, devkit = folder.with_suffix(".txt"), folder.with_name(DEVKIT)
    if path.exists():
        lines = path.read_text().splitlines()
    elif devkit.exists():
        path, lines = devkit, _devkit_lines(devkit)
    else:
        raise FileNotFoundError(
            f"{folder} has no folders of classes: put {DEVKIT} next to it, or {path} with "
            f"the classes, {LINE_FORMAT}"
        )
    labels = _parse_lines(lines, path, label_of)

    names = _files(folder)
    differing = sorted(labels.keys() ^ set(names))
    if differing:
        problem = f"listed but not in {folder}" if differing[0] in labels else "not listed in it"
        raise ValueError(
            f"{path} does not match the images ({len(names):,} images, {len(labels):,} lines): "
            f"{differing[0]} is {problem}"
        )
    return {name: labels[name] for name in names}


def _parse_lines(lines: list[str], path: Path, label_of: dict[str, int]) -> dict[str, int]:
    """Return the label of each image that a list names, by its wnid or by its label."""
    wnids = list(label_of)
    # The names come last, so that they win: a folder may have the name of another one's label.
    label_of = {str(label): label for label in label_of.values()} | label_of
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
