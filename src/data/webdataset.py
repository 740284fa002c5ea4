"""Images in WebDataset shards: tar files of NAME.jpg and NAME.cls, as timm/imagenet-1k-wds.

`python -m src.data.webdataset ROOT OUT` makes them from images in folders: for disks that are slow
to open a million files, and processors that are slow to decode large images.
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
from tqdm import tqdm

from src.data.image_folder import ImageFiles, read_folders
from src.data.image_reader import decode_image
from src.data.jpeg import encode_rgb
from src.data.shard_index import SHORTER_SIDE_HEADER, read_index, write_index
from src.data.transforms import resize, scaled_size
from src.runs.environment import cpu_count

DESCRIPTION = (
    "Make shards of the images in the folders of ROOT. Validation images are copied; a training "
    "image's shorter side above 512 pixels, the largest that training uses, is reduced to 512. "
    "Rerun the command to resume it."
)
JPEG_QUALITY = 95  # the images were compressed before: little may be lost again
# What shorter sides are reduced to, 0 for nothing. 512 is the largest that training uses, in the
# VGG paper; a smaller one would blur its crops. Evaluation enlarges images up to a side of 640, so
# it needs them as they are.
SHORTER_SIDES = {"train": 512, "val": 0}


class Shards:
    """The images of a split in tar files, in any order at one seek each.

    Args:
        paths: The shards. Those that have no index get one.

    Attributes:
        reduced: The shards whose images were reduced, and the shorter side they were reduced to.

    Raises:
        ValueError: If a shard is incomplete or not one of images with labels.
    """

    def __init__(self, paths: list[Path]) -> None:
        # Shown only if it takes longer than a second, that is if shards have no index.
        bar = tqdm(paths, "indexing shards", unit="shard", disable=None, delay=1)
        indices = [read_index(path) or write_index(path, path) for path in bar]
        self.paths = paths
        self.shard_of_image = np.repeat(np.arange(len(paths)), [len(i.names) for i in indices])
        self.names = np.concatenate([index.names for index in indices])
        self.entries = np.concatenate([index.entries for index in indices])
        sides = {path: i.shorter_side for path, i in zip(paths, indices, strict=True)}
        self.reduced = {path: side for path, side in sides.items() if side}
        self.labels = self.entries["label"].copy()  # a field of `entries` is not contiguous

    def location(self, index: int) -> str:
        """Return the shard and the name of an image, as a.tar:b.jpg."""
        return f"{self.paths[self.shard_of_image[index]]}:{os.fsdecode(self.names[index])}"

    def read(self, index: int) -> np.ndarray:
        """Return the content of an image file, uint8 [bytes]."""
        # By offset, not with tarfile, which would read the shard from its start.
        offset, size, _ = self.entries[index]
        return np.fromfile(self.paths[self.shard_of_image[index]], np.uint8, size, offset=offset)


def find_shards(root: Path, split: str) -> list[Path]:
    """Return the sorted shards of a split below `root`; an empty list if there are none."""
    return sorted(root.glob(f"*{split}*.tar"))


def read_shards(root: Path) -> tuple[Shards, Shards]:
    """Open the training and the validation images, and index shards that have no index.

    Raises:
        FileNotFoundError: If a split has no shard.
        ValueError: If a shard is incomplete or not one of images with labels.
    """
    # Both before either is opened, which may take minutes of indexing.
    for split in SHORTER_SIDES:
        if not find_shards(root, split):
            raise FileNotFoundError(
                f"there is no shard {root.absolute()}/*{split}*.tar: "
                "download all shards, or make them with python -m src.data.webdataset"
            )
    return Shards(find_shards(root, "train")), Shards(find_shards(root, "val"))


def make_shards(root: Path, out: Path, workers: int, images_per_shard: int = 1000) -> None:
    """Make the shards of the images below `root` that are not in `out` yet.

    Raises:
        ValueError: If `out` has shards of other images, or of images of another size.
    """
    out.mkdir(parents=True, exist_ok=True)
    for (split, shorter_side), files in zip(SHORTER_SIDES.items(), read_folders(root), strict=True):
        # Shuffled, so that a reader of whole shards in order gets mixed classes; a fixed seed, so
        # that a rerun makes the same shards.
        order = np.random.default_rng(0).permutation(len(files.labels))
        parts = np.split(order, range(images_per_shard, len(order), images_per_shard))
        tasks = {out / f"imagenet-{split}-{i:04d}.tar": part for i, part in enumerate(parts)}

        # Removes the shards that exist from the tasks, so that a rerun resumes.
        for path in find_shards(out, split):
            index = read_index(path)
            names = [name_in_shard(files, i).encode() for i in tasks.pop(path, [])]
            if index is None or index.names.tolist() != names:
                raise ValueError(
                    f"{path} was not made from {root}: choose another folder for the shards, "
                    "or remove it"
                )
            if index.shorter_side != shorter_side:
                raise ValueError(
                    f"{path} was made by an earlier version, which reduced its images to "
                    f"{index.shorter_side} pixels: choose another folder for the shards, or "
                    "remove it"
                )

        total, remaining = len(order), sum(map(len, tasks.values()))
        bar = tqdm(desc=split, total=total, initial=total - remaining, unit=" images", disable=None)
        with bar, Pool(workers, _start_worker) as pool:
            make = partial(make_shard, files, shorter_side)
            for count, corrupt in pool.imap_unordered(make, tasks.items()):
                for message in corrupt:
                    tqdm.write(f"{message}: copied unchanged", file=sys.stderr)
                bar.update(count)


def _start_worker() -> None:
    """Let a worker process use one core and leave Ctrl-C to the process that started it."""
    # One process for each core: more threads would compete for them.
    torch.set_num_threads(1)
    # Ctrl-C reaches all processes of a terminal, and each would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_shard(
    files: ImageFiles, shorter_side: int, task: tuple[Path, np.ndarray]
) -> tuple[int, list[str]]:
    """Write one shard.

    Args:
        files: All images of the split.
        shorter_side: The length that larger shorter sides are reduced to; 0 copies all files.
        task: Path of the shard, and the indices of its images.

    Returns:
        Number of images, and a message for each that cannot be decoded. Those are copied unchanged,
        so that training meets them as it does in the folders. Files that are only copied are not
        decoded.
    """
    path, indices = task
    # Not found by `find_shards`, so that an incomplete one is made again.
    part, corrupt = path.with_name(path.name + ".part"), []
    # In the shard itself, so that an index that is lost can be made again.
    headers = {SHORTER_SIDE_HEADER: str(shorter_side)}
    with tarfile.open(part, "w", pax_headers=headers) as tar:
        for index in indices:
            content = files.read(index)
            try:
                content = shrink(content, shorter_side) if shorter_side else content
            except ValueError as error:
                corrupt.append(f"{files.location(index)} {error}")
            name = name_in_shard(files, index)
            _add(tar, name, content.tobytes())
            _add(tar, f"{Path(name).stem}.cls", str(files.labels[index]).encode())

    # The index first: a shard under its final name always has one.
    write_index(path, part)
    part.replace(path)
    return len(indices), corrupt


def name_in_shard(files: ImageFiles, index: int) -> str:
    """Return an image's name in a shard, unique in its split: a folder may have a.jpg and a.png."""
    return f"{index:07d}-{Path(files.location(index)).stem.replace('.', '-')}.jpg"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # Without the time and the owner of the file: the same images give the same shard.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def shrink(file: np.ndarray, shorter_side: int) -> np.ndarray:
    """Reduce the shorter side of an image file; a file with a smaller one is returned as it is.

    Args:
        file: Content of the file, uint8 [bytes].
        shorter_side: The length to reduce it to, in pixels.

    Returns:
        A JPEG file, or `file` itself.

    Raises:
        ValueError: If the image cannot be decoded.
    """
    image = decode_image(file)
    height, width = image.shape[1:]
    if min(height, width) <= shorter_side:
        return file  # not encoded again, which would cost quality
    smaller = resize(image, *scaled_size(height, width, shorter_side))
    return encode_rgb(smaller.contiguous(), JPEG_QUALITY)


def main() -> None:
    """Make shards on the command line."""
    parser = argparse.ArgumentParser(prog="python -m src.data.webdataset", description=DESCRIPTION)
    parser.add_argument("root", type=Path, help="holds train/<wnid>/*.JPEG and val/")
    parser.add_argument("out", type=Path, help="directory of the shards, the data.root= of a run")
    parser.add_argument(
        "--workers", type=int, default=cpu_count(), help="processes (default: one for each core)"
    )
    options = parser.parse_args()
    make_shards(options.root, options.out, options.workers)
    print(f"{options.out} is complete: train with data=imagenet data.root={options.out}")


if __name__ == "__main__":
    from src.cli import run_entry_point

    run_entry_point(main)
