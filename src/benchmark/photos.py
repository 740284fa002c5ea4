"""Reading photos in one process, in images per second: all that training needs, as we make it and as people usually
do, and the decoding alone, which is the limit.

All take a folder that holds a folder of photos for each class, and how often to go over them after a first time that
warms up. Where there is a `crop`, it is that of data=imagenet: "scale" with the mean image and color noise, as the
paper, or "area" with the mean and deviation of each channel, as torchvision.
"""

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from src.data.imagenet import MEAN, STD, ImageNet
from src.data.transforms import CROP_SIZE, EIGENVALUES, EIGENVECTORS
from src.runs.environment import keep_freed_memory

BATCH = 64


def training_photos(folder: str, crop: str, passes: int) -> float:
    """The batches of data=imagenet, normalized as on the training device, which is the CPU here."""
    keep_freed_memory()
    count = len(list(Path(folder).glob("*/*")))
    iterations = -(-count * passes // BATCH)
    with tempfile.TemporaryDirectory() as root:
        for split in ("train", "val"):
            (Path(root) / split).symlink_to(Path(folder).absolute())
        normalization, color = ("pixel", 0.1) if crop == "scale" else ("channel", 0.0)
        stream = {"seed": 0, "batch_size": BATCH, "iterations": iterations + -(-count // BATCH)}
        data = ImageNet(root, 0, crop, [256, 480], color, normalization, "stop", 0, **stream)
        data.prepare_data()
        data.setup()
        batches = iter(data.train_dataloader())
        for _ in range(stream["iterations"] - iterations):
            data.on_after_batch_transfer(next(batches), 0)
        return BATCH * iterations / _seconds(data.on_after_batch_transfer(batch, 0) for batch in batches)


class Lighting:
    """AlexNet's color noise, photo by photo."""

    def __call__(self, photo: Tensor) -> Tensor:
        shift = torch.tensor(EIGENVECTORS) @ (torch.randn(3) * 0.1 * torch.tensor(EIGENVALUES))
        return photo + shift[:, None, None]


class RandomResize:
    """The shorter side brought to 256 .. 480."""

    def __call__(self, photo: Image.Image) -> Image.Image:
        return transforms.functional.resize(photo, int(torch.randint(256, 481, ())))


def usual_photos(folder: str, crop: str, passes: int) -> float:
    """torchvision's transforms of PIL images, photo by photo, in float32 batches."""
    flip, mean_image = transforms.RandomHorizontalFlip(), torch.tensor(MEAN)[:, None, None].repeat(1, CROP_SIZE, CROP_SIZE)
    if crop == "scale":
        steps = [RandomResize(), transforms.RandomCrop(CROP_SIZE), flip, transforms.ToTensor(), Lighting()]
        steps.append(lambda photo: photo - mean_image)
    else:
        steps = [transforms.RandomResizedCrop(CROP_SIZE), flip, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    photos = datasets.ImageFolder(folder, transforms.Compose(steps))
    batches = DataLoader(photos, BATCH, shuffle=True)
    _seconds(batches)
    return len(photos) * passes / sum(_seconds(batches) for _ in range(passes))


def decoded_photos(folder: str, passes: int) -> float:
    """libjpeg through torchvision; the files must all be JPEG."""
    paths = [str(path) for path in sorted(Path(folder).glob("*/*"))]
    times = [(decode_jpeg(read_file(path), ImageReadMode.RGB) for path in paths) for _ in range(1 + passes)]
    _seconds(times[0])
    return len(paths) * passes / sum(_seconds(photos) for photos in times[1:])


def _seconds(batches: Iterable[object]) -> float:
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start
