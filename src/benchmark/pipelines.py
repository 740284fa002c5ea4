"""Input pipelines: training batches on the device, made by `src.train` and in the usual ways."""

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from src.benchmark.clock import BATCH_SIZE, DEVICE, Clock
from src.benchmark.runner import Case, Task, make_rows, run_rounds
from src.config import compose_config
from src.data.imagenet import MEAN, STD
from src.data.jpeg import decode_rgb
from src.data.sampler import Batch
from src.data.transforms import CROP_SIZE
from src.runs.environment import keep_freed_memory
from src.tables import Row

DATA_ROOT = "data"  # holds cifar-10-batches-py
CIFAR10 = ("data=cifar10", f"data.root={DATA_ROOT}")
CHANNEL_MEAN, CHANNEL_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Holds a directory of JPEG files for each class; src.train also needs val/ next to it.
IMAGENET_TRAIN = Path("data/imagenet/train")
# Without worker processes, and with the augmentation that torchvision has, too.
IMAGENET = (
    "data=imagenet",
    f"data.root={IMAGENET_TRAIN.parent}",
    "data.num_workers=0",
    "data.crop=area",
    "data.color_noise=0",
    "data.normalization=channel",
)


def measure_data(options: Namespace) -> list[Row]:
    """Measure input pipelines: CIFAR-10, and ImageNet in one process if it is in data/imagenet."""
    cifar10 = partial(pipeline_speed, 4 * options.iterations)
    tasks: dict[Case, Task] = {
        ("cifar10", "src.train", ""): partial(cifar10, src_train_batches, *CIFAR10),
        ("cifar10", "plain loop", ""): partial(cifar10, conventional_batches),
    }
    if IMAGENET_TRAIN.is_dir():
        # Fewer, because an image takes a hundred times as long.
        imagenet = partial(pipeline_speed, math.ceil(options.iterations / 4))
        tasks |= {
            ("imagenet", "src.train", ""): partial(imagenet, src_train_batches, *IMAGENET),
            ("imagenet", "torchvision's transforms", ""): partial(imagenet, imagenet_batches),
            ("imagenet", "decoding alone", ""): partial(imagenet, decoded_batches),
        }
    return make_rows("data", run_rounds(tasks, options.repeats), "images/s")


def pipeline_speed(
    iterations: int, make_batches: Callable[..., Iterable[object]], *arguments: str
) -> float:
    """Time the batches that `make_batches(*arguments)` yields."""
    clock = Clock(iterations)
    for _ in clock.timed(make_batches(*arguments)):
        pass  # making them takes the time
    return clock.images_per_second


def src_train_batches(*overrides: str) -> Iterator[Batch]:
    """Yield the training batches of `src.train` with these overrides, on the device."""
    keep_freed_memory()
    stream = {"seed": 0, "batch_size": BATCH_SIZE, "iterations": 10**9}  # more than are timed
    data = instantiate(compose_config(*overrides).data, **stream, _convert_="all")
    # The data ask it for the device; without a trainer they make their batches on the CPU. The
    # environment is named because Lightning's search for one imports mpi4py, which may hang.
    data.trainer = Trainer(
        devices=1, plugins=[LightningEnvironment()], logger=False, enable_checkpointing=False
    )
    data.setup()
    for batch in data.train_dataloader():
        batch = data.transfer_batch_to_device(batch, DEVICE, 0)
        batch = data.on_after_batch_transfer(batch, 0)  # normalizes images of ImageNet
        yield data.augment(*batch)


def conventional_loader() -> DataLoader:
    """Return the usual input of CIFAR-10: torchvision's transforms, in two worker processes."""
    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    normalize = transforms.Normalize(CHANNEL_MEAN, CHANNEL_STD)
    steps = transforms.Compose([*crop, transforms.ToTensor(), normalize])
    return DataLoader(
        datasets.CIFAR10(DATA_ROOT, transform=steps),
        BATCH_SIZE,
        shuffle=True,
        num_workers=2,
        pin_memory=DEVICE.type == "cuda",
        drop_last=True,
    )


def conventional_batches() -> Iterator[Batch]:
    """Yield the training batches of `conventional_loader`."""
    return _endless(conventional_loader())


def imagenet_batches() -> Iterator[Batch]:
    """Yield the usual training batches of ImageNet: torchvision's transforms of PIL images."""
    crop = [transforms.RandomResizedCrop(CROP_SIZE), transforms.RandomHorizontalFlip()]
    steps = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    images = datasets.ImageFolder(str(IMAGENET_TRAIN), steps)
    return _endless(DataLoader(images, BATCH_SIZE, shuffle=True))


def _endless(loader: DataLoader) -> Iterator[Batch]:
    """Yield the batches of one epoch after the other, moved to the device."""
    while True:
        for images, labels in loader:
            yield images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)


def decoded_batches() -> Iterator[list[Tensor]]:
    """Yield decoded images, nothing else: the limit. All files must be JPEG."""
    files = cycle(IMAGENET_TRAIN.glob("*/*"))
    while True:
        paths = islice(files, BATCH_SIZE)
        yield [decode_rgb(np.fromfile(path, np.uint8)) for path in paths]
