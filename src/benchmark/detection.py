"""Speed of training and evaluating a detector, next to a loop as torchvision's reference has it."""

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.benchmark.baselines import NATIVE, PRECISIONS, make_net, time_run
from src.benchmark.clock import DEVICE, Clock
from src.benchmark.runner import Case, Task, make_rows, run_rounds, scaled_iterations
from src.config import compose_config, find_run_dir, to_dict
from src.data.examples import ObjectBatch
from src.data.object_data import ObjectData
from src.tables import Row
from src.tasks.faster_rcnn import make_faster_rcnn
from src.training.build import build
from src.training.trainer import make_trainer

DETECTION = ("task=detection", "data=scenes")
NET = "resnet20"
Objects = dict[str, Tensor]


def measure_detection(options: Namespace) -> list[Row]:
    """Measure a detector on scenes: training and evaluation, next to torchvision's reference."""
    iterations = scaled_iterations(options.iterations, NET)
    tasks: dict[Case, Task] = {}
    for precision in PRECISIONS:
        tasks[NET, "src.train", precision] = partial(src_train_speed, precision, iterations)
    tasks[NET, "reference loop", "32-true"] = partial(reference_speed, iterations)
    steps = run_rounds(tasks, options.repeats)
    evaluation: dict[Case, Task] = {
        (NET, "src.train", precision): partial(evaluation_speed, precision)
        for precision in PRECISIONS
    }
    return [
        *make_rows("detection step", steps, "images/s", NATIVE),
        *make_rows("detection evaluation", run_rounds(evaluation, options.repeats), "images/s"),
    ]


def src_train_speed(precision: str, iterations: int) -> float:
    """Time a complete run of `src.train`, with its metrics and checkpoints."""
    overrides = (*DETECTION, f"model={NET}", f"trainer.precision={precision}")
    # Its evaluation follows the timed iterations.
    clock = time_run(iterations, *overrides, "data.test_scenes=8")
    return 1e6 * compose_config(*overrides).recipe.batch_size / clock.microseconds


def evaluation_speed(precision: str) -> float:
    """Time the evaluation of all test scenes: detections, and their average precision."""
    overrides = (*DETECTION, f"model={NET}", f"trainer.precision={precision}")
    with tempfile.TemporaryDirectory() as output_dir:
        config = find_run_dir(compose_config(f"output_dir={output_dir}", *overrides)).config
        trainer = make_trainer(config, [])
        module, data = build(config, trainer)
        start = time.perf_counter()
        trainer.test(module, datamodule=data, verbose=False)
        module.pop_eval_metrics()
        return len(data.test_labels) / (time.perf_counter() - start)


class SceneDataset(Dataset):
    """Scenes as torchvision's reference takes them: float images in 0 to 1, with their targets."""

    def __init__(self, data: ObjectData) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.train_images

    def __getitem__(self, index: int) -> tuple[Tensor, Objects]:
        """Return a scene."""
        image, target = self.data.example("train", index)
        return image.float() / 255, target


def collate(examples: Sequence[tuple[Tensor, Objects]]) -> ObjectBatch:
    """Return the images and the targets of some examples."""
    images, targets = zip(*examples, strict=True)
    return [*images], [*targets]


def reference_speed(iterations: int) -> float:
    """Time a loop like that of torchvision's detection reference.

    The net, the scenes and the number of threads are those of `src.train`; a DataLoader makes the
    batches in two processes, and each loss is read for the log at each step.
    """
    config = to_dict(compose_config(*DETECTION, f"model={NET}"))
    data, recipe = instantiate(config["data"], seed=0, _convert_="all"), config["recipe"]
    data.setup()
    net: Any = make_net(NET)
    net.remove_classifier()
    sizes = data.min_size, data.max_size
    detector = make_faster_rcnn(net, len(data.classes), recipe["detector"], *sizes).to(DEVICE)
    parameters = [*net.parameters(), *detector.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.001, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        SceneDataset(data),
        recipe["batch_size"],
        shuffle=True,
        num_workers=2,
        collate_fn=collate,
        drop_last=True,
    )
    clock, logged = Clock(iterations), dict[str, float]()
    batches: Iterator[ObjectBatch] = chain.from_iterable(repeat(loader))
    for images, targets in clock.timed(batches):
        on_device = [{k: v.to(DEVICE) for k, v in target.items()} for target in targets]
        losses = detector([image.to(DEVICE) for image in images], on_device)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        for name, loss in losses.items():
            logged[name] = logged.get(name, 0.0) + loss.item()
    return 1e6 * recipe["batch_size"] / clock.microseconds
