"""Build the module and the data of a run from its config."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from pytorch_lightning import Trainer, seed_everything
from torch import Tensor, nn

from src.data.image_datamodule import ImageDataModule
from src.data.object_data import ObjectData
from src.models.normalization import limit_batch_norm_images
from src.models.weights import load_backbone, read_metadata, read_weights
from src.runs.config_files import check_targets, task_name
from src.runs.run_dir import RunDir
from src.tasks.base import Task
from src.tasks.classification import Batch, Classifier
from src.tasks.object_task import ObjectTask
from src.training.cuda_graph import CapturedStepClassifier, resolve_compile
from src.training.lr_schedule import make_schedule
from src.training.optimizer import optimizer_factory


def build(config: dict[str, Any], trainer: Trainer) -> tuple[Task, ImageDataModule]:
    """Return the LightningModule of the task, with its net and recipe, and its data, set up.

    Raises:
        ValueError: a value is invalid for the net, the recipe or the data.
    """
    recipe, seed = config["recipe"], config["seed"]
    classifies = task_name(config["choices"]) == "classification"
    if not classifies:
        check_task_execution(config, trainer)
    if config["protocol"] != "center":  # before the training, not after it
        check_targets(config, Path(f"protocol={config['protocol']}"))
    checkpointing = config["activation_checkpointing"]
    optimizer = recipe["optimizer"]["_target_"]
    mode = "none"
    if classifies:
        mode = resolve_compile(config["compile"], trainer, checkpointing, optimizer)
    seed_everything(seed, verbose=False)
    net = build_net(config, trainer.world_size)
    if "inductor" in mode:
        net.compile()
    n, iterations = config["model"].get("n"), recipe["iterations"]
    schedule = make_schedule(recipe["schedule"], n, iterations)
    stream = {"seed": seed, "batch_size": recipe["batch_size"], "iterations": iterations}
    data = instantiate(config["data"], **stream, _convert_="all")
    if classifies:
        data.check_protocol(config["protocol"])
    data.trainer = trainer
    data.prepare_data()
    data.setup("fit")
    training = {
        "optimizer": optimizer_factory(recipe, bool(trainer.gradient_clip_val)),
        "schedule": schedule,
    }
    if not classifies:
        if config["weights"]:
            task: Any = get_class(config["task"]["_target_"])
            start_from_weights(Path(config["weights"]), net, data, task.uses_regions)
        module = build_task(config, net, data, **training)
        module.parse_protocol(config["protocol"])  # an error if it is unknown
        return module, data

    def augment(*batch: Tensor) -> Batch:
        return trainer.precision_plugin.convert_input(data.augment(*batch))

    options = training | {"augment": augment, "seed": seed if draws_numbers(net) else None}
    if mode == "none":
        return Classifier(net, **options), data
    return CapturedStepClassifier(net, **options, use_graph="cudagraph" in mode), data


def draws_numbers(net: nn.Module) -> bool:
    """Return whether a net may draw numbers in training: by dropout, or in the code of others."""
    ours = type(net).__module__.startswith("src.")
    return not ours or any(isinstance(module, nn.Dropout) for module in net.modules())


def build_net(config: dict[str, Any], world_size: int) -> Any:
    """Return the net, prepared for training.

    Raises:
        ValueError: a value is invalid for the net.
    """
    net, recipe = instantiate(config["model"], _convert_="all"), config["recipe"]
    if recipe["batch_norm_images"] is not None:
        if config["trainer"]["sync_batchnorm"]:
            raise ValueError(
                "recipe.batch_norm_images and trainer.sync_batchnorm=true exclude each other"
            )
        images_per_process = recipe["batch_size"] // world_size
        limit_batch_norm_images(net, recipe["batch_norm_images"], images_per_process)
    if hasattr(net, "activation_checkpointing"):
        net.activation_checkpointing = config["activation_checkpointing"]
    elif config["activation_checkpointing"]:
        raise ValueError("this net has no activation checkpointing: leave that key out")
    return net


def check_task_execution(config: dict[str, Any], trainer: Trainer) -> None:
    """Check that a task other than classification can be executed as the config says.

    Raises:
        ValueError: it cannot.
    """
    task, recipe = config["choices"]["task"], config["recipe"]
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"task={task} needs trainer.precision=32-true or bf16-mixed: "
            "losses and boxes must be float32"
        )
    for key, usual in (("precise_bn_batches", "0"), ("batch_norm_images", "null")):
        if recipe[key]:  # written for images of one size, not for the regions of several
            raise ValueError(f"task={task} needs recipe.{key}={usual}")
    if config["compile"] not in ("auto", "none"):
        print(f"compile=none instead of {config['compile']}: the shapes of task={task} change")


def build_task(config: dict[str, Any], net: Any, data: ObjectData, **training: Any) -> ObjectTask:
    """Build the module that `task=` names around a net.

    Args:
        config: The config of a run. If the run started from `weights`, batch norm is frozen.
        net: The net, with or without its classifier.
        data: The data, set up.
        training: The optimizer and the schedule; none for evaluation.
    """
    frozen = config.get("weights") is not None
    module = get_class(config["task"]["_target_"])
    if config.get("localizer"):
        training["localizer"] = load_localizer(Path(config["localizer"]), data)
    return module(net, data, config["recipe"], seed=config["seed"], frozen=frozen, **training)


def load_localizer(path: Path, data: ObjectData) -> ObjectTask:
    """Return the localizer of a run, whose weights do not change any more.

    Raises:
        ValueError: The run is not finished, learned another task, or has other classes.
    """
    run_dir = RunDir.open_finished(path)
    if run_dir.task != "localization":
        raise ValueError(f"localizer={path} is a run of {run_dir.task}, not of localization")
    classes = run_dir.config["data"].get("classes")  # None: those of a directory
    if classes not in (None, data.classes):
        raise ValueError(f"localizer={path} has other classes than the data, or in another order")
    return load_module(run_dir, data)


def load_module(run_dir: RunDir, data: ObjectData) -> ObjectTask:
    """Return the module of a run of a task other than classification, with its last weights.

    Args:
        run_dir: A run with a checkpoint.
        data: Its data or others with the same classes, set up.

    Raises:
        ValueError: The run has other classes.
    """
    config = run_dir.config
    check_targets(config, run_dir.path / "config.yaml")
    module = build_task(config, instantiate(config["model"], _convert_="all"), data)
    # Weights and plain values only.
    checkpoint = torch.load(run_dir.last_checkpoint, map_location="cpu", weights_only=True)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"{run_dir.path} does not fit these {len(data.classes)} classes"
        ) from error
    return module


def start_from_weights(path: Path, net: Any, data: ObjectData, regions: bool) -> None:
    """Load a file of weights into a net, and normalize images as they were for it.

    Of a mean image, the mean of each channel is used. If the file does not say how images were
    normalized, the data keep their own mean. `regions` is as in `load_backbone`.

    Raises:
        ValueError: The weights are of another net, or of one that takes images as BGR.
    """
    metadata = read_metadata(path)
    if metadata.get("channels", "RGB") != "RGB":
        raise ValueError(
            f"{path} is of a net that takes images as BGR: use it for task=classification"
        )
    load_backbone(net, read_weights(path, net), regions)
    if "mean" in metadata:
        data.mean, data.std = (
            torch.tensor(metadata[key]).reshape(3, -1).mean(1) for key in ("mean", "std")
        )
