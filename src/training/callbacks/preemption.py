"""End a run on a signal: save at the next iteration and, as a SLURM job, return to the queue.

SLURM sends SIGTERM or the signal named by `sbatch --signal`, submitit sends SIGUSR2. Lightning's
own handling is not used: it saves in the middle of whatever the signal interrupts, and into a file
of its own.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning import Trainer
from torch import distributed

from src.runs.run_dir import RunDir
from src.runs.wandb_identity import is_agent_trial
from src.training.callbacks.base import RunCallback
from src.training.distributed import (
    LOST_PROCESS_TIMEOUT,
    abort_nccl,
    disable_sigterm_broadcast,
    requeue,
)
from src.training.intervals import Intervals

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(SystemExit):
    """The end of a process on a signal; the exit status is 128 plus the signal's number."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(128 + number)
        self.where = where


class Preemption(RunCallback):
    """Raise `Interrupted` at the iteration after a signal, on all ranks at the same one.

    `Checkpointing` saves in between, when it sees `agreed_signal`. While the final weights are
    evaluated, which are saved already, `Interrupted` is raised at once. Rank 0 speaks for the run:
    the others exit with status 0, because a launcher kills the whole job if one of them does not.

    Attributes:
        agreed_signal: the signal that ends the run, known to all ranks; 0 if there is none.
    """

    def __init__(self, run_dir: RunDir, intervals: Intervals) -> None:
        self.run_dir, self.intervals = run_dir, intervals
        self.received_signal = self.agreed_signal = 0
        self.question: tuple[distributed.Work, torch.Tensor] | None = None

    def on_train_start(self, trainer: Trainer, *_: object) -> None:
        """Install the signal handlers, and the group in which the ranks agree."""
        if trainer.world_size > 1:
            # gloo, on the CPU: agreeing must not wait for a GPU.
            group = distributed.new_group(backend="gloo", timeout=LOST_PROCESS_TIMEOUT)
            assert isinstance(group, distributed.ProcessGroup)  # every rank belongs to it
            self.group = group
            disable_sigterm_broadcast(trainer)
        self._install_handlers()

    def on_test_start(self, *_: object) -> None:
        """Install the signal handlers."""
        self._install_handlers()

    def _install_handlers(self) -> None:
        # Lightning has installed its own by now, and later restores what was before it.
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: object) -> None:
        self.received_signal = number

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Find out whether the run ends after this iteration."""
        if trainer.world_size == 1:
            self.agreed_signal = self.received_signal
            return
        # Each iteration asks a question and takes the answer to the one before, which has arrived
        # by then, so nothing waits.
        self.agreed_signal = self._answer()
        mine = torch.tensor(self.received_signal)
        work = distributed.all_reduce(mine, distributed.ReduceOp.MAX, self.group, async_op=True)
        assert work is not None  # as for every asynchronous operation
        self.question = work, mine
        if self.intervals.logs(trainer.global_step):
            # Measuring waits for the GPU, for ever if a rank is lost: find that out before.
            self.agreed_signal = max(self.agreed_signal, self._answer())

    def _answer(self) -> int:
        """Return the signal that a rank had received when it was last asked, 0 for none."""
        if self.question is None:
            return 0
        work, tensor = self.question
        self.question = None
        try:
            work.wait()
        except RuntimeError:
            abort_nccl()
            raise
        return int(tensor)

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        """End the run in place of its next iteration."""
        if self.agreed_signal:
            self._end(trainer, self.agreed_signal, trainer.global_step)

    def on_test_batch_end(self, trainer: Trainer, *_: object) -> None:
        """End the evaluation of the final weights."""
        if self.received_signal:
            iterations = self.run_dir.config["recipe"]["iterations"]
            self._end(trainer, self.received_signal, iterations)

    def _end(self, trainer: Trainer, number: int, iteration: int) -> None:
        if not trainer.is_global_zero:
            raise SystemExit(0)
        name = signal.Signals(number).name
        where = f"{self.run_dir.path} interrupted by {name}: saved at iteration {iteration}"
        raise Interrupted(number, where)


@contextmanager
def requeue_if_interrupted() -> Iterator[None]:
    """Requeue an interrupted run once its files are closed: SLURM then kills its processes.

    Not if it is a trial of `wandb agent`, which stops trials and takes any other exit status than 0
    for a failure: after three of them it would give up.
    """
    try:
        yield
    except Interrupted as interrupted:
        if is_agent_trial():
            print(f"{interrupted.where}; ended by the W&B agent", flush=True)
            raise SystemExit(0) from interrupted
        print(f"{interrupted.where}; {requeue()}", flush=True)
        raise
