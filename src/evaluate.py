"""Evaluate nets: `python -m src.evaluate run=runs/cifar10/resnet56-bf16-mixed-s0`."""

import re
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.cli import catch_user_errors, run_entry_point
from src.config import CONF, compose_config, resolve
from src.runs.config_files import check_targets, flatten, unflatten, with_present_names
from src.runs.run_dir import RunDir

# Arguments that say of which net and data a file of weights is.
OF_WEIGHTS = re.compile(r"(model|data)[.=]|(n|seed)=")


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
@catch_user_errors
def main(config: DictConfig) -> None:
    """Evaluate what `run=` or `weights=` names: one net, or an ensemble of several."""
    values, _ = resolve(config, "evaluate")
    trainer, protocol = values["trainer"], values["protocol"]
    if bool(values["run"]) == bool(values["weights"]):
        raise ValueError(
            "set either run=DIRECTORY, or weights=FILE with model= and data=; "
            "several, as [A,B], are evaluated as an ensemble"
        )
    overrides = list(HydraConfig.get().overrides.task)
    run_dirs = [_open(path, values["root"]) for path in _as_list(values["run"])]
    classifier = _open(values["classifier"], values["root"]) if values["classifier"] else None
    if run_dirs and (unread := [word for word in overrides if OF_WEIGHTS.match(word)]):
        raise ValueError(f"a run says itself what it is: leave out {' '.join(unread)}")

    # Imported only here, because it imports torch: --help and mistyped keys are answered at once.
    from src.evaluation.evaluator import evaluate, evaluate_runs, make_title

    tasks = {run_dir.task for run_dir in run_dirs}
    if tasks - {"classification"}:
        if len(run_dirs) > 1 and tasks != {"detection"}:
            raise ValueError(
                "classifiers make an ensemble, and so do detectors, but nothing else: "
                "evaluate one run at a time"
            )
        from src.evaluation.task_evaluator import evaluate_task_runs

        if values["show"] and len(run_dirs) > 1:
            raise ValueError("show= draws the test images of one run: leave it out")
        evaluate_task_runs(run_dirs, trainer, protocol, show=values["show"], classifier=classifier)
        return
    if values["show"] or classifier:
        raise ValueError("show= and classifier= are for runs of other tasks: leave them out")
    if run_dirs:
        evaluate_runs(run_dirs, trainer, protocol)
    else:
        nets = [net_in_file(file, values, overrides) for file in _as_list(values["weights"])]
        # One file is named by its net, several by their paths.
        names = [net["weights" if len(nets) > 1 else "name"] for net in nets]
        evaluate(nets, trainer, protocol, make_title(names, nets[0]["choices"]["data"]))


def _open(path: str, root: str | None) -> RunDir:
    """Open a run, its data below `root` if that is set; config.yaml stays as it is."""
    run_dir = RunDir.open_trained(Path(path))
    _set_root(run_dir.config["data"], root)
    return run_dir


def _set_root(data: dict[str, Any], root: str | None) -> None:
    if root and "root" not in data:
        raise ValueError(f"root={root} does not apply: these data are not below a directory")
    if root:
        data["root"] = root


def net_in_file(file: str, values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the config of the net in a file of weights, as `evaluate` takes it.

    A file that `src.export` wrote says itself what its net, data and mean are.

    Args:
        file: The file.
        values: The config of the command line.
        overrides: The arguments of the command line that it was composed of.

    Raises:
        ValueError: `model=` or `data=` contradicts the file, or the file names code outside this
            project.
    """
    from src.models.weights import read_metadata

    metadata = read_metadata(Path(file))
    if "model" not in metadata:
        _set_root(values["data"], values["root"])
        return values | {"weights": file, "name": values["choices"]["model"]}

    given = {override.partition("=")[0] for override in overrides}
    net_given = any(key == "n" or key.partition(".")[0] == "model" for key in given)
    name, data = metadata["net"], metadata["data"]
    # An older file may have old names.
    metadata |= unflatten(with_present_names(flatten({"model": metadata["model"]})))
    if net_given and values["model"] != metadata["model"]:
        raise ValueError(f"{file} holds weights of {name}: leave out model=, model.* and n=")
    if "data" in given and values["choices"]["data"] != data:
        raise ValueError(f"{file} holds weights for data={data}: leave out data=")
    composed = compose_config(*overrides, f"data={data}", config_name="evaluate")
    own, _ = resolve(composed, "evaluate")
    _set_root(own["data"], values["root"])
    config = own | metadata | {"data": own["data"], "weights": file, "name": name}
    check_targets(config, Path(file))
    return config


def _as_list(value: str | list[str] | None) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


if __name__ == "__main__":
    run_entry_point(main)
