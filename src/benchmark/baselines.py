"""Four ways to train on CIFAR-10, each timed: the bare step, `src.train` and two conventional ones.

Each `*_speed` function takes the name of a net, the precision and the number of timed iterations,
and returns images per second. Each needs a process of its own, because it changes process-wide
settings.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import repeat

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from src import train
from src.benchmark.clock import BATCH_SIZE, DEVICE, Clock
from src.benchmark.pipelines import CIFAR10, conventional_batches, conventional_loader
from src.config import compose_config, find_run_dir
from src.runs.environment import keep_freed_memory
from src.training.cuda_graph import CUDAGraphStep
from src.training.precision import resolve_precision

NATIVE = resolve_precision("auto", "auto")  # the default precision of src.train on this machine
PRECISIONS = tuple(dict.fromkeys((NATIVE, "32-true")))  # each once
PAPER_SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)


def make_net(net: str) -> nn.Module:
    """Return the net `model=NET`, on the device."""
    return instantiate(compose_config(f"model={net}").model, _convert_="all").to(DEVICE)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    precision: str = "32-true",
) -> tuple[Tensor, Tensor]:
    """Train on a batch, with autocast to bf16 at `bf16-mixed`; return the loss and the scores."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        scores = model(images)
        loss = F.cross_entropy(scores, labels)
    # Only now, as in src.train and usual: in the forward pass the old gradients take memory, too.
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss, scores


def make_bare_step(
    net: str, precision: str, activation_checkpointing: bool = False
) -> Callable[[], object]:
    """Return the training step alone, on one batch that is already on the device."""
    model = make_net(net).to(memory_format=torch.channels_last)
    model.activation_checkpointing = activation_checkpointing  # type: ignore[assignment]
    torch.backends.cudnn.benchmark = True

    lr = torch.tensor(0.1, device=DEVICE)  # a tensor, because a CUDA graph reads it from memory
    optimizer = PAPER_SGD(model.parameters(), lr=lr, fused=True)
    images = torch.randn(BATCH_SIZE, 3, 32, 32, device=DEVICE)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH_SIZE,), device=DEVICE)

    return partial(train_step, model, optimizer, images, labels, precision)


def bare_step_speed(net: str, precision: str, iterations: int) -> float:
    """Time the bare step, on a GPU as a CUDA graph: the limit without a compiler."""
    keep_freed_memory()
    step = make_bare_step(net, precision)
    if DEVICE.type == "cuda":
        step = CUDAGraphStep(step)
    clock = Clock(iterations)
    for _ in clock.timed(repeat(None)):
        step()
    return clock.images_per_second


def src_train_speed(net: str, precision: str, iterations: int, compile_mode: str = "auto") -> float:
    """Time a complete run of `src.train`, with its data, metrics and checkpoints."""
    settings = (f"model={net}", f"trainer.precision={precision}", f"compile={compile_mode}")
    return time_run(iterations, *CIFAR10, *settings).images_per_second


def time_run(iterations: int, *overrides: str) -> Clock:
    """Time a run of `src.train` with these overrides, in a temporary directory."""
    clock = Clock(iterations)
    # One iteration more than the clock counts: an evaluation follows the last one, untimed.
    length = (f"recipe.iterations={clock.total + 1}", f"recipe.eval_every={clock.total + 1}")
    with tempfile.TemporaryDirectory() as output_dir:
        config = compose_config(f"output_dir={output_dir}", *overrides, *length)
        train.run(find_run_dir(config), callbacks=[clock])
    return clock


def plain_loop_speed(net: str, precision: str, iterations: int) -> float:
    """Time the usual training loop, with `.item()` on loss and accuracy at each step."""
    model, clock = make_net(net), Clock(iterations)
    optimizer = PAPER_SGD(model.parameters())
    total_loss, correct = 0.0, 0

    for images, labels in clock.timed(conventional_batches()):
        loss, scores = train_step(model, optimizer, images, labels, precision)
        # Each of the two waits for the device, which is what this loop is measured for.
        total_loss += loss.item()
        correct += (scores.argmax(1) == labels).sum().item()
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
            plugins=[LightningEnvironment()],  # as in `src_train_batches`
            callbacks=[clock],
        )
        trainer.fit(ConventionalModule(net), conventional_loader())
    return clock.images_per_second
