"""Photos in folders: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, or a flat `val/` with a list of its classes.

The list is `val.txt`, or the ground truth in ImageNet's own devkit, an archive that lies beside val/.
"""

import os
from pathlib import Path

import numpy as np

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


class Files:
    """The photos of a split as files below `folder`: `names`, bytes as `n01440764/a.JPEG`, and `labels`, int64."""

    def __init__(self, folder: Path, names: list[str], labels: list[int]) -> None:
        # An array of bytes rather than a list of strings, which each worker process would come to copy.
        self.folder, self.names = folder, np.array([os.fsencode(name) for name in names])
        self.labels = np.array(labels, np.int64)

    def where(self, index: int) -> str:
        return f"{self.folder}/{os.fsdecode(self.names[index])}"

    def read(self, index: int) -> np.ndarray:
        """The file, uint8 [bytes]."""
        return np.fromfile(self.where(index), np.uint8)


def read_folders(root: Path) -> tuple[Files, Files]:
    """Training and validation photos below `root`; the classes are the names of the folders in train/, sorted.

    Raises FileNotFoundError for a folder that is missing or empty, and ValueError for a val/ that does not fit.
    """
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise FileNotFoundError(
                f"there is no folder {(root / split).absolute()}: name with data.root= the folder that holds "
                "train/<wnid>/*.JPEG and val/, or shards (*train*.tar and *val*.tar)"
            )
    wnids = _folders(root / "train")
    if not wnids:
        raise FileNotFoundError(f"{root / 'train'} has no folder in it: it must have one for each class, as n01440764")
    val_wnids = _folders(root / "val")
    strange = sorted(set(val_wnids) - set(wnids))
    if strange:
        raise ValueError(
            f"{root / 'val'} has {len(strange)} classes that {root / 'train'} has not ({strange[0]}, ...): "
            "bring train/ and val/ of the same data set"
        )
    val = _in_folders(root / "val", val_wnids, wnids) if val_wnids else _listed(root, wnids)
    return _in_folders(root / "train", wnids, wnids), val


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _files(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith("."))


def _in_folders(folder: Path, those: list[str], wnids: list[str]) -> Files:
    names, labels, number = [], [], {wnid: label for label, wnid in enumerate(wnids)}
    for wnid in those:
        files = _files(folder / wnid)
        if not files:
            raise FileNotFoundError(f"{folder / wnid} has no photo in it: unpack the class again, or remove the folder")
        names += [f"{wnid}/{name}" for name in files]
        labels += [number[wnid]] * len(files)
    return Files(folder, names, labels)


def _devkit_list(devkit: Path) -> list[str]:
    """Lines as val.txt has them, of the devkit's ground truth; its numbers go by another order than the wnids'."""
    from torchvision.datasets.imagenet import META_FILE, load_meta_file, parse_devkit_archive

    if not (devkit.parent / META_FILE).exists():
        try:
            parse_devkit_archive(devkit.parent)
        except RuntimeError as error:
            raise ValueError(f"{devkit} is not whole: fetch it again ({error})") from error
    _, wnids = load_meta_file(devkit.parent)
    return [f"ILSVRC2012_val_{i:08}.JPEG {wnid}" for i, wnid in enumerate(wnids, 1)]


def _listed(root: Path, wnids: list[str]) -> Files:
    """Photos that lie flat in val/; lines of val.txt are as `ILSVRC2012_val_00000001.JPEG n01751748`, or the number of
    the class among the sorted wnids, from 0, in place of the wnid.
    """
    form = "one line for each photo, as ILSVRC2012_val_00000001.JPEG n01751748 (or 65, its place in the sorted wnids)"
    folder, path, devkit = root / "val", root / "val.txt", root / DEVKIT
    if not path.exists() and not devkit.exists():
        raise FileNotFoundError(
            f"{folder} has no folders of classes, so put {DEVKIT} beside it, or {path} with the classes: {form}"
        )
    lines = path.read_text().splitlines() if path.exists() else _devkit_list(devkit)
    path = path if path.exists() else devkit
    numbers = {wnid: label for label, wnid in enumerate(wnids)} | {str(label): label for label in range(len(wnids))}
    labels = {}
    for i, line in enumerate(lines, 1):
        words = line.split()
        if len(words) != 2 or words[1] not in numbers:
            classes = f"train/ has {len(wnids)} classes, {wnids[0]} .. {wnids[-1]}"
            raise ValueError(f"line {i} of {path} does not fit, {line!r}: it must have {form}; {classes}")
        if words[0] in labels:
            raise ValueError(f"line {i} of {path} names {words[0]} a second time")
        labels[words[0]] = numbers[words[1]]
    names = _files(folder)
    for some, others, what in ((names, labels, "not listed in it"), (labels, names, f"listed but not in {folder}")):
        missing = sorted(set(some) - set(others))
        if missing:
            raise ValueError(
                f"{path} does not fit the photos: {len(missing)} are {what}, {missing[0]} first "
                f"({len(names):,} photos, {len(labels):,} lines)"
            )
    if not names:
        raise FileNotFoundError(f"{folder} has no photo in it: unpack the validation photos there")
    return Files(folder, names, [labels[name] for name in names])
