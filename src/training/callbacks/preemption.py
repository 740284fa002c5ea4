"""A run that is told to stop saves at its next iteration and, as a job of SLURM, goes back into the queue.

SLURM tells it by SIGTERM or by the signal that `sbatch --signal` names, submitit by SIGUSR2. Lightning would save in
the middle of whatever the signal interrupts, and into a file of its own.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning import Callback, Trainer
from torch import distributed

from src.runs.run_dir import RunDir
from src.training.callbacks.record import Record
from src.training.distributed import PATIENCE, requeue

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(SystemExit):
    """The end of a process that was told to stop; the exit status is 128 and the signal's number."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(128 + number)
        self.where = where


class Preemption(Callback):
    """Comes before `record` among the callbacks, which saves when it is told of the last iteration.

    After that checkpoint, or the evaluation that is due before it, comes `Interrupted` in place of the next iteration, and
    while the final weights are tested, which are saved, it comes at once. The processes of a run stop all at the same
    iteration; the first one speaks for them: the others' exit status is 0, as a launcher kills it if theirs is not.
    Where there is nothing but the test, there is no record.
    """

    def __init__(self, folder: RunDir, record: Record | None = None) -> None:
        self.folder, self.record, self.signal = folder, record, 0
        self.question: tuple[distributed.Work, torch.Tensor] | None = None

    def on_train_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.world_size > 1:
            self.group = distributed.new_group(backend="gloo", timeout=PATIENCE)
            # Lightning asks the first process, too; each iteration waits for the answer, on a GPU the device as well.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._listen()

    def on_test_start(self, *_: object) -> None:
        self._listen()

    def _listen(self) -> None:
        for number in SIGNALS:  # Lightning's own is in place by now, and puts back what was before it
            signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        self.signal = number

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.world_size > 1:
            self.record.stopping = self._agreed()
        else:
            self.record.stopping = self.signal

    def _agreed(self) -> int:
        """The signal that a process of the run got by the iteration before, the same in all; 0 if none did.

        Each iteration asks all of them and takes the answer to the question before, which has come by then: nothing
        waits, on a GPU nothing either.
        """
        told = 0
        if self.question:
            work, answer = self.question
            work.wait()
            told = int(answer)
        mine = torch.tensor(self.signal)
        self.question = distributed.all_reduce(mine, distributed.ReduceOp.MAX, self.group, async_op=True), mine
        return told

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if self.record.stopping:
            self._end(trainer, self.record.stopping, trainer.global_step)

    def on_test_batch_end(self, trainer: Trainer, *_: object) -> None:
        if self.signal:
            self._end(trainer, self.signal, self.folder.config["recipe"]["iterations"])

    def _end(self, trainer: Trainer, number: int, iteration: int) -> None:
        if not trainer.is_global_zero:
            raise SystemExit(0)
        name = signal.Signals(number).name
        raise Interrupted(number, f"{self.folder.path} stopped by {name}: saved at iteration {iteration}")


@contextmanager
def requeue_if_interrupted() -> Iterator[None]:
    """Requeues a stopped run once all that it had open is closed: SLURM then kills what is left of its processes."""
    try:
        yield
    except Interrupted as stopped:
        print(f"{stopped.where}; {requeue()}", flush=True)
        raise
