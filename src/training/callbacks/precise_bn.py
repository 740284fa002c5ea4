"""Batch norm tested with strict averages taken after training, as the paper's authors did, not with moving ones."""

from collections.abc import Iterator

import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from src.data.sampler import Batch


@torch.compiler.set_stance("force_eager")  # a pass is not worth compiling for
def recompute_bn_statistics(trainer: Trainer, net: nn.Module, batches: int) -> None:
    """Puts averages over the last `batches` training batches, or all if there are fewer, into each batch norm.

    Those batches go once more through the net, in training mode, with the weights that it has now; what is averaged,
    over them and over all processes, are their means and unbiased variances. Nothing else changes, but for the count
    of batches behind the averages. Without batch norm there is nothing to do.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    with trainer.precision_plugin.forward_context():
        update_bn(_last_batches(trainer, batches), net)
    for norm in norms:
        for average in (norm.running_mean, norm.running_var):  # a captured step knows them by their place in memory
            average.copy_(trainer.strategy.reduce(average, reduce_op="mean"))


def _last_batches(trainer: Trainer, count: int) -> Iterator[Batch]:
    """The last batches of the training stream, brought to the device as in training."""
    stream = trainer.datamodule.train_dataloader()
    stream.load_state_dict({"iteration": max(0, len(stream) - count)})
    for batch in stream:
        yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
