"""Train one net and evaluate it: `python -m src.train model=resnet56 data=cifar10`; see --help."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from src.cli import catch_user_errors, format_error, run_entry_point
from src.config import CONF, find_run_dir, without_hydra
from src.runs.describe import describe_results
from src.runs.lock import LockedError
from src.runs.loggers import is_shown_in_wandb
from src.runs.run_dir import RunDir
from src.runs.wandb_identity import is_agent_trial
from src.training.launcher import SweepLauncher, register_launcher

if TYPE_CHECKING:
    from pytorch_lightning import Callback


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
@catch_user_errors
def main(config: DictConfig) -> None:
    """Train and evaluate the run of a config, unless it is finished."""
    run_dir = find_run_dir(config)
    run_dir.check_same_config()
    if run_dir.finished:
        print(f"{run_dir.path} is finished: {describe_results(run_dir)}")
        if is_agent_trial() and is_shown_in_wandb(run_dir.config):
            # The agent's sweep waits for the result of this trial, which is a run of its own there.
            from src.training.callbacks.wandb import send_finished_run

            send_finished_run(run_dir)
    else:
        run(run_dir)


def run(run_dir: RunDir, callbacks: Sequence["Callback"] = ()) -> None:
    """Do what is missing of a run: train it, and evaluate it with the protocol of its config.

    Args:
        run_dir: the directory of the run.
        callbacks: further callbacks of the Trainer, called after the run's own.
    """
    # Imported here: torch and Lightning take seconds, which --help and error messages need not.
    from src.evaluation.evaluator import evaluate_runs
    from src.evaluation.task_evaluator import evaluate_task_runs
    from src.training.callbacks.preemption import Preemption, requeue_if_interrupted
    from src.training.distributed import is_rank_zero
    from src.training.intervals import Intervals
    from src.training.trainer import fit

    with requeue_if_interrupted():
        if not run_dir.summary:
            fit(run_dir, callbacks)
            if is_rank_zero():
                print(f"{run_dir.path} finished: {describe_results(run_dir)}", flush=True)
        if not run_dir.evaluated_as_configured:
            config = run_dir.config
            preemption = Preemption(run_dir, Intervals.of(config))
            trainer = config["trainer"] | {"precision": "32-true"}
            classifies = run_dir.task == "classification"
            evaluate = evaluate_runs if classifies else evaluate_task_runs
            evaluate([run_dir], trainer, config["protocol"], preemption)


def run_in_sweep(run_dir: RunDir) -> None:
    """Run in the process that a sweep started, and record a failure as its user would read it."""
    try:
        run(run_dir)
    except LockedError as error:
        # Not recorded: error.txt belongs to the process that has the lock.
        raise SystemExit(str(error)) from error
    except Exception as error:
        run_dir.write_error(format_error(error))
        raise


class DevicesLauncher(SweepLauncher):
    """Launch the runs of a sweep, each in a process of its own."""

    def find_run_dir(self, config: DictConfig) -> RunDir:
        """Return the run directory of one run, which must not hold another run."""
        run_dir = find_run_dir(without_hydra(config))
        run_dir.check_same_config()
        return run_dir

    run = staticmethod(run_in_sweep)

    def on_sweep_end(self, run_dirs: Sequence[RunDir]) -> None:
        """Save in W&B what compares the runs, if they are shown there."""
        shown = [run for run in run_dirs if is_shown_in_wandb(run.config)]
        if shown and not is_agent_trial():
            from src.report.wandb_upload import send_sweep

            send_sweep(shown)


register_launcher(DevicesLauncher)

if __name__ == "__main__":
    run_entry_point(main)
