"""Four ways to train a net on CIFAR-10, each timed at steady state: images per second.

All take the net's name, the precision and the number of timed iterations, at a batch of 128; each is meant to have a
process to itself.
"""

import io
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from src.training.cuda_graph import CUDAGraphStep, resolve_compile

BATCH = 128
WARM_UP = 10  # iterations before the clock starts, at most
ROOT = "data"  # holds cifar-10-batches-py
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compose_run(*overrides: str) -> DictConfig:
    """A config of `src.train`, composed as its command line does."""
    config = compose("train", [*overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


def make_net(net: str) -> nn.Module:
    return instantiate(compose_run(f"model={net}").model, _convert_="all").to(DEVICE)


class Clock:
    """Starts after some ticks of warm-up and stops after `iterations` more, when the device has done its work."""

    def __init__(self, iterations: int) -> None:
        self.iterations, self.started = iterations, 0.0
        self.left = self.ticks = iterations + min(WARM_UP, iterations)

    def tick(self) -> bool:
        """ErrorMeter one iteration; True when the last was."""
        self.left -= 1
        if self.left in (0, self.iterations):
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.seconds, self.started = now - self.started, now
        return self.left <= 0

    @property
    def images_per_second(self) -> float:
        return self.iterations * BATCH / self.seconds


def bare_step(
    net: str, precision: str, step: str = "none", activation_checkpointing: bool = False
) -> Callable[[], None]:
    """The training step alone, as fast as we know to make it, on one batch that is already on the device."""
    model = make_net(net).to(memory_format=torch.channels_last)
    model.activation_checkpointing = activation_checkpointing
    torch.backends.cudnn.benchmark = True
    rate = torch.tensor(0.1, device=DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4, fused=True)
    images = torch.randn(BATCH, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,), device=DEVICE)

    def one() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return CUDAGraphStep(one) if step == "cudagraph" else one


def bare(net: str, precision: str, iterations: int) -> float:
    """`bare_step`, captured on a GPU, which is the limit of what a trainer can reach."""
    from src.runs.environment import keep_freed_memory

    keep_freed_memory()
    step, clock = bare_step(net, precision, resolve_compile("auto", DEVICE, 1)), Clock(iterations)
    while not clock.tick():
        step()
    return clock.images_per_second


def ours(net: str, precision: str, iterations: int, step: str = "auto", deterministic: str = "false") -> float:
    """`src.train` itself, everything on."""
    how = (
        f"data.root={ROOT}",
        f"trainer.precision={precision}",
        f"compile={step}",
        f"trainer.deterministic={deterministic}",
    )
    return time_run(iterations, f"model={net}", "data=cifar10", *how).images_per_second


def time_run(iterations: int, *overrides: str) -> Clock:
    """Times iterations of a run of `src.train`, with its progress bar on though there is no terminal."""
    from src import train
    from src.training.callbacks import record

    clock, runs = Clock(iterations), tempfile.mkdtemp()

    class Timed(record.Record):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, *args)
            clock.tick()

    class Bar(record.tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options | {"disable": False, "file": io.StringIO()})

    record.Record, record.tqdm = Timed, Bar
    # The last iteration is evaluated, off the clock.
    length = (f"recipe.iterations={clock.ticks + 1}", f"recipe.eval_every={clock.ticks + 1}")
    train.run(train.find_run_dir(compose_run(f"output_dir={runs}", *overrides, *length)))
    shutil.rmtree(runs)
    return clock


def conventional_batches(train: bool = True) -> DataLoader:
    """torchvision's transforms, image by image, in two workers."""
    from torchvision import datasets, transforms

    steps = [transforms.ToTensor(), transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))]
    if train:
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *steps]
    dataset = datasets.CIFAR10(ROOT, train, transforms.Compose(steps))
    return DataLoader(dataset, BATCH, shuffle=train, num_workers=2, pin_memory=DEVICE.type == "cuda", drop_last=train)


def conventional(net: str, precision: str, iterations: int) -> float:
    """The loop people write: `conventional_batches`, `.item()` at each step."""
    model, loader = make_net(net), conventional_batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    clock, running, correct = Clock(iterations), 0.0, 0
    for images, labels in endless(loader):
        images, labels = images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running += loss.item()
        correct += (logits.argmax(1) == labels).sum().item()
        if clock.tick():
            return clock.images_per_second
    raise AssertionError


def lightning(net: str, precision: str, iterations: int) -> float:
    """The LightningModule people write: `self.log` and torchmetrics at each step, the progress bar on."""
    import pytorch_lightning as pl
    from torchmetrics.classification import MulticlassAccuracy

    clock = Clock(iterations)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.accuracy = make_net(net), MulticlassAccuracy(10, average="micro")

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            images, labels = batch
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
            self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            self.log("train/accuracy", self.accuracy(logits, labels), on_step=True, on_epoch=True, prog_bar=True)
            return loss

        def on_train_batch_end(self, *_: object) -> None:
            clock.tick()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    root = tempfile.mkdtemp()
    trainer = pl.Trainer(max_steps=clock.ticks, precision=precision, default_root_dir=root, devices=1)
    trainer.fit(Module(), conventional_batches())
    shutil.rmtree(root)
    return clock.images_per_second


def endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader
