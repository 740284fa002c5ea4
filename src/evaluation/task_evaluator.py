"""Evaluate a run of detection or segmentation on the complete test set of its data."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from pytorch_lightning import Callback
from tqdm import tqdm

from src.data.object_data import ObjectData
from src.evaluation.evaluator import ImageProgress, make_trainer
from src.runs.config_files import check_targets
from src.runs.environment import silence_lightning
from src.runs.run_dir import RunDir
from src.tasks.base import EXAMPLES, Task
from src.training.build import build_task
from src.training.precision import forbid_tf32


def evaluate_task(
    run_dir: RunDir, trainer_config: dict[str, Any], show: int, *callbacks: Callback
) -> None:
    """Evaluate a run, print its metrics, and write again what a finished run keeps of its test.

    Args:
        run_dir: A run with a checkpoint.
        trainer_config: Arguments of Lightning's Trainer.
        show: Number of test images to draw into examples.png of the run directory.
        callbacks: More callbacks for Lightning's Trainer.
    """
    silence_lightning()
    module, data = load_task(run_dir)
    forbid_tf32(trainer_config["precision"])
    images = len(data.test_labels)
    with tqdm(desc="evaluating", total=images, unit=" images", leave=False, disable=None) as bar:
        trainer = make_trainer(trainer_config, [ImageProgress(bar), *callbacks])
        trainer.test(module, datamodule=data, verbose=False)
    metrics = module.pop_eval_metrics()
    if trainer.is_global_zero:
        name = f"{run_dir.path.name} on {run_dir.config['choices']['data']}"
        print(f"{name}: {module.describe_test(metrics)} ({images:,} test images)", flush=True)
        module.write_artifacts(run_dir, data, show or EXAMPLES)
        if show:
            print(f"written: {run_dir.path / 'examples.png'}")


def load_task(run_dir: RunDir) -> tuple[Task, ObjectData]:
    """Return the module of a run with its last weights, and its data, set up."""
    config = run_dir.config
    check_targets(config, run_dir.path / "config.yaml")
    net = instantiate(config["model"], _convert_="all")
    data = instantiate(config["data"], seed=config["seed"], _convert_="all")
    data.prepare_data()
    data.setup("test")
    module = build_task(config, net, data)
    module.load_state_dict(read_state(run_dir.last_checkpoint))
    return module, data


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a checkpoint, which has weights and plain values only."""
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
