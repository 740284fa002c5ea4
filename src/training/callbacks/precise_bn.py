"""Precise batch norm: statistics recomputed after training, as the paper's authors did (App. A).

During training batch norm keeps moving averages, which lag behind the weights. After the last
update they are replaced by plain averages over many training batches with the final weights.
"""

from collections.abc import Iterator

import torch
from pytorch_lightning import Trainer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from src.tasks.classification import Batch, Classifier
from src.training.callbacks.base import RunCallback
from src.training.callbacks.stopwatch import Stopwatch
from src.training.intervals import Intervals


class PreciseBN(RunCallback):
    """Recompute the statistics after the last iteration, before it is evaluated.

    Args:
        batches: the number of training batches to average over; 0 keeps the moving averages.
        intervals: when the run ends.
        stopwatch: counts the time as evaluation.
    """

    def __init__(self, batches: int, intervals: Intervals, stopwatch: Stopwatch) -> None:
        self.batches, self.intervals, self.stopwatch = batches, intervals, stopwatch

    def on_train_batch_end(self, trainer: Trainer, module: Classifier, *_: object) -> None:
        """Recompute the statistics if this was the last iteration."""
        if self.batches and self.intervals.is_last(trainer.global_step):
            with self.stopwatch.evaluating():
                recompute_bn_statistics(trainer, module, self.batches)


@torch.compiler.set_stance("force_eager")  # one epoch at most is not worth compiling for
def recompute_bn_statistics(trainer: Trainer, module: Classifier, batches: int) -> None:
    """Replace each batch norm's running statistics by averages over training batches.

    The last `batches` of the training stream go through the net in training mode; their means and
    unbiased variances are averaged, over all processes as well. Nothing else changes, except for
    the count of tracked batches.
    """
    norms = [layer for layer in module.net.modules() if isinstance(layer, _BatchNorm)]
    if not norms:
        return
    with trainer.precision_plugin.forward_context():
        update_bn(last_batches(trainer, module, batches), module.net)
    for norm in norms:
        for statistic in (norm.running_mean, norm.running_var):
            # In place: a captured step knows them by their address.
            if statistic is not None:
                statistic.copy_(trainer.strategy.reduce(statistic, reduce_op="mean"))


def last_batches(trainer: Trainer, module: Classifier, count: int) -> Iterator[Batch]:
    """Yield the last batches of the training stream, on the device as in training."""
    stream = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    stream.load_state_dict({"iteration": max(0, len(stream) - count)})
    for batch in stream:
        batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
        yield module.augment(*batch)
