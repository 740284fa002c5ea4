"""Trains a net, from its last checkpoint or from the start, and writes down what came of it."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from subprocess import TimeoutExpired
from typing import Any

from hydra.utils import instantiate
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

from src.captured import CapturedClassifier, resolve_step
from src.checkpoint import WholeCheckpoints, newest_whole
from src.classifier import Classifier
from src.cluster import START, refuse_other_processes, slurm
from src.dashboard import Board, dashboard
from src.data.imagenet import ImageNet
from src.data.images import ImagesInMemory
from src.hardware import device_name, git_commit, keep_freed_memory, quiet_lightning, versions
from src.identity import family
from src.models.count import multiply_adds, parameters
from src.preemption import Preemption
from src.protocols import Views
from src.record import Record
from src.run import RunFolder
from src.synced import SyncBatchNorm


def fit(folder: RunFolder) -> None:
    """Trains, tests the final weights and writes the summary.

    Everything that can be wrong with a config is found before the folder is touched.
    """
    quiet_lightning()
    keep_freed_memory()
    config, commit = folder.config, git_commit()
    split = "val" if config["data"]["val_images"] else "test"
    record = Record(folder, config["recipe"], split)
    trainer = make_trainer(config, [Preemption(folder, record), record])
    step = resolve_step(config["step"], trainer.strategy.root_device, trainer.world_size, config["recompute"])
    classifier, data = build(config, step)
    Views(data, config["protocol"])  # refuses what cannot be done at the end
    data.trainer = trainer
    data.prepare_data()
    data.setup()
    with folder.locked() if rank_zero_only.rank == 0 else nullcontext():
        checkpoint = newest_whole(folder.last_checkpoint)
        with board(folder, classifier.net.depth) if rank_zero_only.rank == 0 else nullcontext() as record.board:
            with lost_processes_in_a_line(trainer):
                trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if split == "val":
                trainer.test(classifier, datamodule=data, verbose=False)
                record.row |= {f"test/{name}": value for name, value in classifier.take_test_errors().items()}
            if trainer.is_global_zero:
                folder.finish(summarize(folder, trainer, classifier, data, record) | {"git_commit": commit})


def make_trainer(config: dict[str, Any], callbacks: list[Any]) -> Trainer:
    """Lightning's Trainer of a run. Raises ValueError if the processes are not those that the config says."""
    recipe, sync = config["recipe"], [SyncBatchNorm()] if config["trainer"]["sync_batchnorm"] else []
    trainer = Trainer(
        **config["trainer"],
        max_steps=recipe["iterations"],
        max_epochs=1,
        val_check_interval=min(recipe["eval_every"], recipe["iterations"]),
        num_sanity_val_steps=0,
        benchmark=not config["trainer"]["deterministic"],
        callbacks=callbacks,
        plugins=[WholeCheckpoints(), *slurm(), *sync],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    refuse_other_processes(trainer)
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = START
        trainer.strategy._ddp_kwargs["broadcast_buffers"] = False  # the classifier does, and not at each step
    return trainer


@contextmanager
def lost_processes_in_a_line(trainer: Trainer) -> Iterator[None]:
    """What the communication between processes says when one is gone or hangs, as a ChildProcessError."""
    try:
        yield
    except RuntimeError as error:
        if trainer.world_size == 1 or not re.search("gloo|nccl|connection|timed out", str(error), re.IGNORECASE):
            raise
        for process in getattr(trainer.strategy.launcher, "procs", []):  # one that hangs would stay
            with suppress(TimeoutExpired):
                process.wait(1)
            process.kill()
        raise ChildProcessError(
            "another process of this run died or hangs; what it said itself stands above, and the same command goes on "
            f"from the last checkpoint ({str(error).splitlines()[0][:150]})"
        ) from error


def board(folder: RunFolder, depth: int) -> AbstractContextManager[Board | None]:
    """The run as W&B shows it, if `logger` says so."""
    logger = folder.config["logger"]
    if logger["name"] != "wandb":
        return nullcontext()
    return dashboard(folder, family(folder.config), depth, logger["project"], logger["entity"])


def build(config: dict[str, Any], step: str = "eager") -> tuple[Classifier, ImagesInMemory | ImageNet]:
    """The net with its recipe, and the data, which are not read yet. Raises ValueError for what they refuse."""
    recipe, seed = config["recipe"], config["seed"]
    seed_everything(seed, verbose=False)
    net = instantiate(config["model"], _convert_="all")
    net.recompute = config["recompute"]
    if step == "compile":
        net.compile()
    length = {"n": config["model"].get("n"), "iterations": recipe["iterations"]}
    schedule = instantiate(recipe["schedule"], **length, _convert_="all")
    stream = {"seed": seed, "batch_size": recipe["batch_size"], "iterations": recipe["iterations"]}
    data = instantiate(config["data"], **stream, _convert_="all")
    kind = Classifier if step == "eager" else CapturedClassifier
    return kind(net, instantiate(recipe["optimizer"]), schedule), data


def summarize(
    folder: RunFolder, trainer: Trainer, classifier: Classifier, data: ImagesInMemory | ImageNet, record: Record
) -> dict[str, Any]:
    """The results of a finished run: final weights, at the last iteration."""
    config, last = folder.config, folder.rows()[-1] | record.row
    return {
        "model": config["choices"]["model"],
        "n": config["model"].get("n"),
        "depth": classifier.net.depth,
        "shortcut": config["model"].get("shortcut"),
        "data": config["choices"]["data"],
        "seed": config["seed"],
        "val_images": data.val_images,
        "train_images": data.train_images,
        "iterations": config["recipe"]["iterations"],
        "parameters": parameters(classifier.net),
        "macs": multiply_adds(classifier.net, data.image_shape),
        "train_error": last["train/error"],
        "val_error": last.get("val/error"),
        "test_error": last["test/error"],
        "test_error_top5": last["test/error_top5"],
        "images_per_second": config["recipe"]["iterations"] * data.batch_size / record.train_seconds,
        "seconds": record.train_seconds + record.eval_seconds,
        "precision": config["trainer"]["precision"],
        "device": device_name(trainer.strategy.root_device),
        "devices": trainer.world_size,
        "versions": versions(),
    }
