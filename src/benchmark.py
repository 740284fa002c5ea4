"""Images per second, side by side: `python -m src.benchmark -o experiments/speed.csv`.

Each implementation trains the same net on CIFAR-10 in turn, several times over, each time in a process of its own;
the numbers are medians, and the ratio is the median of the ratios within each turn, as the speed of a shared
machine drifts.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from src import record, train
from src.command_line import CONF
from src.hardware import device_name, git_commit, resolve_precision, versions
from src.report.results import write_csv

BATCH = 128
WARM_UP = 10  # iterations before the clock starts


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compose_run(*overrides: str) -> DictConfig:
    """A config of `src.train`, composed as its command line does."""
    config = compose("train", [*overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


def ours(net: str, root: str, iterations: int, precision: str) -> float:
    """`src.train` itself, everything on, at steady state; images per second."""
    marks: dict[int, float] = {}

    class Timed(record.Record):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, *args)
            if trainer.global_step in (WARM_UP, WARM_UP + iterations):
                synchronize()
                marks[trainer.global_step] = time.perf_counter()

    runs = tempfile.mkdtemp()
    original, record.Record = record.Record, Timed
    try:
        length = f"recipe.iterations={WARM_UP + iterations + 1}"  # the last one is evaluated, off the clock
        where = (f"data.root={root}", f"runs={runs}", f"trainer.precision={precision}")
        train.run(train.find_folder(compose_run(f"model={net}", "data=cifar10", length, *where)))
    finally:
        record.Record = original
        shutil.rmtree(runs)
    return iterations * BATCH / (marks[WARM_UP + iterations] - marks[WARM_UP])


def conventional(net: str, root: str, iterations: int, precision: str) -> float:
    """The loop people write: torchvision's transforms, a DataLoader with two workers, `.item()` at each step."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps.append(transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    dataset = datasets.CIFAR10(root, transform=transforms.Compose(steps))
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=2, pin_memory=device.type == "cuda", drop_last=True)
    model = instantiate(compose_run(f"model={net}").model, _convert_="all").to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    done, running, correct = 0, 0.0, 0
    while True:
        for images, labels in loader:
            if done == WARM_UP:
                synchronize()
                start = time.perf_counter()
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with bf16:
                logits = model(images)
                loss = torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running += loss.item()
            correct += (logits.argmax(1) == labels).sum().item()
            done += 1
            if done == WARM_UP + iterations:
                synchronize()
                return iterations * BATCH / (time.perf_counter() - start)


IMPLEMENTATIONS: dict[str, tuple[Callable[[str, str, int, str], float], str]] = {
    "src.train": (ours, "auto"),
    "conventional loop": (conventional, "32-true"),
}


def run_one(name: str, net: str, root: str, iterations: int) -> float:
    """One measurement, in the process it has to itself."""
    implementation, precision = IMPLEMENTATIONS[name]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return implementation(net, root, iterations, precision)


def measure(net: str, root: str, iterations: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each implementation, each at its own default precision."""
    speeds: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
    for _ in range(repeats):
        for name in IMPLEMENTATIONS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                speeds[name].append(process.submit(run_one, name, net, root, iterations).result())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [
        {
            "measure": "step",
            "net": net,
            "implementation": name,
            "precision": resolve_precision(precision, "auto"),
            "images_per_second": round(median(speeds[name]), 1),
            "src.train / this": round(median(a / b for a, b in zip(speeds["src.train"], speeds[name], strict=True)), 2),
            "iterations": iterations,
            "repeats": repeats,
            "device": device_name(device),
            "versions": " ".join(f"{package}={version}" for package, version in versions().items()),
            "git_commit": git_commit(),
            "date": datetime.now(UTC).date().isoformat(),
        }
        for name, (_, precision) in IMPLEMENTATIONS.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m src.benchmark", description=__doc__)
    parser.add_argument("--net", default="resnet20", help="a net of conf/model (default: resnet20)")
    parser.add_argument("--root", default="data", help="holds cifar-10-batches-py (default: data)")
    parser.add_argument("--iterations", type=int, default=60, help="per measurement (default: 60)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default: 3)")
    parser.add_argument("-o", dest="out", type=Path, help="a CSV file to write")
    options = parser.parse_args()
    rows = measure(options.net, options.root, options.iterations, options.repeats)
    for row in rows:
        print(*(f"{key}={row[key]}" for key in list(row)[:6]), sep="  ")
    if options.out:
        write_csv(options.out, rows)


if __name__ == "__main__":
    main()
