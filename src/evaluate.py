"""Evaluate nets: `python -m src.evaluate run=runs/cifar10/resnet56-s0`; see --help."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.cli import CONF, entry, job, resolve
from src.runs.run_dir import RunDir


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
@job
def main(config: DictConfig) -> None:
    """Evaluate what `run=` or `weights=` names: one net, or an ensemble of several."""
    config, _ = resolve(config, "evaluate")
    trainer, protocol = config["trainer"], config["protocol"]
    if bool(config["run"]) == bool(config["weights"]):
        raise ValueError(
            "set either run=DIRECTORY, or weights=FILE with model= and data=; "
            "several, as [A,B], are evaluated as an ensemble"
        )
    run_dirs = [RunDir.trained(Path(path)) for path in _as_list(config["run"])]
    if config["root"]:
        for run_dir in run_dirs:
            run_dir.config["data"]["root"] = config["root"]

    # Imported only here, because it imports torch: --help and mistyped keys are answered at once.
    from src.evaluation.evaluator import evaluate, evaluate_ensemble, evaluate_run

    if len(run_dirs) == 1:
        evaluate_run(run_dirs[0], trainer, protocol)
    elif run_dirs:
        evaluate_ensemble(run_dirs, trainer, protocol)
    else:
        files = _as_list(config["weights"])
        names = files if len(files) > 1 else [config["choices"]["model"]]
        nets = [
            config | {"weights": file, "name": name}
            for file, name in zip(files, names, strict=True)
        ]
        title = f"{'ensemble of ' if len(files) > 1 else ''}{' and '.join(names)}"
        evaluate(nets, trainer, protocol, f"{title} on {config['choices']['data']}")


def _as_list(value: str | list[str] | None) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


if __name__ == "__main__":
    entry(main)
