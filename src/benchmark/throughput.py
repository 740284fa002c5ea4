"""What `python -m src.benchmark` measures of speed; each function gives rows of results."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional as F

from src.benchmark import baselines
from src.benchmark.baselines import (
    BATCH,
    DEVICE,
    Clock,
    bare,
    compose_run,
    conventional,
    lightning,
    make_net,
    ours,
)
from src.benchmark.runner import NATIVE, PRECISIONS, Task, for_net, in_turns, rows
from src.tables import Row

PHOTOS = "data/imagenet/train"


def step(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Training: the bare step, which is the limit, src.train, and what people usually write."""
    subjects = {"bare step": bare, "src.train": ours, "plain loop": conventional, "Lightning module": lightning}
    values = {}
    for net in nets:
        count = for_net(iterations, net)
        tasks: dict[Any, Task] = {(net, s, p): (f, (net, p, count)) for p in PRECISIONS for s, f in subjects.items()}
        if DEVICE.type == "cuda":
            tasks |= {
                (net, f"src.train compile={s}", NATIVE): (ours, (net, NATIVE, count, s)) for s in ("none", "inductor")
            }
        values |= in_turns(tasks, repeats)
    equal = rows("step, at equal precision", values, "images/s", lambda name: (name[0], "src.train", name[2]))
    ours_or_bare = {"bare step", "src.train"}
    own = {n: v for n, v in values.items() if n[2] == (NATIVE if n[1] in ours_or_bare else "32-true")}
    return equal + rows("step, each at its default", own, "images/s", lambda name: (name[0], "src.train", NATIVE))


class Tiny(nn.Module):
    """A net too small to matter."""

    depth, activation_checkpointing = 1, False

    def __init__(self, num_classes: int, **_: object) -> None:
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


TINY = ("data=digits", f"model._target_={__name__}.Tiny", "trainer.precision=32-true", "recipe.log_every=100")


def _plain_tiny(iterations: int) -> float:
    config, clock = compose_run(*TINY), Clock(iterations)
    data = instantiate(config.data, seed=0, batch_size=BATCH, iterations=clock.ticks, _convert_="all")
    data.setup()
    net = Tiny(10).to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    for images, labels in data.train_dataloader():
        loss = F.cross_entropy(net(images.to(DEVICE)), labels.to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.tick()
    return 1e6 * clock.seconds / iterations


def _our_tiny(iterations: int) -> float:
    return 1e6 * baselines.time_run(iterations, *TINY).seconds / iterations


def overhead(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Microseconds that an iteration of src.train costs above a plain loop on the same stream."""
    count = 40 * iterations
    tasks = {"plain": (_plain_tiny, (count,)), "ours": (_our_tiny, (count,))}
    values = in_turns(tasks, repeats)
    above = [a - b for a, b in zip(values["ours"], values["plain"], strict=True)]
    subjects = {"plain loop": values["plain"], "src.train": values["ours"], "src.train above the plain loop": above}
    return rows("overhead", {("too small to matter", s, "32-true"): v for s, v in subjects.items()}, "us/iteration")


def _our_data(iterations: int) -> float:
    config, clock = compose_run("data=cifar10", f"data.root={baselines.ROOT}"), Clock(iterations)
    data = instantiate(config.data, seed=0, batch_size=BATCH, iterations=clock.ticks, _convert_="all")
    data.setup()
    for _ in data.train_dataloader():
        clock.tick()
    return clock.images_per_second


def _conventional_data(iterations: int) -> float:
    clock = Clock(iterations)
    for images, labels in baselines.endless(baselines.conventional_batches()):
        images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
        if clock.tick():
            return clock.images_per_second
    raise AssertionError


def data(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """The input pipelines alone; those of photos in one process, where data/imagenet/train has some."""
    tasks = {"src.train": (_our_data, (4 * iterations,)), "plain loop": (_conventional_data, (4 * iterations,))}
    values = {("cifar10", s, ""): v for s, v in in_turns(tasks, repeats).items()}
    if Path(PHOTOS).is_dir():
        from src.benchmark.photos import decoded_photos, training_photos, usual_photos

        for crop in ("scale", "area"):
            tasks = {
                "src.train": (training_photos, (PHOTOS, crop, 3)),
                "torchvision's transforms": (usual_photos, (PHOTOS, crop, 3)),
                "decoding alone": (decoded_photos, (PHOTOS, 3)),
            }
            values |= {(f"photos, crop={crop}", s, ""): v for s, v in in_turns(tasks, repeats).items()}
    return rows("data", values, "images/s", lambda name: (name[0], "src.train", ""))


def _our_test(net: str, precision: str) -> float:
    from pytorch_lightning import Trainer

    from src.tasks.classification import Classifier

    images = instantiate(compose_run("data=cifar10", f"data.root={baselines.ROOT}").data, seed=0, _convert_="all")
    images.setup()
    trainer = Trainer(precision=precision, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    classifier = Classifier(make_net(net))
    seconds = []
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        trainer.test(classifier, datamodule=images, verbose=False)
        classifier.pop_eval_errors()
        seconds.append(time.perf_counter() - start)
    return 10_000 / seconds[-1]


def _conventional_test(net: str, precision: str) -> float:
    model, loader = make_net(net).eval(), baselines.conventional_batches(train=False)
    for _ in range(2):
        start, correct = time.perf_counter(), 0
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            for images, labels in loader:
                correct += (model(images.to(DEVICE)).argmax(1) == labels.to(DEVICE)).sum().item()
        seconds = time.perf_counter() - start
    return 10_000 / seconds


def eval(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Testing the 10,000 images of CIFAR-10, each at its default precision."""
    net = nets[0]
    tasks = {
        (net, "src.train", NATIVE): (_our_test, (net, NATIVE)),
        (net, "plain loop", "32-true"): (_conventional_test, (net, "32-true")),
    }
    return rows("eval", in_turns(tasks, repeats), "images/s", lambda _: (net, "src.train", NATIVE))


def deterministic(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """What equal bits cost src.train: images per second by its key trainer.deterministic."""
    net, count = nets[0], for_net(iterations, nets[0])
    tasks: dict[Any, Task] = {
        (net, f"src.train trainer.deterministic={word}", NATIVE): (ours, (net, NATIVE, count, "auto", word))
        for word in ("false", "warn", "true")
    }
    return rows("deterministic", in_turns(tasks, repeats), "images/s", lambda _: next(iter(tasks)))


def _seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - start


def _first_iteration() -> float:
    with tempfile.TemporaryDirectory() as runs:
        start = time.perf_counter()
        command = [sys.executable, "-m", "src.train", f"output_dir={runs}", "recipe.log_every=1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list(Path(runs).rglob("metrics.csv")):
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        process.kill()
        process.wait()
    return seconds


def start(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Seconds until something happens."""
    tasks: dict[Any, Task] = {
        ("", "--help", ""): (_seconds, ("-m", "src.train", "--help")),
        ("", "import torch and Lightning", ""): (_seconds, ("-c", "import torch, pytorch_lightning")),
        ("resnet20", "command to first iteration", ""): (_first_iteration, ()),
    }
    return rows("start", in_turns(tasks, repeats), "s")
