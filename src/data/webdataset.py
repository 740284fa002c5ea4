"""Photos in WebDataset shards, tar files of NAME.jpg and NAME.cls, as timm/imagenet-1k-wds has them.

`python -m src.data.webdataset ROOT OUT` makes them of photos in folders: for disks that are slow to open a million files,
and processors that are slow to decode large photos.
"""

import argparse
import io
import os
import signal
import sys
import tarfile
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from torchvision.io import encode_jpeg
from tqdm import tqdm

from src.data.image_folder import Files, read_folders
from src.data.photo import decode, resize, scaled

MAKES = (
    "Makes shards of the photos in the folders of ROOT, with the shorter side brought to 480, the longest that "
    "training asks for, where it is longer. Interrupted, the same command goes on."
)
PHOTOS = 1000  # of a shard that is made here
SHORTER = 480
QUALITY = 95
IMAGES = ("jpg", "jpeg", "png", "webp")
PATTERNS = {"train": "*train*.tar", "val": "*val*.tar"}
ENTRY = [("offset", np.int64), ("size", np.int64), ("label", np.int64)]


class Shards:
    """The photos of a split in tar files; `labels` int64. One read is one seek, whatever the order."""

    def __init__(self, paths: list[Path]) -> None:
        indices = [read_index(path) for path in paths]
        self.paths = paths
        self.shard = np.repeat(np.arange(len(paths)), [len(names) for names, _ in indices])
        self.names = np.concatenate([names for names, _ in indices])
        self.entries = np.concatenate([entries for _, entries in indices])
        self.labels = self.entries["label"].copy()

    def where(self, index: int) -> str:
        return f"{self.paths[self.shard[index]]}:{os.fsdecode(self.names[index])}"

    def read(self, index: int) -> np.ndarray:
        """The file, uint8 [bytes]."""
        offset, size, _ = self.entries[index]
        return np.fromfile(self.paths[self.shard[index]], np.uint8, size, offset=offset)


def find_shards(root: Path) -> dict[str, list[Path]]:
    """The shards of each split below `root`; empty lists if there are none."""
    return {split: sorted(root.glob(pattern)) for split, pattern in PATTERNS.items()}


def read_shards(root: Path) -> tuple[Shards, Shards]:
    """Training and validation photos. Raises FileNotFoundError if either has no shard."""
    found = find_shards(root)
    for split, paths in found.items():
        if not paths:
            raise FileNotFoundError(f"there is no shard {root.absolute() / PATTERNS[split]}: fetch or make all of them")
    build_indices([path for paths in found.values() for path in paths])
    return Shards(found["train"]), Shards(found["val"])


def index_path(shard: Path) -> Path:
    return shard.with_name(shard.name + ".index.npz")


def build_indices(shards: list[Path]) -> None:
    """Reads through each shard that has no index, or whose size has changed since, and keeps one beside it."""
    missing = [path for path in shards if read_index(path) is None]
    for path in tqdm(missing, "indexing shards", unit="shard", disable=None if missing else True):
        write_index(path, *scan(path), path.stat().st_size)


def read_index(shard: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The names of its photos, bytes [n], and where each lies, ENTRY [n]; None if there is no index of it as it is."""
    path = index_path(shard)
    if not path.exists():
        return None
    with np.load(path) as index:
        return (index["names"], index["entries"]) if index["size"] == shard.stat().st_size else None


def write_index(shard: Path, names: list[str], entries: list[tuple[int, int, int]], size: int) -> None:
    path = index_path(shard)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")  # several processes may come to write it
    with aside.open("wb") as file:
        np.savez(file, names=[os.fsencode(name) for name in names], entries=np.array(entries, ENTRY), size=size)
    aside.replace(path)


def scan(shard: Path) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Reads a shard from end to end: the name of each photo, and its offset, its size and its label.

    Raises ValueError if it is not whole, or is no shard of photos with labels.
    """
    photos, labels = {}, {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                name, _, extension = file.partition(".")
                if extension.lower() in IMAGES:
                    photos[folder, name] = member
                elif extension == "cls":
                    labels[folder, name] = int(tar.extractfile(member).read())
    except (tarfile.ReadError, ValueError) as error:
        raise ValueError(f"{shard} is not a whole shard ({error}): fetch or make it again") from error
    odd = sorted(photos.keys() ^ labels.keys())
    if odd or not photos:
        what = f"{'/'.join(odd[0]).lstrip('/')} has not both a photo and a .cls" if odd else "it has no photo in it"
        raise ValueError(f"{shard} is no shard of photos with labels: {what}")
    entries = [(photo.offset_data, photo.size, labels[key]) for key, photo in photos.items()]
    return [photo.name for photo in photos.values()], entries


def make_shard(files: Files, task: tuple[Path, np.ndarray]) -> tuple[int, list[str]]:
    """Writes one shard of the photos at these indices; returns how many, and a line for each that cannot be read.

    Those are copied as they are, so that training meets them as it does in the folders.
    """
    path, indices = task
    aside, bad, entries = path.with_name(path.name + ".part"), [], []
    names = [photo_name(files, index) for index in indices]
    with tarfile.open(aside, "w") as tar:
        for name, index in zip(names, indices, strict=True):
            content = files.read(index)
            try:
                content = shrink(content)
            except ValueError as error:
                bad.append(f"{files.where(index)} {error}")
            member = _add(tar, name, content)
            _add(tar, f"{Path(name).stem}.cls", str(files.labels[index]).encode())
            entries.append((member, len(content), files.labels[index]))
    write_index(path, names, entries, aside.stat().st_size)
    aside.replace(path)
    return len(indices), bad


def _alone() -> None:
    """A worker process takes one core, and leaves Ctrl-C to the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def photo_name(files: Files, index: int) -> str:
    """Its name in a shard, which no other photo of the split has: a folder may hold a.jpg and a.png."""
    return f"{index:07d}-{Path(files.where(index)).stem.replace('.', '-')}.jpg"


def _add(tar: tarfile.TarFile, name: str, content: np.ndarray | bytes) -> int:
    """Returns where the content begins."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    return tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def shrink(file: np.ndarray) -> np.ndarray:
    """A photo's file with the shorter side brought to 480, as JPEG; the file itself if that is no longer already."""
    photo = decode(file)
    height, width = photo.shape[1:]
    if min(height, width) <= SHORTER:
        return file
    return encode_jpeg(resize(photo, *scaled(height, width, SHORTER)).contiguous(), QUALITY).numpy()


def make_shards(root: Path, out: Path, workers: int) -> None:
    """Makes the shards that are not in `out` yet, each in a shuffled order that is always the same.

    Raises ValueError if `out` has shards of other photos.
    """
    out.mkdir(parents=True, exist_ok=True)
    for split, files in zip(PATTERNS, read_folders(root), strict=True):
        order = np.random.default_rng(0).permutation(len(files.labels))
        parts = np.split(order, range(PHOTOS, len(order), PHOTOS))
        tasks = {out / f"imagenet-{split}-{i:04d}.tar": part for i, part in enumerate(parts)}
        done = find_shards(out)[split]
        for path in done:
            index = read_index(path)
            names = [photo_name(files, i).encode() for i in tasks.get(path, [])]
            if index is None or index[0].tolist() != names:
                raise ValueError(f"{path} was not made of {root}: say another folder for the shards, or remove it")
        to_do = [task for task in tasks.items() if task[0] not in done]
        left = sum(len(indices) for _, indices in to_do)
        with (
            tqdm(desc=split, total=len(order), initial=len(order) - left, unit=" photos", disable=None) as bar,
            Pool(workers, _alone) as pool,
        ):
            for count, bad in pool.imap_unordered(partial(make_shard, files), to_do):
                for line in bad:
                    tqdm.write(f"{line}: copied as it is", file=sys.stderr)
                bar.update(count)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m src.data.webdataset", description=MAKES)
    parser.add_argument("root", type=Path, help="holds train/<wnid>/*.JPEG and val/")
    parser.add_argument("out", type=Path, help="where the shards go, the data.root= of a run")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    options = parser.parse_args()
    make_shards(options.root, options.out, options.workers)
    print(f"{options.out} is complete: train with data=imagenet data.root={options.out}")


if __name__ == "__main__":
    from src.cli import run_entry_point as entry

    entry(main)
