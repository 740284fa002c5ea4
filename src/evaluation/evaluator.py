"""Evaluate trained nets on the complete test set of their data."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from src.data.image_datamodule import ImageDataModule
from src.data.sampler import Batch
from src.evaluation.ensemble import Ensemble, NormalizedNet
from src.evaluation.protocols import TestViews
from src.models.weights import load_weights, read_weights
from src.runs.config_files import check_targets
from src.runs.environment import git_commit, silence_lightning, versions
from src.runs.run_dir import RunDir
from src.tasks.classification import Classifier
from src.training.distributed import cluster_environment, is_rank_zero
from src.training.precision import device_name, forbid_tf32


def evaluate_runs(
    run_dirs: list[RunDir], trainer_config: dict[str, Any], protocol: str, *callbacks: Callback
) -> None:
    """Evaluate a run, or several together as an ensemble.

    The result of a single run is saved in its run directory, but not that of `center`: it is in
    the summary already.

    Args:
        run_dirs: Runs with a checkpoint, on the same test images.
        trainer_config: Arguments of Lightning's Trainer.
        protocol: A name that `find_protocol` takes.
        callbacks: More callbacks for Lightning's Trainer.
    """
    nets = [run_config(run_dir) for run_dir in run_dirs]
    title = make_title([net["name"] for net in nets], nets[0]["choices"]["data"])
    result = evaluate(nets, trainer_config, protocol, title, *callbacks)
    if len(run_dirs) == 1 and protocol != "center" and is_rank_zero():
        run_dirs[0].write_evaluation(result)


def make_title(names: list[str], data: str) -> str:
    """Return what is evaluated: `resnet20 on cifar10`, or `ensemble of A and B on cifar10`."""
    return f"{'ensemble of ' if len(names) > 1 else ''}{' and '.join(names)} on {data}"


def run_config(run_dir: RunDir) -> dict[str, Any]:
    """Return the config of a run as one of the nets that `evaluate` takes.

    Raises:
        ValueError: If the run learned another task than classification, or the config names a
            model or data class that no file of conf/ names.
    """
    if run_dir.task != "classification":
        raise ValueError(f"{run_dir.path} is a run of {run_dir.task}; this needs a classifier")
    check_targets(run_dir.config, run_dir.path / "config.yaml")
    return run_dir.config | {"weights": run_dir.last_checkpoint, "name": run_dir.path.name}


def evaluate(
    nets: list[dict[str, Any]],
    trainer_config: dict[str, Any],
    protocol: str,
    title: str,
    *callbacks: Callback,
) -> dict[str, Any]:
    """Evaluate nets, together if there are several, on every test image, and print the errors.

    Args:
        nets: For each net its `model`, `data` and `seed` as in the config of a run, its `weights`
            (the path of a file) and its `name`; with `mean`, `std` and `channels` if the file of
            weights says what images are to be normalized with.
        trainer_config: Arguments of Lightning's Trainer.
        protocol: A name that `find_protocol` takes.
        title: Printed in front of the errors.
        callbacks: More callbacks for Lightning's Trainer.

    Returns:
        The errors, as numbers of images and in percent, with the protocol, speed, hardware and
        versions that they were measured with.

    Raises:
        ValueError: If the nets have different test images, if the protocol does not apply to
            them, or if no test image can be read.
    """
    silence_lightning()
    members, data = load_nets(nets)
    views = TestViews(data, protocol)
    # Neither optimizer nor schedule: this module is only evaluated.
    classifier = Classifier(Ensemble(members))
    total = len(data.test_labels)
    trainer, seconds = timed_test(classifier, views, total, trainer_config, callbacks)

    # Images that cannot be read may have been skipped, so only those that were scored count.
    _, errors, errors_top5, images = classifier.eval_meter.compute()
    if not images:
        raise ValueError("none of the test images can be read")
    speed = images / seconds
    result = {
        "protocol": protocol,
        "errors": errors,
        "errors_top5": errors_top5,
        "images": images,
        "test_error": 100 * errors / images,
        "test_error_top5": 100 * errors_top5 / images,
        **describe_evaluation(trainer, speed),
    }
    if trainer.is_global_zero:
        print(
            f"{title}, {protocol}: top-1 error {result['test_error']:.2f}%, "
            f"top-5 error {result['test_error_top5']:.2f}% ({errors:,} and {errors_top5:,} of "
            f"{images:,} test images), {speed:,.{0 if speed >= 10 else 1}f} images/s",
            flush=True,  # shown at once also where the output is a file
        )
    return result


def timed_test(
    module: LightningModule,
    datamodule: LightningDataModule,
    images: int,
    trainer_config: dict[str, Any],
    callbacks: Sequence[Callback],
) -> tuple[Trainer, float]:
    """Test a module with a progress bar.

    Args:
        module: What is tested.
        datamodule: Has the test images.
        images: Their number.
        trainer_config: Arguments of Lightning's Trainer.
        callbacks: More callbacks for Lightning's Trainer.

    Returns:
        The Trainer, and the seconds that the test took, those to read the images included.
    """
    forbid_tf32(trainer_config["precision"])
    # Lightning's own progress bar counts batches; ours counts images.
    with tqdm(desc="evaluating", total=images, unit=" images", leave=False, disable=None) as bar:
        trainer = Trainer(
            **trainer_config,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            plugins=[cluster_environment()],
            use_distributed_sampler=False,  # the data modules divide batches themselves
            callbacks=[ImageProgress(bar), *callbacks],
        )
        start = time.perf_counter()
        trainer.test(module, datamodule=datamodule, verbose=False)
        return trainer, time.perf_counter() - start


def describe_evaluation(trainer: Trainer, images_per_second: float) -> dict[str, Any]:
    """Return what the results of an evaluation say of its speed and of what it ran on."""
    return {
        "images_per_second": images_per_second,
        "precision": trainer.precision,
        "device": device_name(trainer.strategy.root_device),
        "devices": trainer.world_size,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def load_nets(
    nets: list[dict[str, Any]],
) -> tuple[list[NormalizedNet], ImageDataModule]:
    """Build nets with their weights, and the data that they are evaluated on.

    The test images are read once, from the data of the first net, but each net is normalized by
    its own data: runs of different seeds hold out different images, so their means differ.

    Args:
        nets: As in `evaluate`.

    Returns:
        The nets, and the data of the first one, set up.

    Raises:
        ValueError: If the nets have different test images.
    """
    members = []
    modules: dict[str, ImageDataModule] = {}  # nets with equal data share one module
    for config in nets:
        # "all" turns OmegaConf's lists and dicts into Python's, which nets may keep and save.
        net = instantiate(config["model"], _convert_="all")
        load_weights(net, read_weights(Path(config["weights"]), net))

        key = str((config["data"], config["seed"]))
        if key not in modules:
            modules[key] = instantiate(config["data"], seed=config["seed"], _convert_="all")
            modules[key].prepare_data()
            modules[key].setup("test")
        data = modules[key]
        first = next(iter(modules.values()))
        # The labels stand for the images, which are too many to compare.
        if not np.array_equal(data.test_labels, first.test_labels):
            raise ValueError(
                f"{config['name']} has different test images: all nets of an ensemble must be "
                "evaluated on the same ones"
            )
        members.append(NormalizedNet(net, *normalization(config, data)))
    return members, first


def normalization(
    config: dict[str, Any], data: ImageDataModule
) -> tuple[Tensor, Tensor | None, bool]:
    """Return mean, standard deviation and BGR order: those of a file of weights, or of the data."""
    if "mean" not in config:
        return data.mean, data.std, config["data"].get("bgr", False)  # bgr: ImageNet only
    bgr = config["channels"] == "BGR"
    # In the file the channels come first, and in the order of the net.
    mean, std = (torch.tensor(config[key]).movedim(0, -1) for key in ("mean", "std"))
    return (mean.flip(-1), std.flip(-1), bgr) if bgr else (mean, std, bgr)


class ImageProgress(Callback):
    """Advance a progress bar by the number of images of each batch."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def on_test_batch_end(
        self, trainer: Trainer, _: object, outputs: object, batch: Batch, *__: object
    ) -> None:
        """Count the images of all processes, assuming that each has as many as this one."""
        self.bar.update(len(batch[1]) * trainer.world_size)
