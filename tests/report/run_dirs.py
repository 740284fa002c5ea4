"""Writes run folders as src.train does, without training anything."""

import copy
import json
from pathlib import Path

import yaml

from src.runs.atomic_io import append
from src.runs.run_dir import RunDir

RECIPE = {
    "iterations": 64000,
    "batch_size": 128,
    "optimizer": {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "momentum": 0.9,
        "nesterov": False,
        "fused": True,
        "weight_decay": 0.0001,
    },
    "schedule": {
        "_target_": "src.training.lr_schedule.Schedule",
        "lr": 0.1,
        "milestones": [0.5, 0.75],
        "gamma": 0.1,
        "warmup_from_n": 18,
        "warmup_lr": 0.01,
        "warmup_error": 80.0,
    },
    "eval_every": 1000,
    "log_every": 100,
    "checkpoint_every": 500,
}
DATA = {"root": "data", "val_images": 0, "normalization": "pixel"}
DATA_TARGETS = {"cifar10": "src.data.cifar10.CIFAR10", "digits": "src.data.digits.Digits"}
TARGETS = {
    "plain": "src.models.resnet.plain",
    "resnet": "src.models.resnet.resnet",
    "preactivation": "src.models.preact_resnet.preact_resnet",
}
PARAMETERS = {8: 75290, 20: 269722, 56: 853018, 110: 1727962}


def make_config(kind="resnet", depth=20, seed=0, data="cifar10", **overrides):
    """A resolved config; `overrides` are flat keys with __ for the dots, such as recipe__iterations=2000."""
    model = {"_target_": TARGETS[kind], "n": (depth - 2) // 6, "num_classes": 10, "init": "fan_in"}
    if kind != "plain":
        model["shortcut"] = "A"
    config = {
        "choices": {"data": data, "model": f"{kind}{depth}", "recipe": data, "experiment": None},
        "model": model,
        "data": DATA | {"_target_": DATA_TARGETS.get(data, "elsewhere.Data")},
        "recipe": copy.deepcopy(RECIPE),
        "n": 3,
        "seed": seed,
        "runs": "runs",
        "activation_checkpointing": False,
        "trainer": {"accelerator": "auto", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"},
    }
    for key, value in overrides.items():
        *groups, last = key.split("__")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
    return config


def write_run(root, config, errors=(), final=None, failure=None, layers=None, name=None):
    """Writes a folder in the state that its arguments make it.

    Args:
        errors: pairs of training and test error in percent, at equal distances; a row without errors precedes each.
        final: training and test error; the run is finished.
        layers: (gradient, response) of each layer, None for no response.
    """
    kind, seed = config["choices"]["model"], config["seed"]
    folder = RunDir(Path(root) / config["choices"]["data"] / (name or f"{kind}-s{seed}"), config)
    folder.path.mkdir(parents=True)
    (folder.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    iterations, depth = config["recipe"]["iterations"], 6 * config["model"]["n"] + 2
    for i, (train, test) in enumerate(errors, start=1):
        at = iterations * i // 8
        folder.log({"iteration": at - iterations // 16, "lr": 0.1, "train/loss": train / 40})
        now = {"iteration": at, "lr": 0.1 if i < 4 else 0.01, "train/loss": train / 40}
        folder.log(now | {"train/error": train, "test/error": test, "test/loss": test / 40})
        if layers:
            lines = [(at, f"conv{k}", gradient, response) for k, (gradient, response) in enumerate(layers)]
            columns = ["iteration", "layer", "gradient", "response"]
            append(folder.layers, columns, [dict(zip(columns, line, strict=True)) for line in lines])
    if final:
        summary = {"model": kind, "n": config["model"]["n"], "depth": depth, "data": config["choices"]["data"]}
        summary |= {"shortcut": config["model"].get("shortcut"), "seed": seed, "iterations": iterations}
        summary |= {"val_images": config["data"]["val_images"], "parameters": PARAMETERS.get(depth, 10**6)}
        summary |= {"macs": 2_026_000 * depth, "train_error": final[0], "val_error": None, "test_error": final[1]}
        summary |= {"test_error_top5": 1.0, "images_per_second": 40_000 / depth, "seconds": 60.0, "devices": 1}
        summary |= {"precision": config["trainer"]["precision"], "device": "AMD EPYC, 2 cores"}
        summary |= {"versions": {"torch": "2.13.0", "numpy": "2.4.6"}, "git_commit": "0123456789abcdef"}
        (folder.path / "summary.json").write_text(json.dumps(summary))
    if failure is not None:
        folder.error.write_text(failure)
    return folder.path
