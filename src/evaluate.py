"""Evaluate nets: `python -m src.evaluate run=runs/cifar10/resnet56-s0`; see --help."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.cli import catch_user_errors, run_entry_point
from src.config import CONF, resolve
from src.runs.run_dir import RunDir


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
    run_dirs = [RunDir.open_trained(Path(path)) for path in _as_list(values["run"])]
    if values["root"]:
        for run_dir in run_dirs:  # in memory only: config.yaml stays as it is
            run_dir.config["data"]["root"] = values["root"]

    # Imported only here, because it imports torch: --help and mistyped keys are answered at once.
    from src.evaluation.evaluator import evaluate, evaluate_runs, make_title

    if run_dirs:
        evaluate_runs(run_dirs, trainer, protocol)
    else:
        files = _as_list(values["weights"])
        # One file is named by its net, several of the same net by their paths.
        names = files if len(files) > 1 else [values["choices"]["model"]]
        nets = [
            values | {"weights": file, "name": name}
            for file, name in zip(files, names, strict=True)
        ]
        evaluate(nets, trainer, protocol, make_title(names, values["choices"]["data"]))


def _as_list(value: str | list[str] | None) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


if __name__ == "__main__":
    run_entry_point(main)
