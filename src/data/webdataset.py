"""Images in WebDataset shards: tar files of NAME.jpg and NAME.cls, as timm/imagenet-1k-wds.

`python -m src.data.webdataset ROOT OUT` makes them from images in folders: for disks that are slow
to open a million files, and processors that are slow to decode large images.
"""

import argparse
import io
import math
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

from src.data.image_folder import ImageFiles, read_folders
from src.data.image_reader import decode_image
from src.data.transforms import resize, scaled_size

DESCRIPTION = (
    "Make shards of the images in the folders of ROOT. A shorter side above 480 pixels, the "
    "largest that training uses, is reduced to 480. Rerun the command to resume it."
)
IMAGES_PER_SHARD = 1000
SHORTER_SIDE = 480  # the largest that training uses: a smaller one would blur its crops
JPEG_QUALITY = 95
EXTENSIONS = ("jpg", "jpeg", "png", "webp")
PATTERNS = {"train": "*train*.tar", "val": "*val*.tar"}
ENTRY = [("offset", np.int64), ("size", np.int64), ("label", np.int64)]


class Shards:
    """The images of a split in tar files, in any order at one seek each.

    Args:
        paths: The shards, all of which have an index.
    """

    def __init__(self, paths: list[Path]) -> None:
        indices = [index for path in paths if (index := read_index(path)) is not None]
        assert len(indices) == len(paths), "a shard without an index"
        self.paths = paths
        self.shard_of_image = np.repeat(np.arange(len(paths)), [len(names) for names, _ in indices])
        self.names = np.concatenate([names for names, _ in indices])
        self.entries = np.concatenate([entries for _, entries in indices])
        self.labels = self.entries["label"].copy()

    def location(self, index: int) -> str:
        """Return the shard and the name of an image, as a.tar:b.jpg."""
        return f"{self.paths[self.shard_of_image[index]]}:{os.fsdecode(self.names[index])}"

    def read(self, index: int) -> np.ndarray:
        """Return the content of an image file, uint8 [bytes]."""
        # By offset, not with tarfile, which would read the shard from its start.
        offset, size, _ = self.entries[index]
        return np.fromfile(self.paths[self.shard_of_image[index]], np.uint8, size, offset=offset)


def find_shards(root: Path) -> dict[str, list[Path]]:
    """Return the sorted shards of each split below `root`; empty lists if there are none."""
    return {split: sorted(root.glob(pattern)) for split, pattern in PATTERNS.items()}


def read_shards(root: Path) -> tuple[Shards, Shards]:
    """Open the training and the validation images, and index shards that have no index.

    Raises:
        FileNotFoundError: If a split has no shard.
        ValueError: If a shard is incomplete or not one of images with labels.
    """
    shards = find_shards(root)
    for split, paths in shards.items():
        if not paths:
            raise FileNotFoundError(
                f"there is no shard {root.absolute() / PATTERNS[split]}: "
                "download all shards, or make them with python -m src.data.webdataset"
            )

    unindexed = [p for paths in shards.values() for p in paths if read_index(p) is None]
    for path in tqdm(
        unindexed, "indexing shards", unit="shard", disable=None if unindexed else True
    ):
        write_index(path, *scan(path), path.stat().st_size)
    return Shards(shards["train"]), Shards(shards["val"])


def index_path(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.with_name(shard.name + ".index.npz")


def read_index(shard: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Read the names of a shard's images, bytes [n], and where each is stored, ENTRY [n].

    Returns None if there is no index, or if the size of the shard has changed since.
    """
    path = index_path(shard)
    if not path.exists():
        return None
    # np.load refuses pickled objects, which could run code: indices may come with the shards.
    with np.load(path) as index:
        if index["size"] != shard.stat().st_size:
            return None
        return index["names"], index["entries"]


def write_index(
    shard: Path, names: list[str], entries: list[tuple[int, int, int]], size: int
) -> None:
    """Write the index of a shard of `size` bytes; `entries` are as ENTRY says."""
    path = index_path(shard)
    # Renamed when complete; named by process, as several may index a shard at the same time.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        encoded = [os.fsencode(name) for name in names]
        np.savez(file, names=encoded, entries=np.array(entries, ENTRY), size=size)
    part.replace(path)


def scan(shard: Path) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Read a shard from end to end.

    Returns:
        The name of each image, and its offset, size and label.

    Raises:
        ValueError: If the shard is incomplete or not one of images with labels.
    """
    images, labels = {}, {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                # The key of a sample ends at the first dot of the file name, as in WebDataset.
                folder, _, file = member.name.rpartition("/")
                name, _, extension = file.partition(".")
                if extension.lower() in EXTENSIONS:
                    images[folder, name] = member
                elif extension == "cls":
                    file_in_tar = tar.extractfile(member)
                    labels[folder, name] = int(file_in_tar.read() if file_in_tar else b"")
    except (tarfile.ReadError, ValueError) as error:
        raise ValueError(
            f"{shard} is not a complete shard ({error}): download or make it again"
        ) from error

    unpaired = sorted(images.keys() ^ labels.keys())
    if unpaired or not images:
        problem = "it has no image in it"
        if unpaired:
            problem = f"{'/'.join(unpaired[0]).lstrip('/')} does not have both an image and a .cls"
        raise ValueError(f"{shard} is not a shard of images with labels: {problem}")
    entries = [(image.offset_data, image.size, labels[key]) for key, image in images.items()]
    return [image.name for image in images.values()], entries


def make_shards(
    root: Path, out: Path, workers: int, images_per_shard: int = IMAGES_PER_SHARD
) -> None:
    """Make the shards of the images below `root` that are not in `out` yet.

    Raises:
        ValueError: If `out` has shards of other images.
    """
    out.mkdir(parents=True, exist_ok=True)
    for split, files in zip(PATTERNS, read_folders(root), strict=True):
        # Shuffled, so that a reader of whole shards in order gets mixed classes; a fixed seed, so
        # that a rerun makes the same shards.
        order = np.random.default_rng(0).permutation(len(files.labels))
        parts = np.split(order, range(images_per_shard, len(order), images_per_shard))
        tasks = {out / f"imagenet-{split}-{i:04d}.tar": part for i, part in enumerate(parts)}

        done = find_shards(out)[split]
        for path in done:
            index = read_index(path)
            names = [name_in_shard(files, i).encode() for i in tasks.get(path, [])]
            if index is None or index[0].tolist() != names:
                raise ValueError(
                    f"{path} was not made from {root}: choose another folder for the shards, "
                    "or remove it"
                )

        missing = [task for task in tasks.items() if task[0] not in done]
        left = sum(len(indices) for _, indices in missing)
        total, initial = len(order), len(order) - left
        with (
            tqdm(desc=split, total=total, initial=initial, unit=" images", disable=None) as bar,
            Pool(workers, _start_worker) as pool,
        ):
            for count, corrupt in pool.imap_unordered(partial(make_shard, files), missing):
                for message in corrupt:
                    tqdm.write(f"{message}: copied unchanged", file=sys.stderr)
                bar.update(count)


def _start_worker() -> None:
    """Let a worker process use one core and leave Ctrl-C to the process that started it."""
    # One process for each core: more threads would compete for them.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_shard(files: ImageFiles, task: tuple[Path, np.ndarray]) -> tuple[int, list[str]]:
    """Write one shard.

    Args:
        files: All images of the split.
        task: Path of the shard, and the indices of its images.

    Returns:
        Number of images, and a message for each that cannot be decoded. Those are copied unchanged,
        so that training meets them as it does in the folders.
    """
    path, indices = task
    part, corrupt, entries = path.with_name(path.name + ".part"), [], []
    names = [name_in_shard(files, index) for index in indices]
    with tarfile.open(part, "w") as tar:
        for name, index in zip(names, indices, strict=True):
            content = files.read(index)
            try:
                content = shrink(content)
            except ValueError as error:
                corrupt.append(f"{files.location(index)} {error}")
            offset = _add(tar, name, content)
            _add(tar, f"{Path(name).stem}.cls", str(files.labels[index]).encode())
            entries.append((offset, len(content), files.labels[index]))

    # The index first: a shard under its final name always has one.
    write_index(path, names, entries, part.stat().st_size)
    part.replace(path)
    return len(indices), corrupt


def name_in_shard(files: ImageFiles, index: int) -> str:
    """Return an image's name in a shard, unique in its split: a folder may have a.jpg and a.png."""
    return f"{index:07d}-{Path(files.location(index)).stem.replace('.', '-')}.jpg"


def _add(tar: tarfile.TarFile, name: str, content: np.ndarray | bytes) -> int:
    """Append a file to a tar and return the offset of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(bytes(content)))
    return tar.offset - math.ceil(len(content) / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def shrink(file: np.ndarray) -> np.ndarray:
    """Reduce the shorter side of an image file to 480 pixels; a smaller one is returned as it is.

    Args:
        file: Content of the file, uint8 [bytes].

    Returns:
        A JPEG file, or `file` itself.

    Raises:
        ValueError: If the image cannot be decoded.
    """
    image = decode_image(file)
    height, width = image.shape[1:]
    if min(height, width) <= SHORTER_SIDE:
        return file  # not encoded again, which would cost quality
    smaller = resize(image, *scaled_size(height, width, SHORTER_SIDE))
    return encode_jpeg(smaller.contiguous(), JPEG_QUALITY).numpy()


def main() -> None:
    """Make shards on the command line."""
    parser = argparse.ArgumentParser(prog="python -m src.data.webdataset", description=DESCRIPTION)
    parser.add_argument("root", type=Path, help="holds train/<wnid>/*.JPEG and val/")
    parser.add_argument("out", type=Path, help="directory of the shards, the data.root= of a run")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (default: one for each core)"
    )
    options = parser.parse_args()
    make_shards(options.root, options.out, options.workers)
    print(f"{options.out} is complete: train with data=imagenet data.root={options.out}")


if __name__ == "__main__":
    from src.cli import run_entry_point

    run_entry_point(main)
