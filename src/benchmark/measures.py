"""What `python -m src.benchmark` measures; each function gives rows of results.

A measurement has a process to itself. Those that are compared take turns, several times over; a value is the median,
and a ratio the median of the ratios within a turn, as the speed of a shared machine drifts.
"""

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional as F

from src.benchmark import loops
from src.benchmark.loops import BATCH, DEVICE, Clock, bare, compose_run, conventional, lightning, make_net, ours
from src.command_line import CONF
from src.hardware import resolve_precision
from src.report.results import Row

Task = tuple[Callable[..., float], tuple[Any, ...]]
NATIVE = resolve_precision("auto", "auto")
PRECISIONS = sorted({NATIVE, "32-true"}, reverse=True)


def in_turns(tasks: dict[Any, Task], repeats: int) -> dict[Any, list[float]]:
    """Runs each task `repeats` times, one after the other in turn, each in a fresh process."""
    values: dict[Any, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, (function, arguments) in tasks.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                values[name].append(process.submit(_run, function, arguments).result())
    return values


def _run(function: Callable[..., float], arguments: tuple[Any, ...]) -> float:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return function(*arguments)


def rows(
    measure: str, values: dict[Any, list[float]], unit: str, ours_is: Callable[[Any], Any] | None = None
) -> list[Row]:
    """A row for each (net, subject, precision); `ours_is` names the measurement that each is compared with."""
    result = []
    for name, own in values.items():
        ratio = ""
        if ours_is and ours_is(name) in values:
            ratio = round(median(a / b for a, b in zip(values[ours_is(name)], own, strict=True)), 3)
        net, subject, precision = name
        result.append(
            {"measure": measure, "net": net, "subject": subject, "precision": precision, "value": round(median(own), 3)}
            | {"unit": unit, "src.train / this": ratio, "repeats": len(own)}
        )
    return result


def step(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Training: the bare step, which is the limit, src.train, and what people usually write."""
    subjects = {"bare step": bare, "src.train": ours, "plain loop": conventional, "Lightning module": lightning}
    values = {}
    for net in nets:
        count = max(4, round(iterations * 20 / int(net.removeprefix("resnet"))))
        tasks = {(net, s, p): (f, (net, p, count)) for p in PRECISIONS for s, f in subjects.items()}
        values |= in_turns(tasks, repeats)
    equal = rows("step, at equal precision", values, "images/s", lambda name: (name[0], "src.train", name[2]))
    own = {n: v for n, v in values.items() if n[2] == (NATIVE if n[1] in ("bare step", "src.train") else "32-true")}
    return equal + rows("step, each at its default", own, "images/s", lambda name: (name[0], "src.train", NATIVE))


class Tiny(nn.Module):
    """A net too small to matter."""

    depth, recompute = 1, False

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
    return 1e6 * loops.time_run(iterations, *TINY).seconds / iterations


def overhead(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Microseconds that an iteration of src.train costs above a plain loop on the same stream."""
    count = 40 * iterations
    tasks = {"plain": (_plain_tiny, (count,)), "ours": (_our_tiny, (count,))}
    values = in_turns(tasks, repeats)
    above = [a - b for a, b in zip(values["ours"], values["plain"], strict=True)]
    subjects = {"plain loop": values["plain"], "src.train": values["ours"], "src.train above the plain loop": above}
    return rows("overhead", {("too small to matter", s, "32-true"): v for s, v in subjects.items()}, "us/iteration")


def _our_data(iterations: int) -> float:
    config, clock = compose_run("data=cifar10", f"data.root={loops.ROOT}"), Clock(iterations)
    data = instantiate(config.data, seed=0, batch_size=BATCH, iterations=clock.ticks, _convert_="all")
    data.setup()
    for _ in data.train_dataloader():
        clock.tick()
    return clock.images_per_second


def _conventional_data(iterations: int) -> float:
    clock = Clock(iterations)
    for images, labels in loops.endless(loops.conventional_batches()):
        images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
        if clock.tick():
            return clock.images_per_second
    raise AssertionError


def data(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """The input pipelines alone."""
    tasks = {"src.train": (_our_data, (4 * iterations,)), "plain loop": (_conventional_data, (4 * iterations,))}
    values = {("cifar10", s, ""): v for s, v in in_turns(tasks, repeats).items()}
    return rows("data", values, "images/s", lambda _: ("cifar10", "src.train", ""))


def _our_test(net: str, precision: str) -> float:
    from pytorch_lightning import Trainer

    from src.classifier import Classifier

    images = instantiate(compose_run("data=cifar10", f"data.root={loops.ROOT}").data, seed=0, _convert_="all")
    images.setup()
    trainer = Trainer(precision=precision, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    classifier = Classifier(make_net(net))
    seconds = []
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        trainer.test(classifier, datamodule=images, verbose=False)
        classifier.take_test_errors()
        seconds.append(time.perf_counter() - start)
    return 10_000 / seconds[-1]


def _conventional_test(net: str, precision: str) -> float:
    model, loader = make_net(net).eval(), loops.conventional_batches(train=False)
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


def _seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - start


def _first_iteration() -> float:
    with tempfile.TemporaryDirectory() as runs:
        start = time.perf_counter()
        command = [sys.executable, "-m", "src.train", f"runs={runs}", "recipe.log_every=1"]
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


def _peak(net: str, precision: str, recompute: bool) -> float:
    step = loops.bare_step(net, precision, recompute)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def memory(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Peak memory of a training step at batch 128; on a CPU, what the process grows by."""
    tasks = {
        (net, "recompute=true" if recompute else "recompute=false", p): (_peak, (net, p, recompute))
        for net in ("resnet110", "resnet1202")
        for p in PRECISIONS
        for recompute in (False, True)
    }
    return rows("memory", in_turns(tasks, 1), "GiB")


def _per_multiply_add(net: str, count: int) -> float:
    from src.models.count import multiply_adds

    speed = bare(net, NATIVE, count)
    return 1e12 / (speed * multiply_adds(make_net(net), (3, 32, 32)))


def scale(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Picoseconds of a bare step per multiply-add and image: the same for each n if cost grows as they do."""
    depths = (20, 32, 44, 56, 110, 1202)
    tasks = {
        (f"resnet{d}", "bare step", NATIVE): (_per_multiply_add, (f"resnet{d}", max(3, round(iterations * 20 / d))))
        for d in depths
    }
    return rows("scale", in_turns(tasks, repeats), "ps/multiply-add")


MEASURES = {function.__name__: function for function in (step, overhead, data, eval, start, memory, scale)}
