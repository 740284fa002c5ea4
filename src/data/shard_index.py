"""The index of a WebDataset shard: where each image is stored in the tar file, and its label.

It is a file next to the shard, so that an image can be read at one seek.
"""

import os
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
ENTRY = [("offset", np.int64), ("size", np.int64), ("label", np.int64)]
SHORTER_SIDE_HEADER = "DEEPRESIDUAL.shorter_side"  # pax headers of a vendor start with its name
EARLIER_SHORTER_SIDE = 480  # of shards that were made before the header was written


class ShardIndex(NamedTuple):
    """The images of a shard.

    Attributes:
        names: Their file names, bytes [n].
        entries: Where each is stored, ENTRY [n].
        shorter_side: The length that `make_shards` reduced larger shorter sides to; 0 if it copied
            all files, and for shards that others made.
    """

    names: np.ndarray
    entries: np.ndarray
    shorter_side: int


def index_path(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.with_name(shard.name + ".index.npz")


def read_index(shard: Path) -> ShardIndex | None:
    """Read the index of a shard; None if it has none, or if its size has changed since."""
    path = index_path(shard)
    if not path.exists():
        return None
    # np.load refuses pickled objects, which could run code: indices may come with the shards.
    with np.load(path) as index:
        if index["size"] != shard.stat().st_size:
            return None
        names = index["names"]
        side = int(index["shorter_side"]) if "shorter_side" in index else _earlier_side(names)
        return ShardIndex(names, index["entries"], side)


def write_index(shard: Path, tar: Path) -> ShardIndex:
    """Write the index of a shard and return it as `read_index` does.

    Args:
        shard: Path of the shard.
        tar: Where its content is: `shard`, or a temporary file that will be renamed to it.

    Raises:
        ValueError: If the content is incomplete or not one of images with labels.
    """
    index = _scan(tar)
    path = index_path(shard)
    # Renamed when complete; named by process, as several may index a shard at the same time.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, **index._asdict(), size=tar.stat().st_size)
    part.replace(path)
    return index


def _earlier_side(names: np.ndarray) -> int:
    """Return the `shorter_side` of a shard that does not say it, from the names of its images."""
    # Shards of others start no name with the seven digits of an image's number.
    return EARLIER_SHORTER_SIDE if re.match(rb"\d{7}-", names[0]) else 0


def _scan(tar_path: Path) -> ShardIndex:
    """Index a tar file, reading it from end to end."""
    images, labels = {}, {}
    try:
        with tarfile.open(tar_path, "r:") as tar:
            for member in tar:
                # The key of a sample ends at the first dot of the file name, as in WebDataset.
                extension = member.name.rpartition("/")[2].partition(".")[2]
                key = member.name.removesuffix(extension)
                if extension.lower() in EXTENSIONS:
                    images[key] = member
                elif extension == "cls":
                    file = tar.extractfile(member)  # None for a directory of such a name
                    labels[key] = int(file.read() if file else b"")
            shorter_side = tar.pax_headers.get(SHORTER_SIDE_HEADER)
    # tarfile skips to the next member without reading, and notices there that the file ended.
    except (tarfile.ReadError, ValueError) as error:
        raise ValueError(
            f"{tar_path} is not a complete shard ({error}): download or make it again"
        ) from error

    unpaired = sorted(images.keys() ^ labels.keys())
    if unpaired or not images:
        problem = "it has no image in it"
        if unpaired:
            problem = f"{unpaired[0].rstrip('.')} does not have both an image and a .cls"
        raise ValueError(f"{tar_path} is not a shard of images with labels: {problem}")
    entries = [(image.offset_data, image.size, labels[key]) for key, image in images.items()]
    names = np.array([os.fsencode(image.name) for image in images.values()])
    side = _earlier_side(names) if shorter_side is None else int(shorter_side)
    return ShardIndex(names, np.array(entries, ENTRY), side)
