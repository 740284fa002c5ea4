"""Trains one net and tests it: `python -m src.train model=resnet56 data=cifar10`; see --help."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from src.command_line import CONF, entry, job, resolve
from src.evaluate import test_run
from src.identity import family, folder_name
from src.run import RunFolder
from src.sweep import Job, Sweep, slots

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from src.classifier import Classifier
    from src.dashboard import Board
    from src.data.images import ImagesInMemory
    from src.record import Record


PATIENCE = timedelta(seconds=50)  # with a process that does not answer the others
JOBS: list[Job] = []  # of a sweep, as Hydra composes one after the other


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
@job
def main(config: DictConfig) -> None:
    folder = find_folder(config)
    folder.refuse_another_config()
    of_hydra = HydraConfig.get()
    if of_hydra.mode == RunMode.MULTIRUN and of_hydra.launcher._target_.endswith("BasicLauncher"):
        JOBS.append(Job(folder, list(of_hydra.overrides.task)))
    elif folder.finished:
        print(f"{folder.path} is finished: {in_words(folder)}")
    else:
        run(folder)


def main_or_sweep() -> None:
    main()
    if JOBS:
        config = JOBS[0].folder.config
        Sweep(JOBS, *slots(config["trainer"]["accelerator"], config["sweep"]["jobs_per_device"])).run()


def find_folder(config: DictConfig) -> RunFolder:
    """The run folder that belongs to a config, which it resolves, `precision: auto` too.

    Raises ValueError for a value that no run can have.
    """
    config, defaults = resolve(config, "train")
    if not 0 <= config["seed"] < 2**32:
        raise ValueError(f"seed={config['seed']} must be from 0 to 2**32 - 1")
    for key in ("iterations", "batch_size", "log_every", "eval_every", "checkpoint_every"):
        if config["recipe"][key] < 1:
            raise ValueError(f"recipe.{key}={config['recipe'][key]} must be at least 1")
    from src.hardware import resolve_precision

    config["trainer"]["precision"] = resolve_precision(**config["trainer"])
    defaults["trainer"]["precision"] = "32-true"
    choices = config["choices"]
    return RunFolder(Path(config["runs"]) / choices["data"] / folder_name(config, defaults, choices["model"]), config)


def run(folder: RunFolder) -> None:
    """Does what is missing of a run: trains, and tests by the protocol that its config asks for."""
    protocol = folder.config["protocol"]
    if not folder.summary:
        train(folder)
    if protocol != "center" and not folder.tested(protocol):
        test_run(folder, folder.config["trainer"], protocol)


def train(folder: RunFolder) -> None:
    """Trains from the last checkpoint or from the start, tests the final weights and writes the summary.

    Everything that can be wrong with a config is found before the folder is touched.
    """
    from pytorch_lightning import Trainer
    from pytorch_lightning.strategies import DDPStrategy
    from pytorch_lightning.utilities import rank_zero_only

    from src.captured import resolve_step
    from src.checkpoint import WholeCheckpoints, newest_whole
    from src.cluster import refuse_other_processes, slurm
    from src.hardware import git_commit, keep_freed_memory, quiet_lightning
    from src.preemption import Preemption, requeued_if_stopped
    from src.protocols import Views
    from src.record import Record
    from src.synced import SyncBatchNorm

    quiet_lightning()
    keep_freed_memory()
    recipe, commit = folder.config["recipe"], git_commit()
    split = "val" if folder.config["data"]["val_images"] else "test"
    record = Record(
        folder, recipe["iterations"], recipe["log_every"], recipe["eval_every"], recipe["checkpoint_every"], split
    )
    sync = [SyncBatchNorm()] if folder.config["trainer"]["sync_batchnorm"] else []
    trainer = Trainer(
        **folder.config["trainer"],
        max_steps=recipe["iterations"],
        max_epochs=1,
        val_check_interval=min(recipe["eval_every"], recipe["iterations"]),
        num_sanity_val_steps=0,
        benchmark=not folder.config["trainer"]["deterministic"],
        callbacks=[Preemption(record), record],
        plugins=[WholeCheckpoints(), *slurm(), *sync],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    refuse_other_processes(trainer)
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = PATIENCE
        trainer.strategy._ddp_kwargs["broadcast_buffers"] = False  # the classifier does, and not at each step
    where = trainer.strategy.root_device, trainer.world_size
    step = resolve_step(folder.config["step"], *where, folder.config["recompute"])
    classifier, data = build(folder.config, step)
    Views(data, folder.config["protocol"])  # refuses what cannot be done at the end
    data.trainer = trainer
    data.prepare_data()
    data.setup()
    with requeued_if_stopped(), folder.locked() if rank_zero_only.rank == 0 else nullcontext():
        checkpoint = newest_whole(folder.last_checkpoint)
        with board(folder, classifier.net.depth) if rank_zero_only.rank == 0 else nullcontext() as record.board:
            with lost_processes_in_a_line(trainer):
                trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if split == "val":
                trainer.test(classifier, datamodule=data, verbose=False)
                record.row |= {f"test/{name}": value for name, value in classifier.take_test_errors().items()}
            if trainer.is_global_zero:
                folder.finish(summarize(folder, trainer, classifier, data, record) | {"git_commit": commit})
                print(f"{folder.path}: {in_words(folder)}", flush=True)


@contextmanager
def lost_processes_in_a_line(trainer: "Trainer") -> Iterator[None]:
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


def board(folder: RunFolder, depth: int) -> AbstractContextManager["Board | None"]:
    """The run as W&B shows it, if `logger` says so."""
    from src.dashboard import dashboard

    logger = folder.config["logger"]
    if logger["name"] != "wandb":
        return nullcontext()
    return dashboard(folder, family(folder.config), depth, logger["project"], logger["entity"])


def build(config: dict[str, Any], step: str = "eager") -> tuple["Classifier", "ImagesInMemory"]:
    """The net with its recipe, and the data, which are not read yet. Raises ValueError for what they refuse."""
    from hydra.utils import instantiate
    from pytorch_lightning import seed_everything

    from src.captured import CapturedClassifier
    from src.classifier import Classifier

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
    folder: RunFolder, trainer: "Trainer", classifier: "Classifier", data: "ImagesInMemory", record: "Record"
) -> dict[str, Any]:
    """The results of a finished run: final weights, at the last iteration."""
    from src.hardware import device_name, versions
    from src.models.count import multiply_adds, parameters

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


def in_words(folder: RunFolder) -> str:
    summary, protocol = folder.summary, folder.config["protocol"]
    test = folder.tested(protocol)
    more = f", by {protocol} {test['test_error']:.2f}% (top-5 {test['test_error_top5']:.2f}%)" if test else ""
    return (
        f"{summary['iterations']} iterations, training error {summary['train_error']:.2f}%, "
        f"test error {summary['test_error']:.2f}% (top-5 {summary['test_error_top5']:.2f}%){more}, "
        f"{summary['images_per_second']:,.0f} images/s"
    )


if __name__ == "__main__":
    entry(main_or_sweep)
