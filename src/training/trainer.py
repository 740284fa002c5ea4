"""Train one run with Lightning: from its last checkpoint or from scratch, up to its summary."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.plugins import Precision
from torch import Tensor

from src.data.image_datamodule import ImageDataModule
from src.models.complexity import count_multiply_adds, count_parameters
from src.models.normalization import limit_batch_norm_images
from src.runs.environment import git_commit, keep_freed_memory, silence_lightning, versions
from src.runs.run_dir import RunDir
from src.tasks.base import Task
from src.tasks.build import build_task, start_from_weights
from src.tasks.classification import Batch, Classifier
from src.training.callbacks.base import NoProfiler
from src.training.callbacks.checkpointing import Checkpointing
from src.training.callbacks.layer_stats import LayerStats
from src.training.callbacks.metrics import Metrics
from src.training.callbacks.nan_guard import NaNGuard
from src.training.callbacks.precise_bn import PreciseBN
from src.training.callbacks.preemption import Preemption
from src.training.callbacks.progress import Progress
from src.training.callbacks.stopwatch import Stopwatch
from src.training.callbacks.wandb import WandbRun
from src.training.checkpoint_io import VerifiedCheckpointIO, latest_valid_checkpoint
from src.training.cuda_graph import CapturedStepClassifier, resolve_compile
from src.training.distributed import (
    LostProcessTimeout,
    check_world_size,
    cluster_environment,
    is_rank_zero,
    make_strategy,
    report_lost_process,
)
from src.training.intervals import Intervals
from src.training.optimizer import optimizer_factory
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
        self.wandb_run = make_wandb_run(run_dir, self.metrics)
        self.ordered = [
            self.stopwatch,
            preemption,
            self.metrics,
            PreciseBN(batches, intervals, self.stopwatch),
            LayerStats(run_dir, intervals),
            *([self.wandb_run] if self.wandb_run else []),
            Progress(run_dir, self.metrics, checkpointing),
            nan_guard,
            checkpointing,
            LostProcessTimeout(),
        ]


def make_wandb_run(run_dir: RunDir, metrics: Metrics) -> WandbRun | None:
    """Return the callback for W&B if `logger=wandb` asks for it, on rank 0 alone."""
    wanted = run_dir.config["logger"]["name"] == "wandb" and is_rank_zero()
    return WandbRun(run_dir, metrics) if wanted else None


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
        with own.wandb_run or nullcontext():
            with report_lost_process(trainer):
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if split == "val" or trainer.precision != "32-true":
                metrics = evaluate_final_weights(trainer, module, data)
            else:  # the last row has them already
                metrics = {}
            if trainer.is_global_zero:
                results = run_dir.rows()[-1] | {f"test/{name}": x for name, x in metrics.items()}
                summary = describe_run(config, module, data) | module.summarize(results)
                summary |= describe_execution(config, trainer, own.stopwatch)
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
    trainer = Trainer(
        **options | {"strategy": make_strategy(options)},
        max_steps=recipe["iterations"],
        max_epochs=1,
        val_check_interval=min(recipe["eval_every"], recipe["iterations"]),
        num_sanity_val_steps=0,
        benchmark=not options["deterministic"],
        callbacks=[*callbacks],
        plugins=[VerifiedCheckpointIO(), cluster_environment()],
        profiler=NoProfiler(),
        use_distributed_sampler=False,  # the data share out batches themselves
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


def build(config: dict[str, Any], trainer: Trainer) -> tuple[Task, ImageDataModule]:
    """Return the module of the task with its net and recipe, and the data, which have been read.

    Raises:
        ValueError: a value that the net, the recipe or the data cannot have.
    """
    recipe, seed = config["recipe"], config["seed"]
    classifies = config["choices"].get("task", "classification") == "classification"
    if not classifies:
        check_task_execution(config, trainer)
    checkpointing = config["activation_checkpointing"]
    mode = resolve_compile(config["compile"], trainer, checkpointing) if classifies else "none"
    seed_everything(seed, verbose=False)
    net = build_net(config, trainer.world_size)
    if "inductor" in mode:
        net.compile()
    n, iterations = config["model"].get("n"), recipe["iterations"]
    schedule = instantiate(recipe["schedule"], n=n, iterations=iterations, _convert_="all")
    stream = {"seed": seed, "batch_size": recipe["batch_size"], "iterations": iterations}
    data = instantiate(config["data"], **stream, _convert_="all")
    data.check_protocol(config["protocol"])
    data.trainer = trainer
    data.prepare_data()
    data.setup("fit")
    training = {"optimizer": optimizer_factory(recipe), "schedule": schedule}
    if not classifies:
        if config["weights"]:
            start_from_weights(Path(config["weights"]), net, data)
        return build_task(config, net, data, **training), data

    def augment(*batch: Tensor) -> Batch:
        return trainer.precision_plugin.convert_input(data.augment(*batch))

    if mode == "none":
        return Classifier(net, **training, augment=augment), data
    use_graph = "cudagraph" in mode
    return CapturedStepClassifier(net, **training, augment=augment, use_graph=use_graph), data


def build_net(config: dict[str, Any], world_size: int) -> Any:
    """Return the net, as it trains.

    Raises:
        ValueError: a value that the net cannot have.
    """
    net, recipe = instantiate(config["model"], _convert_="all"), config["recipe"]
    if recipe["batch_norm_images"] is not None:
        if config["trainer"]["sync_batchnorm"]:
            raise ValueError(
                "recipe.batch_norm_images and trainer.sync_batchnorm=true exclude each other"
            )
        images_per_process = recipe["batch_size"] // world_size
        limit_batch_norm_images(net, recipe["batch_norm_images"], images_per_process)
    net.activation_checkpointing = config["activation_checkpointing"]
    return net


def check_task_execution(config: dict[str, Any], trainer: Trainer) -> None:
    """Check that a task other than classification can be executed as the config says.

    Raises:
        ValueError: it cannot.
    """
    task, recipe = config["choices"]["task"], config["recipe"]
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"task={task} needs trainer.precision=32-true or bf16-mixed: boxes must be float32"
        )
    for key, usual in (("precise_bn_batches", "0"), ("batch_norm_images", "null")):
        if recipe[key]:  # written for images of one size, not for the regions of several
            raise ValueError(f"task={task} needs recipe.{key}={usual}")
    if config["compile"] not in ("auto", "none"):
        print(f"compile=none instead of {config['compile']}: the shapes of task={task} change")


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
        "task": config["choices"].get("task", "classification"),
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
        "versions": versions(),
    }
