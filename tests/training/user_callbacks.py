"""Callbacks as a user may write them."""

from pytorch_lightning import Callback


class NoGradients(Callback):
    """Set all gradients to zero before the update."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        for parameter in module.parameters():
            parameter.grad.zero_()


class Average(Callback):
    """Keep a moving average of the first weight, whose every update counts."""

    def __init__(self, decay: float) -> None:
        self.decay, self.value = decay, 0.0

    def on_train_batch_end(self, trainer, module, *_):
        weight = next(module.net.parameters()).flatten()[0].item()
        self.value = self.decay * self.value + (1 - self.decay) * weight

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
