"""When a run logs, evaluates and saves, in iterations counted from 1."""

from typing import Any, NamedTuple, Self


class Intervals(NamedTuple):
    """The intervals of a run.

    Attributes:
        iterations: length of the run.
        log_every: iterations between two rows of training metrics.
        eval_every: iterations between two evaluations.
        checkpoint_every: iterations between two occasions to save a checkpoint.
        checkpoint_seconds: the least time between two checkpoints.
    """

    iterations: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    checkpoint_seconds: float

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """Return the intervals of a run's config."""
        values = config["recipe"] | config
        return cls(*(values[name] for name in cls._fields))

    def is_last(self, iteration: int) -> bool:
        """Return whether this is the last iteration."""
        return iteration == self.iterations

    def evaluates(self, iteration: int) -> bool:
        """Return whether an evaluation follows this iteration; the last is always evaluated."""
        return iteration % self.eval_every == 0 or self.is_last(iteration)

    def logs(self, iteration: int) -> bool:
        """Return whether this iteration gets a row in metrics.csv."""
        return iteration % self.log_every == 0 or self.evaluates(iteration)

    def may_save(self, iteration: int) -> bool:
        """Return whether a checkpoint may be saved after this iteration and its evaluation."""
        return iteration % self.checkpoint_every == 0 or self.evaluates(iteration)
