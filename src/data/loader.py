"""Batches of photos, as worker processes make them: uint8 [n, 224, 224, 3], to be normalized on the device."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.data.image_folder import Files
from src.data.photo import SIZE, RandomArea, RandomScale, center, cut, decode
from src.data.sampler import Batch, Stream
from src.data.webdataset import Shards

# Of the training photos' RGB in 0 .. 1, as fb.resnet.torch has them (the paper prints none); vectors are columns.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

Photo = tuple[Tensor, int]  # and its label
Made = tuple[tuple[Tensor, ...], list[str]]  # a batch, and a line for each photo that was skipped
# Makes a batch of each item, in order.
Read = Callable[[Callable[[Any], Made], Sequence[Any]], Iterator[tuple[Tensor, ...]]]


class Photos:
    """Some photos of a split: those at `indices` of the source.

    With `skip` a photo that cannot be decoded is passed over; else ValueError is raised, with its path.
    """

    def __init__(self, source: Files | Shards, indices: np.ndarray, skip: bool) -> None:
        self.source, self.indices, self.skip = source, indices, skip

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int, skipped: list[str]) -> Photo | None:
        """The photo [3, H, W] and its label; None if it is skipped, and then `skipped` gets a line."""
        index = int(self.indices[index])
        try:
            return decode(self.source.read(index)), int(self.source.labels[index])
        except ValueError as error:
            line = f"{self.source.where(index)} {error}"
            if not self.skip:
                raise ValueError(f"{line}: mend or remove it, or pass over such photos with data.on_bad=skip") from None
            skipped.append(line)
            return None

    def views(self, of: Callable[[Tensor], list[Tensor]], indices: range) -> Made:
        """What `of` makes of photos, for testing: uint8 [n, views, height, width, 3] for each size, and labels [n].

        Fewer than `indices` if some are skipped; if all are, one empty tensor of views.
        """
        skipped: list[str] = []
        photos = [photo for photo in (self.read(index, skipped) for index in indices) if photo]
        of_size = zip(*(of(photo) for photo, _ in photos), strict=True)
        views = [torch.stack([of_photo.movedim(1, 3) for of_photo in same]) for same in of_size]
        return (
            *(views or [torch.empty((0, 1), dtype=torch.uint8)]),
            torch.tensor([label for _, label in photos]),
        ), skipped

    def center(self, indices: range) -> Made:
        """The middle of photos, uint8 [n, 224, 224, 3], and labels [n]."""
        (views, labels), skipped = self.views(lambda photo: [center(photo)[None]], indices)
        return (views.squeeze(1), labels), skipped


class Augmented:
    """Makes training batches: images, labels and color shifts, see `color_shifts`.

    The place of a photo that is skipped is taken by the next one that is not.
    """

    def __init__(self, photos: Photos, crop: RandomScale | RandomArea, color: float) -> None:
        self.photos, self.crop, self.color = photos, crop, color

    def __call__(self, indices: Tensor, rng: np.random.Generator, share: slice) -> Made:
        draws = rng.random((len(indices), self.crop.draws + 1))
        shifts = color_shifts(rng, len(indices), self.color)
        skipped: list[str] = []
        made = [self._one(*of, skipped) for of in zip(indices[share].tolist(), draws[share], strict=True)]
        return (*_stack(made), shifts[share]), skipped

    def _one(self, index: int, draws: np.ndarray, skipped: list[str]) -> Photo:
        for i in range(len(self.photos)):
            found = self.photos.read((index + i) % len(self.photos), skipped)
            if found:
                photo, label = found
                return cut(photo, self.crop.box(draws[1:], *photo.shape[1:]), flip=draws[0] < 0.5), label
        raise ValueError(f"none of the {len(self.photos):,} training photos can be read: {skipped[-1]}")


def color_shifts(rng: np.random.Generator, count: int, deviation: float) -> Tensor:
    """AlexNet's color noise (its Sec. 4.1) for `count` photos: what each adds to R, G, B in 0 .. 255, [count, 3]."""
    alphas = rng.normal(0, deviation, (count, 3))
    return torch.from_numpy(255 * (alphas * EIGENVALUES) @ np.transpose(EIGENVECTORS)).float()


def read_mean(path: Path) -> Tensor:
    """A mean image, float32 [224, 224, 3]. Raises ValueError if the file holds anything else, or FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file data.mean={path}")
    with path.open("rb") as file:
        try:
            mean = np.lib.format.read_array(file).astype(np.float32)
        except ValueError as error:
            raise ValueError(f"data.mean={path} holds no numbers, as np.save writes them") from error
    if mean.shape != (SIZE, SIZE, 3):
        raise ValueError(f"data.mean={path} is of shape {list(mean.shape)}: a mean image is [{SIZE}, {SIZE}, 3]")
    return torch.from_numpy(mean)


def _stack(photos: list[Photo]) -> Batch:
    images = torch.empty((len(photos), SIZE, SIZE, 3), dtype=torch.uint8)
    for image, (photo, _) in zip(images, photos, strict=True):
        image.copy_(photo.permute(1, 2, 0))
    return images, torch.tensor([label for _, label in photos], dtype=torch.int64)


class TrainBatches:
    """The batches of a stream, made ahead of it; the state is the stream's."""

    def __init__(self, stream: Stream, read: Read) -> None:
        self.stream, self.read = stream, read
        self.state_dict, self.load_state_dict = stream.state_dict, stream.load_state_dict

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        iterations = range(self.stream.next, len(self.stream))
        for iteration, batch in zip(iterations, self.read(self.stream.batch, iterations), strict=True):
            self.stream.next = iteration + 1
            yield batch


class TestBatches:
    """Photos for testing: each once over all processes, in order, not augmented."""

    def __init__(self, make: Callable[[range], Made], items: list[range], read: Read) -> None:
        self.make, self.items, self.read = make, items, read

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (batch for batch in self.read(self.make, self.items) if len(batch[0]))  # all of one may be skipped
