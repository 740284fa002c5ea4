"""Tests nets: `python -m src.evaluate run=runs/cifar10/resnet56-s0`; see --help."""

import time
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from src.command_line import CONF, entry, job, resolve
from src.run import RunFolder


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
@job
def main(config: DictConfig) -> None:
    config, _ = resolve(config, "evaluate")
    if bool(config["run"]) == bool(config["weights"]):
        raise ValueError("say either run=FOLDER, or weights=FILE with model= and data=; several as [A,B]")
    trainer, choices = config["trainer"], config["choices"]
    if config["run"]:
        nets = [run_net(Path(run)) for run in listed(config["run"])]
        precisions = sorted({net["trainer"]["precision"] for net in nets})
        if trainer["precision"] is None and len(precisions) > 1:
            raise ValueError(f"these are runs in {' and '.join(precisions)}: say which with trainer.precision=")
        trainer["precision"] = trainer["precision"] or precisions[0]
        names, choices = [net["name"] for net in nets], nets[0]["choices"]
    else:
        files = listed(config["weights"])
        nets = [config | {"weights": Path(file), "name": file} for file in files]
        names = [choices["model"]] if len(files) == 1 else files
    of = names[0] if len(names) == 1 else f"ensemble of {' and '.join(names)}"
    evaluate(nets, trainer, config["protocol"], f"{of} on {choices['data']}, {config['protocol']}")


def listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def run_net(run: Path) -> dict[str, Any]:
    """The config of a run, with its last checkpoint as weights. Raises FileNotFoundError if there is none."""
    folder = RunFolder.trained(run)
    return folder.config | {"weights": folder.last_checkpoint, "name": run.name}


def evaluate(nets: list[dict[str, Any]], trainer: dict[str, Any], protocol: str, name: str) -> tuple[int, int, int]:
    """Prints the errors of nets together over every test image; returns top-1 mistakes, top-5 mistakes, images.

    Each of `nets` has `model`, `data` and `seed` as a run's config, its `weights`, a file, and its `name`. The images
    are read once, but each net normalizes them as its own data does: runs of several seeds may hold out other images.
    Raises ValueError for a protocol that is not there, and for nets whose data have other test images.
    """
    import numpy as np
    from hydra.utils import instantiate
    from pytorch_lightning import Trainer
    from tqdm import tqdm

    from src.classifier import Classifier
    from src.hardware import quiet_lightning
    from src.protocols import PROTOCOLS, Bar, Ensemble, Normalized, Views, labels_of
    from src.weights import load_weights, read_weights

    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol} is not one of {', '.join(PROTOCOLS)}")
    quiet_lightning()
    members, modules = [], {}
    for config in nets:
        net = instantiate(config["model"], _convert_="all")
        load_weights(net, read_weights(Path(config["weights"])))
        key = str((config["data"], config["seed"]))
        if key not in modules:
            modules[key] = data = instantiate(config["data"], seed=config["seed"], _convert_="all")
            data.prepare_data()
            data.setup()
        members.append(Normalized(net, modules[key].mean, modules[key].std))
        first = next(iter(modules.values()))
        if not np.array_equal(labels_of(modules[key]), labels_of(first)):
            raise ValueError(f"{config['name']} is of other data: an ensemble must have one and the same test images")
    views, classifier = Views(first, protocol), Classifier(Ensemble(members))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with tqdm(desc="testing", total=len(labels_of(first)), unit=" images", leave=False, disable=None) as bar:
        tester = Trainer(**trainer | {"precision": trainer["precision"] or "32-true"}, **quiet, callbacks=[Bar(bar)])
        start = time.perf_counter()
        tester.test(classifier, datamodule=views, verbose=False)
        seconds = time.perf_counter() - start
    _, mistakes, mistakes_top5, images = classifier.tested.compute()
    speed = images / seconds
    if not images:
        raise ValueError("none of the test images can be read")
    print(
        f"{name}: top-1 error {100 * mistakes / images:.2f}%, top-5 error {100 * mistakes_top5 / images:.2f}% "
        f"({mistakes:,} and {mistakes_top5:,} of {images:,} test images), {speed:,.{0 if speed >= 10 else 1}f} images/s"
    )
    return mistakes, mistakes_top5, images


if __name__ == "__main__":
    entry(main)
