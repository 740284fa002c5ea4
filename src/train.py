"""Trains one net and tests it: `python -m src.train model=resnet56 data=cifar10`; see --help."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from src.cli import CONF, entry, job, resolve
from src.runs.naming import run_name
from src.runs.run_dir import RunDir
from src.training.sweep import Job, Sweep, slots

JOBS: list[Job] = []  # of a sweep, as Hydra composes one after the other


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
@job
def main(config: DictConfig) -> None:
    folder = find_run_dir(config)
    folder.check_same_config()
    of_hydra = HydraConfig.get()
    if of_hydra.mode == RunMode.MULTIRUN and of_hydra.launcher._target_.endswith("BasicLauncher"):
        JOBS.append(Job(folder, list(of_hydra.overrides.task)))
    elif folder.finished:
        print(f"{folder.path} is finished: {in_words(folder)}")
    else:
        run(folder)


def main_or_sweep() -> None:
    main()
    if JOBS:
        config = JOBS[0].folder.config
        Sweep(JOBS, *slots(config["trainer"]["accelerator"], config["sweep"]["jobs_per_device"])).run()


def find_run_dir(config: DictConfig) -> RunDir:
    """The run folder that belongs to a config, which it resolves, `precision: auto` too.

    Raises ValueError for a value that no run can have.
    """
    config, defaults = resolve(config, "train")
    if not 0 <= config["seed"] < 2**32:
        raise ValueError(f"seed={config['seed']} must be from 0 to 2**32 - 1")
    for key in ("iterations", "batch_size", "log_every", "eval_every", "checkpoint_every"):
        if config["recipe"][key] < 1:
            raise ValueError(f"recipe.{key}={config['recipe'][key]} must be at least 1")
    from src.training.precision import resolve_precision

    config["trainer"]["precision"] = resolve_precision(config["trainer"]["precision"], config["trainer"]["accelerator"])
    defaults["trainer"]["precision"] = "32-true"
    choices = config["choices"]
    return RunDir(Path(config["output_dir"]) / choices["data"] / run_name(config, defaults, choices["model"]), config)


def run(folder: RunDir) -> None:
    """Does what is missing of a run: trains, and tests by the protocol that its config asks for."""
    from pytorch_lightning.utilities import rank_zero_only

    from src.evaluation.evaluator import evaluate_run
    from src.training.callbacks.preemption import Preemption, requeue_if_interrupted
    from src.training.trainer import fit

    with requeue_if_interrupted():
        if not folder.summary:
            fit(folder)
            if rank_zero_only.rank == 0:
                print(f"{folder.path}: {in_words(folder)}", flush=True)
        if not folder.evaluated_as_configured:
            evaluate_run(folder, folder.config["trainer"], folder.config["protocol"], Preemption(folder))


def in_words(folder: RunDir) -> str:
    summary, protocol = folder.summary, folder.config["protocol"]
    test = folder.tested(protocol)
    more = f", by {protocol} {test['test_error']:.2f}% (top-5 {test['test_error_top5']:.2f}%)" if test else ""
    return (
        f"{summary['iterations']} iterations, training error {summary['train_error']:.2f}%, "
        f"test error {summary['test_error']:.2f}% (top-5 {summary['test_error_top5']:.2f}%){more}, "
        f"{summary['images_per_second']:,.0f} images/s"
    )


if __name__ == "__main__":
    entry(main_or_sweep)
