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

from src.data.imagenet import ImageNet
from src.data.in_memory import ImagesInMemory
from src.evaluation.protocols import TestViews
from src.models.complexity import count_multiply_adds, count_parameters
from src.runs.environment import git_commit, keep_freed_memory, silence_lightning, versions
from src.runs.naming import family
from src.runs.run_dir import RunDir
from src.tasks.classification import Classifier
from src.training.callbacks.preemption import Preemption
from src.training.callbacks.record import Record
from src.training.callbacks.wandb import WandbRun, dashboard
from src.training.checkpoint_io import VerifiedCheckpointIO, latest_valid_checkpoint
from src.training.cuda_graph import CapturedStepClassifier, resolve_compile
from src.training.distributed import START, check_world_size, slurm
from src.training.precision import device_name
from src.training.synced import SyncBatchNorm


def fit(folder: RunDir) -> None:
    """Trains, tests the final weights and writes the summary.

    Everything that can be wrong with a config is found before the folder is touched.
    """
    silence_lightning()
    keep_freed_memory()
    config, commit = folder.config, git_commit()
    split = "val" if config["data"]["val_images"] else "test"
    record = Record(folder, config["recipe"], split)
    trainer = make_trainer(config, [Preemption(folder, record), record])
    step = resolve_compile(
        config["compile"], trainer.strategy.root_device, trainer.world_size, config["activation_checkpointing"]
    )
    classifier, data = build(config, step)
    TestViews(data, config["protocol"])  # refuses what cannot be done at the end
    data.trainer = trainer
    data.prepare_data()
    data.setup()
    with folder.locked() if rank_zero_only.rank == 0 else nullcontext():
        checkpoint = latest_valid_checkpoint(folder.last_checkpoint)
        with board(folder, classifier.net.depth) if rank_zero_only.rank == 0 else nullcontext() as record.board:
            with report_lost_process(trainer):
                trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if split == "val":
                trainer.test(classifier, datamodule=data, verbose=False)
                record.row |= {f"test/{name}": value for name, value in classifier.pop_eval_errors().items()}
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
        plugins=[VerifiedCheckpointIO(), *slurm(), *sync],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    check_world_size(trainer)
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = START
        trainer.strategy._ddp_kwargs["broadcast_buffers"] = False  # the classifier does, and not at each step
    return trainer


@contextmanager
def report_lost_process(trainer: Trainer) -> Iterator[None]:
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


def board(folder: RunDir, depth: int) -> AbstractContextManager[WandbRun | None]:
    """The run as W&B shows it, if `logger` says so."""
    logger = folder.config["logger"]
    if logger["name"] != "wandb":
        return nullcontext()
    return dashboard(folder, family(folder.config), depth, logger["project"], logger["entity"])


def build(config: dict[str, Any], step: str = "none") -> tuple[Classifier, ImagesInMemory | ImageNet]:
    """The net with its recipe, and the data, which are not read yet. Raises ValueError for what they refuse."""
    recipe, seed = config["recipe"], config["seed"]
    seed_everything(seed, verbose=False)
    net = instantiate(config["model"], _convert_="all")
    net.activation_checkpointing = config["activation_checkpointing"]
    if step == "inductor":
        net.compile()
    length = {"n": config["model"].get("n"), "iterations": recipe["iterations"]}
    schedule = instantiate(recipe["schedule"], **length, _convert_="all")
    stream = {"seed": seed, "batch_size": recipe["batch_size"], "iterations": recipe["iterations"]}
    data = instantiate(config["data"], **stream, _convert_="all")
    kind = Classifier if step == "none" else CapturedStepClassifier
    return kind(net, instantiate(recipe["optimizer"]), schedule), data


def summarize(
    folder: RunDir, trainer: Trainer, classifier: Classifier, data: ImagesInMemory | ImageNet, record: Record
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
        "parameters": count_parameters(classifier.net),
        "macs": count_multiply_adds(classifier.net, data.image_shape),
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
