"""Four ways to train on CIFAR-10, each timed: the bare step, `src.train` and two conventional ones.

Each `*_speed` function takes the name of a net, the precision and the number of timed iterations,
and returns images per second at a batch of 128. Each needs a process of its own, because it changes
process-wide settings.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision import datasets, transforms

from src import train
from src.config import compose_config, find_run_dir
from src.runs.environment import keep_freed_memory
from src.training.cuda_graph import CUDAGraphStep
from src.training.precision import resolve_precision

BATCH_SIZE = 128
WARM_UP = 10  # iterations before the clock starts, at most
DATA_ROOT = "data"  # holds cifar-10-batches-py
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NATIVE = resolve_precision("auto", "auto")  # the default precision of src.train on this machine
PRECISIONS = tuple(dict.fromkeys((NATIVE, "32-true")))  # each once
CHANNEL_MEAN, CHANNEL_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PAPER_SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)


def make_net(net: str) -> nn.Module:
    """Return the net `model=NET`, on the device."""
    return instantiate(compose_config(f"model={net}").model, _convert_="all").to(DEVICE)


class Clock:
    """Times `iterations` iterations after a warm-up.

    Attributes:
        total: iterations until the clock stops, with those of the warm-up.
        seconds: what the timed iterations took, once the clock has stopped.
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self.total = iterations + min(WARM_UP, iterations)
        self.ticks = 0
        self.started = self.seconds = 0.0

    def tick(self) -> bool:
        """Count one iteration; return whether the clock has stopped."""
        self.ticks += 1
        if self.ticks == self.total - self.iterations:
            self.started = _now()
        elif self.ticks == self.total:
            self.seconds = _now() - self.started
        return self.ticks >= self.total

    @property
    def images_per_second(self) -> float:
        """Speed of the timed iterations."""
        return self.iterations * BATCH_SIZE / self.seconds


def _now() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()  # kernels run asynchronously: wait until they are done
    return time.perf_counter()


class TickCallback(pl.Callback):
    """Counts the training iterations of a Lightning run on a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: object) -> None:
        """Count one iteration."""
        self.clock.tick()


def make_bare_step(
    net: str, precision: str, cuda_graph: bool = False, activation_checkpointing: bool = False
) -> Callable[[], None]:
    """Return the training step alone, on one batch that is already on the device."""
    model = make_net(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.activation_checkpointing = activation_checkpointing
    torch.backends.cudnn.benchmark = True

    lr = torch.tensor(0.1, device=DEVICE)  # a tensor, because a CUDA graph reads it from memory
    optimizer = PAPER_SGD(model.parameters(), lr=lr, fused=True)
    images = torch.randn(BATCH_SIZE, 3, 32, 32, device=DEVICE)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH_SIZE,), device=DEVICE)

    def step() -> None:
        with autocast(precision):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return CUDAGraphStep(step) if cuda_graph else step


def autocast(precision: str) -> torch.autocast:
    """Return the autocast context of a precision: bf16 for `bf16-mixed`, otherwise none."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def bare_step_speed(net: str, precision: str, iterations: int) -> float:
    """Time the bare step, as a CUDA graph on a GPU: about the limit of what a trainer can reach."""
    keep_freed_memory()
    step = make_bare_step(net, precision, cuda_graph=DEVICE.type == "cuda")
    clock = Clock(iterations)
    while not clock.tick():
        step()
    return clock.images_per_second


def src_train_speed(net: str, precision: str, iterations: int, compile_mode: str = "auto") -> float:
    """Time a complete run of `src.train`, with its data, metrics and checkpoints."""
    overrides = (f"model={net}", "data=cifar10", f"data.root={DATA_ROOT}")
    settings = (f"trainer.precision={precision}", f"compile={compile_mode}")
    return time_run(iterations, *overrides, *settings).images_per_second


def time_run(iterations: int, *overrides: str) -> Clock:
    """Time a run of `src.train` with these overrides, in a temporary directory."""
    clock = Clock(iterations)
    # One iteration more than the clock counts: an evaluation follows the last one, untimed.
    length = (f"recipe.iterations={clock.total + 1}", f"recipe.eval_every={clock.total + 1}")
    with tempfile.TemporaryDirectory() as output_dir:
        config = compose_config(f"output_dir={output_dir}", *overrides, *length)
        train.run(find_run_dir(config), callbacks=[TickCallback(clock)])
    return clock


def conventional_loader(training: bool = True) -> DataLoader:
    """Return the usual input pipeline: torchvision's transforms, image by image, in two workers."""
    steps = [transforms.ToTensor(), transforms.Normalize(CHANNEL_MEAN, CHANNEL_STD)]
    if training:
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *steps]
    return DataLoader(
        datasets.CIFAR10(DATA_ROOT, training, transforms.Compose(steps)),
        BATCH_SIZE,
        shuffle=training,
        num_workers=2,
        pin_memory=DEVICE.type == "cuda",
        drop_last=training,
    )


def endless(loader: DataLoader) -> Iterator[Any]:
    """Yield the batches of one epoch after the other."""
    while True:
        yield from loader


def plain_loop_speed(net: str, precision: str, iterations: int) -> float:
    """Time the usual training loop, with `.item()` on loss and accuracy at each step."""
    model, clock = make_net(net), Clock(iterations)
    optimizer = PAPER_SGD(model.parameters())
    total_loss, correct = 0.0, 0

    for images, labels in endless(conventional_loader()):
        images = images.to(DEVICE, non_blocking=True)
        labels = labels.to(DEVICE, non_blocking=True)
        with autocast(precision):
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total_loss += loss.item()
        correct += (logits.argmax(1) == labels).sum().item()
        if clock.tick():
            break
    return clock.images_per_second


class ConventionalModule(pl.LightningModule):
    """The usual LightningModule, with `self.log` and torchmetrics at each step."""

    def __init__(self, net: str) -> None:
        super().__init__()
        self.model = make_net(net)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Compute and log the loss and the accuracy of a batch."""
        images, labels = batch
        logits = self.model(images)
        loss, accuracy = F.cross_entropy(logits, labels), self.accuracy(logits, labels)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train/accuracy", accuracy, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD as in the paper."""
        return PAPER_SGD(self.parameters())


def lightning_module_speed(net: str, precision: str, iterations: int) -> float:
    """Time Lightning's Trainer as it comes, with its progress bar, logger and checkpoints."""
    clock = Clock(iterations)
    with tempfile.TemporaryDirectory() as root:
        trainer = pl.Trainer(
            max_steps=clock.total,
            precision=precision,  # type: ignore[arg-type]
            default_root_dir=root,
            devices=1,
            callbacks=[TickCallback(clock)],
        )
        trainer.fit(ConventionalModule(net), conventional_loader())
    return clock.images_per_second
