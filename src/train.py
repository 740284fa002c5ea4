"""Trains one net and tests it: `python -m src.train model=resnet56 data=cifar10`; see --help."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.command_line import CONF, entry, job
from src.run import RunFolder, flatten, folder_name

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from src.classifier import Classifier
    from src.data.images import ImagesInMemory
    from src.record import Record


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
@job
def main(config: DictConfig) -> None:
    folder = find_folder(config)
    if folder.summary:
        print(f"{folder.path} is finished: {in_words(folder.summary)}")
        return
    run(folder)


def find_folder(config: DictConfig) -> RunFolder:
    """The run folder that belongs to a config, which it resolves, `precision: auto` too.

    Raises ValueError as `check` does, and for an n beside a named net's own.
    """
    from src.hardware import resolve_precision

    hydra_config = HydraConfig.get()
    choices = {group: hydra_config.runtime.choices[group] for group in ("model", "data", "recipe")}
    defaults = compose("train", [f"{group}={name}" for group, name in choices.items()])
    defaults, config = (OmegaConf.to_container(c, resolve=True) for c in (defaults, config))
    check(config, defaults)
    n_is_given = any(override.startswith("n=") for override in hydra_config.overrides.task)
    if n_is_given and config["model"].get("n") != config["n"]:
        raise ValueError(f"model={choices['model']} has its own depth: n={config['n']} needs model=plain or resnet")
    config["trainer"]["precision"] = resolve_precision(**config["trainer"])
    defaults["trainer"]["precision"] = "32-true"
    config = {"choices": choices, **config}
    name = folder_name(config, {"choices": choices, **defaults}, choices["model"])
    return RunFolder(Path(config["runs"]) / choices["data"] / name, config)


def check(config: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raises ValueError for a key that nothing reads, a value of the wrong kind, a number that no run can have."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", list: "a list", str: "a word"}
    usual = flatten(defaults)
    for key, value in flatten(config).items():
        if key.partition(".")[0] not in defaults:
            raise ValueError(f"there is no key {key}; --help lists them all")
        kind = type(usual.get(key))
        number = kind is float or key in ("n", "model.n")
        fits = isinstance(value, int | float if number else kind) and (kind is bool or not isinstance(value, bool))
        if kind in kinds and value is not None and not fits and not key.startswith("trainer."):
            raise ValueError(f"{key}={value} must be {kinds[kind]}, as {usual[key]} is")
    if not 0 <= config["seed"] < 2**32:
        raise ValueError(f"seed={config['seed']} must be from 0 to 2**32 - 1")
    for key in ("iterations", "batch_size", "log_every", "eval_every", "checkpoint_every"):
        if config["recipe"][key] < 1:
            raise ValueError(f"recipe.{key}={config['recipe'][key]} must be at least 1")


def run(folder: RunFolder) -> None:
    """Trains from the last checkpoint or from the start, tests the final weights and writes the summary.

    Everything that can be wrong with a config is found before the folder is touched.
    """
    from hydra.utils import instantiate
    from pytorch_lightning import Trainer, seed_everything

    from src.classifier import Classifier
    from src.record import Record, WholeCheckpoints

    quiet_lightning()
    config, recipe = folder.config, folder.config["recipe"]
    intervals = {key: recipe[key] for key in ("log_every", "eval_every", "checkpoint_every")}
    seed_everything(config["seed"], verbose=False)
    net = instantiate(config["model"], _convert_="all")
    length = {"n": config["model"].get("n"), "iterations": recipe["iterations"]}
    schedule = instantiate(recipe["schedule"], **length, _convert_="all")
    classifier = Classifier(net, instantiate(recipe["optimizer"]), schedule)
    stream = {"seed": config["seed"], "batch_size": recipe["batch_size"], "iterations": recipe["iterations"]}
    data = instantiate(config["data"], **stream, _convert_="all")
    split = "val" if data.val_images else "test"
    record = Record(folder, recipe["iterations"], **intervals, split=split)
    trainer = Trainer(
        **config["trainer"],
        max_steps=recipe["iterations"],
        max_epochs=1,
        val_check_interval=min(recipe["eval_every"], recipe["iterations"]),
        num_sanity_val_steps=0,
        callbacks=record,
        plugins=WholeCheckpoints(),
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data.trainer = trainer
    data.prepare_data()
    data.setup()
    with folder.locked():
        print(
            f"{folder.path}: {recipe['iterations']} iterations in {config['trainer']['precision']}",
            flush=True,
        )
        checkpoint = folder.last_checkpoint if folder.last_checkpoint.exists() else None
        trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if split == "val":
            trainer.test(classifier, datamodule=data, verbose=False)
        if trainer.is_global_zero:
            folder.finish(summarize(folder, trainer, classifier, data, record))
            print(f"{folder.path}: {in_words(folder.summary)}", flush=True)


def summarize(
    folder: RunFolder, trainer: "Trainer", classifier: "Classifier", data: "ImagesInMemory", record: "Record"
) -> dict[str, Any]:
    """The results of a finished run: final weights, at the last iteration."""
    from src.hardware import device_name, git_commit, versions
    from src.models.count import multiply_adds, parameters

    config, last = folder.config, folder.last_row()
    if data.val_images:
        last |= {f"test/{name}": value for name, value in classifier.take_test_errors().items()}
    return {
        "model": config["choices"]["model"],
        "n": config["model"].get("n"),
        "depth": classifier.net.depth,
        "shortcut": config["model"].get("shortcut"),
        "data": config["choices"]["data"],
        "seed": config["seed"],
        "val_images": data.val_images,
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
        "git_commit": git_commit(),
    }


def in_words(summary: dict[str, Any]) -> str:
    return (
        f"{summary['iterations']} iterations, training error {summary['train_error']:.2f}%, "
        f"test error {summary['test_error']:.2f}% (top-5 {summary['test_error_top5']:.2f}%), "
        f"{summary['images_per_second']:,.0f} images/s"
    )


def quiet_lightning() -> None:
    """Leaves Lightning's remarks out of the output; its errors still come through."""
    import logging
    import warnings

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch.utils._pytree")


if __name__ == "__main__":
    entry(main)
