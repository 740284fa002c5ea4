"""Write run directories as src.train does, without training anything."""

import copy
import json
from functools import cache
from pathlib import Path

import yaml

from src.runs.config_files import CONF
from src.runs.run_dir import RunDir
from src.tables import write_csv

PARAMETERS = {8: 75290, 20: 269722, 56: 853018, 110: 1727962}


@cache
def read_conf(group, name):
    """The nested values of a file of conf and of its bases."""
    own = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    merged = {}
    for base in [*own.pop("defaults", []), None]:
        for key, value in (read_conf(group, base) if base else own).items():
            both = isinstance(value, dict) and key in merged
            merged[key] = merged[key] | value if both else value
    return merged


def make_config(kind="resnet", depth=20, seed=0, data="cifar10", **overrides):
    """Make a resolved config that trains on all images.

    `overrides` are flat keys with __ for the dots, such as recipe__iterations=2000.
    """
    config = {
        "choices": {"data": data, "model": f"{kind}{depth}", "recipe": data, "experiment": None},
        "model": read_conf("model", kind) | {"n": (depth - 2) // 6},
        "data": read_conf("data", data) | {"val_images": 0},
        "recipe": read_conf("recipe", data),
        "n": 3,
        "seed": seed,
        "output_dir": "runs",
        "activation_checkpointing": False,
        "trainer": {
            "accelerator": "auto",
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "precision": "32-true",
        },
    }
    config = copy.deepcopy(config)
    for key, value in overrides.items():
        *groups, last = key.split("__")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
    return config


def layer_row(iteration, number, gradient, response=None):
    return {
        "iteration": iteration,
        "layer": f"conv{number}",
        "gradient": gradient,
        "scaled_gradient": gradient * (3 if iteration == 1 else 2),
        "response": response,
    }


def write_run(
    root, config, errors=(), final=None, failure=None, layers=None, name=None, signals=()
):
    """Write a run directory in the state that the arguments describe.

    Args:
        errors: Pairs of training and test error in percent, at equal distances; a row without
            errors precedes each.
        final: Training and test error of a finished run.
        failure: The text of error.txt.
        layers: (gradient, response) of each layer; None for no response. The weights have a norm
            of 3 at the first iteration, then of 2.
        name: The directory's name, if not the net's and the seed's.
        signals: (forward, backward) of each layer at the first iteration.
    """
    kind, seed, data = config["choices"]["model"], config["seed"], config["choices"]["data"]
    path = Path(root) / data / (name or f"{kind}-s{seed}")
    run_dir = RunDir(path, config)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    iterations, depth = config["recipe"]["iterations"], 6 * config["model"]["n"] + 2
    rows = []
    layer_rows = [layer_row(1, k, gradient) for k, (gradient, _) in enumerate(layers or ())]
    for row, (forward, backward) in zip(layer_rows, signals, strict=False):
        row |= {"forward_std": forward, "backward_std": backward}
    for i, (train, test) in enumerate(errors, start=1):
        at = iterations * i // 8
        loss = {"lr": 0.1 if i < 4 else 0.01, "train/loss": train / 40}
        rows.append({"iteration": at - iterations // 16} | loss)
        rows.append(
            {"iteration": at}
            | loss
            | {"train/error": train, "test/error": test, "test/loss": test / 40}
        )
        layer_rows += [layer_row(at, k, *values) for k, values in enumerate(layers or ())]
    for file, written in ((run_dir.metrics, rows), (run_dir.layers, layer_rows)):
        if written:
            write_csv(file, written)

    if final:
        summary = {
            "model": kind,
            "n": config["model"]["n"],
            "depth": depth,
            "data": data,
            "shortcut": config["model"].get("shortcut"),
            "seed": seed,
            "iterations": iterations,
            "val_images": config["data"]["val_images"],
            "parameters": PARAMETERS.get(depth, 10**6),
            "macs": 2_026_000 * depth,
            "train_error": final[0],
            "val_error": None,
            "test_error": final[1],
            "test_error_top5": 1.0,
            "images_per_second": 40_000 / depth,
            "seconds": 60.0,
            "devices": 1,
            "precision": config["trainer"]["precision"],
            "device": "AMD EPYC, 2 cores",
            "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
            "git_commit": "0123456789abcdef",
        }
        (path / "summary.json").write_text(json.dumps(summary))
    if failure is not None:
        run_dir.error.write_text(failure)
    return path
