"""Tests a net: `python -m src.evaluate run=runs/cifar10/resnet56-s0`; see --help."""

import time
from pathlib import Path

import hydra
import yaml
from omegaconf import DictConfig

from src.command_line import CONF, entry, job, resolve
from src.run import RunFolder


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
@job
def main(config: DictConfig) -> None:
    config, _ = resolve(config, "evaluate")
    if (config["run"] is None) == (config["weights"] is None):
        raise ValueError("say either run=FOLDER, or weights=FILE with model= and data=")
    name, data = config["choices"]["model"], config["choices"]["data"]
    if config["run"]:
        folder = RunFolder(Path(config["run"]), {})
        if not folder.last_checkpoint.exists():
            raise FileNotFoundError(f"{folder.path} is no run folder with a checkpoint in it")
        of_run = yaml.safe_load((folder.path / "config.yaml").read_text())
        config |= {key: of_run[key] for key in ("model", "data", "seed")}
        config["trainer"]["precision"] = config["trainer"]["precision"] or of_run["trainer"]["precision"]
        config["weights"], name, data = folder.last_checkpoint, folder.path.name, of_run["choices"]["data"]
    evaluate(config, f"{name} on {data}")


def evaluate(config: dict, name: str) -> tuple[int, int, int]:
    """Prints the errors over every test image; returns top-1 mistakes, top-5 mistakes, images."""
    from hydra.utils import instantiate
    from pytorch_lightning import Trainer

    from src.classifier import Classifier
    from src.hardware import quiet_lightning
    from src.weights import load_weights, read_weights

    quiet_lightning()
    net = instantiate(config["model"], _convert_="all")
    load_weights(net, read_weights(Path(config["weights"])))
    data = instantiate(config["data"], seed=config["seed"], _convert_="all")
    config["trainer"]["precision"] = config["trainer"]["precision"] or "32-true"
    trainer = Trainer(**config["trainer"], logger=False, enable_checkpointing=False, enable_progress_bar=False)
    classifier = Classifier(net)
    data.prepare_data()
    data.setup()
    start = time.perf_counter()
    trainer.test(classifier, datamodule=data, verbose=False)
    seconds = time.perf_counter() - start
    _, mistakes, mistakes_top5, images = classifier.tested.compute()
    print(
        f"{name}: top-1 error {100 * mistakes / images:.2f}%, top-5 error {100 * mistakes_top5 / images:.2f}% "
        f"({mistakes:,} and {mistakes_top5:,} of {images:,} test images), {images / seconds:,.0f} images/s"
    )
    return mistakes, mistakes_top5, images


if __name__ == "__main__":
    entry(main)
