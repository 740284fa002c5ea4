"""The index of a WebDataset shard: where each image is stored in the tar file, and its label.

It is a file next to the shard, so that an image can be read at one seek.
"""

import os
import tarfile
from pathlib import Path

import numpy as np

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
ENTRY = [("offset", np.int64), ("size", np.int64), ("label", np.int64)]


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


def write_index(shard: Path, tar: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the index of a shard and return it as `read_index` does.

    Args:
        shard: Path of the shard.
        tar: Where its content is: `shard`, or a temporary file that will be renamed to it.

    Raises:
        ValueError: If the content is incomplete or not one of images with labels.
    """
    names, entries = _scan(tar)
    path = index_path(shard)
    # Renamed when complete; named by process, as several may index a shard at the same time.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, names=names, entries=entries, size=tar.stat().st_size)
    part.replace(path)
    return names, entries


def _scan(tar_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a tar file from end to end, as `read_index` returns it."""
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
    names = [os.fsencode(image.name) for image in images.values()]
    return np.array(names), np.array(entries, ENTRY)
