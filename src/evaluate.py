"""Tests nets: `python -m src.evaluate run=runs/cifar10/resnet56-s0`; see --help."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from src.cli import catch_user_errors as job
from src.cli import run_entry_point as entry
from src.config import CONF, check_targets, resolve
from src.runs.run_dir import RunDir

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningDataModule

    from src.evaluation.protocols import Normalized


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
@job
def main(config: DictConfig) -> None:
    config, _ = resolve(config, "evaluate")
    if bool(config["run"]) == bool(config["weights"]):
        raise ValueError(
            "say either run=FOLDER, or weights=FILE with model= and data=; several as [A,B]"
        )
    trainer, protocol, data = config["trainer"], config["protocol"], config["choices"]["data"]
    if config["run"]:
        folders = [RunDir.open_trained(Path(run)) for run in listed(config["run"])]
        for folder in folders:
            if config["root"]:
                folder.config["data"]["root"] = config["root"]
        if len(folders) == 1:
            evaluate_run(folders[0], trainer, protocol)
            return
        nets, data = (
            [run_config(folder) for folder in folders],
            folders[0].config["choices"]["data"],
        )
        precisions = sorted({net["trainer"]["precision"] for net in nets})
        if trainer["precision"] is None and len(precisions) > 1:
            raise ValueError(
                f"these are runs in {' and '.join(precisions)}: say which with trainer.precision="
            )
        trainer["precision"] = trainer["precision"] or precisions[0]
    else:
        files = listed(config["weights"])
        name = config["choices"]["model"]
        nets = [
            config | {"weights": Path(file), "name": name if len(files) == 1 else file}
            for file in files
        ]
    names = " and ".join(net["name"] for net in nets)
    evaluate(
        nets, trainer, protocol, f"{names if len(nets) == 1 else f'ensemble of {names}'} on {data}"
    )


def listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def run_config(folder: RunDir) -> dict[str, Any]:
    """The config of a run, with its last checkpoint as weights. Raises ValueError if it calls what conf does not."""
    check_targets(folder.config, folder.path)
    return folder.config | {"weights": folder.last_checkpoint, "name": folder.path.name}


def evaluate_run(
    folder: RunDir, trainer: dict[str, Any], protocol: str, *callbacks: "Callback"
) -> None:
    """Tests a run, in its own precision unless `trainer` has one; its folder keeps what a test of photos gave."""
    from pytorch_lightning.utilities import rank_zero_only

    own, data = folder.config["trainer"]["precision"], folder.config["choices"]["data"]
    trainer = trainer | {"precision": trainer["precision"] or own}
    test = evaluate(
        [run_config(folder)], trainer, protocol, f"{folder.path.name} on {data}", *callbacks
    )
    if protocol != "center" and rank_zero_only.rank == 0:
        folder.write_evaluation(test)


def evaluate(
    nets: list[dict[str, Any]],
    trainer: dict[str, Any],
    protocol: str,
    name: str,
    *callbacks: "Callback",
) -> dict[str, Any]:
    """Prints the errors of nets together over every test image, and returns them with all that belongs to them.

    Each of `nets` has `model`, `data` and `seed` as a run's config, its `weights`, a file, and its `name`. The images
    are read once, but each net normalizes them as its own data does: runs of several seeds may hold out other images.
    Raises ValueError for a protocol that is not there, and for nets whose data have other test images.
    """
    from pytorch_lightning import Trainer
    from tqdm import tqdm

    from src.evaluation.protocols import Bar, Ensemble, TestViews, labels_of
    from src.runs.environment import git_commit, silence_lightning, versions
    from src.tasks.classification import Classifier
    from src.training.precision import device_name

    silence_lightning()
    members, data = load(nets)
    views, classifier = TestViews(data, protocol), Classifier(Ensemble(members))
    trainer = trainer | {"precision": trainer["precision"] or "32-true"}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with tqdm(
        desc="testing", total=len(labels_of(data)), unit=" images", leave=False, disable=None
    ) as bar:
        tester = Trainer(**trainer, **quiet, callbacks=[Bar(bar), *callbacks])
        start = time.perf_counter()
        tester.test(classifier, datamodule=views, verbose=False)
        seconds = time.perf_counter() - start
    _, mistakes, mistakes_top5, images = classifier.eval_meter.compute()
    if not images:
        raise ValueError("none of the test images can be read")
    error, error_top5, speed = (
        100 * mistakes / images,
        100 * mistakes_top5 / images,
        images / seconds,
    )
    if tester.is_global_zero:
        print(
            f"{name}, {protocol}: top-1 error {error:.2f}%, top-5 error {error_top5:.2f}% ({mistakes:,} and "
            f"{mistakes_top5:,} of {images:,} test images), {speed:,.{0 if speed >= 10 else 1}f} images/s",
            flush=True,
        )
    return {
        "protocol": protocol,
        "mistakes": mistakes,
        "mistakes_top5": mistakes_top5,
        "images": images,
        "test_error": error,
        "test_error_top5": error_top5,
        "images_per_second": speed,
        "precision": trainer["precision"],
        "device": device_name(tester.strategy.root_device),
        "devices": tester.world_size,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def load(nets: list[dict[str, Any]]) -> tuple[list["Normalized"], "LightningDataModule"]:
    """The nets with their weights, and the data of the first, set up. Raises ValueError if theirs are not the same."""
    import numpy as np
    from hydra.utils import instantiate

    from src.evaluation.protocols import Normalized, labels_of
    from src.evaluation.weights import load_weights, read_weights

    members, modules = [], {}
    for config in nets:
        net = instantiate(config["model"], _convert_="all")
        load_weights(net, read_weights(Path(config["weights"])))
        key = str((config["data"], config["seed"]))
        if key not in modules:
            modules[key] = data = instantiate(config["data"], seed=config["seed"], _convert_="all")
            data.prepare_data()
            data.setup()
        members.append(
            Normalized(net, modules[key].mean, modules[key].std, config["data"].get("bgr", False))
        )
        first = next(iter(modules.values()))
        if not np.array_equal(labels_of(modules[key]), labels_of(first)):
            raise ValueError(
                f"{config['name']} is of other data: an ensemble must have one and the same test images"
            )
    return members, first


if __name__ == "__main__":
    entry(main)
