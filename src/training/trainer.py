"""Train one run with Lightning: from its last checkpoint or from scratch, up to its summary."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from hydra.utils import instantiate
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.plugins import Precision

from src.data.image_datamodule import ImageDataModule
from src.models.complexity import count_multiply_adds, count_parameters
from src.models.weights import hash_weights
from src.runs.config_files import task_name
from src.runs.environment import git_commit, keep_freed_memory, silence_lightning, versions
from src.runs.run_dir import RunDir
from src.tasks.base import Task
from src.tasks.classification import Classifier
from src.training.build import build
from src.training.callbacks.base import NoProfiler
from src.training.callbacks.checkpointing import Checkpointing
from src.training.callbacks.external_logger import ExternalLogger
from src.training.callbacks.layer_stats import LayerStats
from src.training.callbacks.metrics import Metrics
from src.training.callbacks.nan_guard import NaNGuard
from src.training.callbacks.precise_bn import PreciseBN
from src.training.callbacks.preemption import Preemption
from src.training.callbacks.progress import Progress
from src.training.callbacks.row_sender import RowSender
from src.training.callbacks.stopwatch import Stopwatch
from src.training.callbacks.wandb import WandbRun
from src.training.checkpoint_io import VerifiedCheckpointIO, latest_valid_checkpoint
from src.training.distributed import (
    LostProcessTimeout,
    check_world_size,
    cluster_environment,
    is_rank_zero,
    make_strategy,
    report_lost_process,
)
from src.training.intervals import Intervals
from src.training.precision import device_name, forbid_tf32


class RunCallbacks:
    """The callbacks of a run; `ordered` is the order in which Lightning calls them."""

    def __init__(self, run_dir: RunDir, split: str) -> None:
        config = run_dir.config
        intervals = Intervals.of(config)
        batches = config["recipe"]["precise_bn_batches"]
        preemption, nan_guard = Preemption(run_dir, intervals), NaNGuard(run_dir)
        checkpointing = Checkpointing(run_dir, intervals, preemption)
        self.stopwatch = Stopwatch()
        self.metrics = Metrics(run_dir, intervals, split, nan_guard)
        self.senders = make_senders(run_dir, checkpointing)
        self.ordered = [
            self.stopwatch,
            preemption,
            self.metrics,
            PreciseBN(batches, intervals, self.stopwatch),
            LayerStats(run_dir, intervals),
            *self.senders,
            Progress(run_dir, self.metrics, checkpointing),
            nan_guard,
            # Before the checkpoint, which holds their state.
            *make_user_callbacks(config["callbacks"]),
            checkpointing,
            LostProcessTimeout(),
        ]


def make_senders(run_dir: RunDir, checkpointing: Checkpointing) -> list[RowSender]:
    """Return a callback for each logger that the config asks for, on rank 0 alone."""
    names = run_dir.config["logger"] if is_rank_zero() else ()
    return [
        WandbRun(run_dir, checkpointing)
        if name == "wandb"
        else ExternalLogger(name, run_dir, checkpointing)
        for name in names
    ]


def make_user_callbacks(callbacks: dict[str, Any]) -> list[Callback]:
    """Return the callbacks that the user adds to a run.

    Raises:
        ValueError: one of them is not a Lightning callback.
    """
    made = []
    for name, options in callbacks.items():
        has_target = isinstance(options, dict) and "_target_" in options
        callback = instantiate(options, _convert_="all") if has_target else None
        if not isinstance(callback, Callback):
            raise ValueError(
                f"callbacks.{name} is not a Lightning callback: "
                f"set +callbacks.{name}._target_=CLASS"
            )
        made.append(callback)
    return made


def fit(run_dir: RunDir, callbacks: Sequence[Callback] = ()) -> None:
    """Train, evaluate the final weights and write the summary.

    Everything that can be wrong with a config is found before the directory is created.

    Args:
        run_dir: the directory of the run.
        callbacks: further callbacks, called after the run's own.
    """
    silence_lightning()
    keep_freed_memory()
    config, commit = run_dir.config, git_commit()
    split = "val" if config["data"]["val_images"] else "test"
    own = RunCallbacks(run_dir, split)
    trainer = make_trainer(config, [*own.ordered, *callbacks])
    module, data = build(config, trainer)

    with run_dir.locked() if is_rank_zero() else nullcontext():
        checkpoint = latest_valid_checkpoint(run_dir.last_checkpoint)
        with ExitStack() as senders:
            for sender in own.senders:
                senders.enter_context(sender)
            with report_lost_process(trainer):
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            # A run that was killed after its last checkpoint has not evaluated in this process.
            evaluated = split == "test" and own.metrics.row
            if not evaluated or trainer.precision != "32-true":
                metrics = evaluate_final_weights(trainer, module, data)
            else:  # the last row has them already
                metrics = {}
            if trainer.is_global_zero:
                results = run_dir.rows()[-1] | {f"test/{name}": x for name, x in metrics.items()}
                summary = describe_run(config, module, data) | module.summarize(results)
                summary |= describe_execution(config, trainer, own.stopwatch)
                summary["weights_sha256"] = hash_weights(module.net)
                module.write_artifacts(run_dir, data)
                run_dir.write_summary(summary | {"git_commit": commit})


def make_trainer(config: dict[str, Any], callbacks: Sequence[Callback]) -> Trainer:
    """Return Lightning's Trainer for a run.

    To Lightning the whole run is one epoch, so resuming means starting at an iteration.

    Raises:
        ValueError: the processes are not those that the config asks for, or the device cannot do
            what it asks for.
    """
    recipe, options = config["recipe"], config["trainer"]
    forbid_tf32(options["precision"])
    if options["deterministic"]:
        # Deterministic algorithms write every result themselves; this would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    trainer = _make_lightning_trainer(
        **options | {"strategy": make_strategy(options)},
        max_steps=recipe["iterations"],
        max_epochs=1,
        val_check_interval=min(recipe["eval_every"], recipe["iterations"]),
        num_sanity_val_steps=0,
        benchmark=not options["deterministic"],
        callbacks=[*callbacks],
        plugins=[VerifiedCheckpointIO(), cluster_environment()],
        profiler=NoProfiler(),
        use_distributed_sampler=False,  # the data modules divide batches themselves
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    check_world_size(trainer)
    if options["sync_batchnorm"] and trainer.strategy.root_device.type == "cpu":
        raise ValueError(
            "trainer.sync_batchnorm=true needs GPUs: PyTorch's SyncBatchNorm does not run on a CPU"
        )
    return trainer


def _make_lightning_trainer(**arguments: Any) -> Trainer:
    try:
        return Trainer(**arguments)
    except TypeError as error:
        if "devices" not in str(error):
            raise
        # Lightning's error for an invalid number or list of devices.
        raise ValueError(f"trainer.devices={arguments['devices']}: {error}") from error


def evaluate_final_weights(
    trainer: Trainer, module: Task, data: ImageDataModule
) -> dict[str, float]:
    """Return the metrics of the test set, computed in float32 if the weights are.

    Rounding to bf16 changes the error of a net by some hundredths of a percent.
    """
    if trainer.precision in ("bf16-mixed", "16-mixed"):
        forbid_tf32("32-true")
        trainer.strategy.precision_plugin = Precision()
    trainer.test(module, datamodule=data, verbose=False)
    return module.pop_eval_metrics()


def describe_run(config: dict[str, Any], module: Task, data: ImageDataModule) -> dict[str, Any]:
    """Return what the summary says of the net and the data."""
    classifies = isinstance(module, Classifier)
    return {
        "model": config["choices"]["model"],
        "n": config["model"].get("n"),
        "depth": module.depth,
        "shortcut": config["model"].get("shortcut"),
        "data": config["choices"]["data"],
        "task": task_name(config["choices"]),
        "seed": config["seed"],
        "val_images": data.val_images,
        "train_images": data.train_images,
        "iterations": config["recipe"]["iterations"],
        "parameters": count_parameters(module),
        # A detector's depend on the image.
        "macs": count_multiply_adds(module.net, data.image_shape) if classifies else None,
    }


def describe_execution(
    config: dict[str, Any], trainer: Trainer, stopwatch: Stopwatch
) -> dict[str, Any]:
    """Return what the summary says of the speed and of what the run was executed on."""
    images = config["recipe"]["iterations"] * config["recipe"]["batch_size"]
    return {
        "images_per_second": images / stopwatch.train_seconds,
        "seconds": stopwatch.train_seconds + stopwatch.eval_seconds,
        "precision": config["trainer"]["precision"],
        "eval_precision": trainer.precision,  # of the test error
        "device": device_name(trainer.strategy.root_device),
        "devices": trainer.world_size,
        "threads": torch.get_num_threads(),  # of the CPU, of each process
        "versions": versions(),
    }
