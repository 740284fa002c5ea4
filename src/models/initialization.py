"""The initializations of weights that `model.init=` chooses from."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

# With n inputs of each output value (fan in) and m outputs of each input value (fan out), a layer
# keeps the variance of its signal if that of its weights is 1/n. A ReLU halves the mean square, so
# in these nets it has to be 2/n; to keep the variance of the gradient, it has to be 2/m.
INITS: dict[str, Callable[[Tensor], Any]] = {
    # 1/n (LeCun et al. 1998, Efficient BackProp)
    "lecun": partial(nn.init.kaiming_normal_, nonlinearity="linear"),
    # 2/(n+m), uniform (Glorot and Bengio 2010)
    "xavier": nn.init.xavier_uniform_,
    # 2/n, the choice of He et al. 2015 (Delving Deep into Rectifiers), which Sec. 3.4 cites
    "he_fan_in": partial(nn.init.kaiming_normal_, mode="fan_in", nonlinearity="relu"),
    # 2/m, torchvision's choice
    "he_fan_out": partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    # Saxe et al. 2013, with the gain that makes up for the ReLU
    "orthogonal": partial(nn.init.orthogonal_, gain=math.sqrt(2)),
    # AlexNet's (Krizhevsky et al. 2012), and that of net A of the VGG paper
    "gaussian_0.01": partial(nn.init.normal_, std=0.01),
    "gaussian_0.1": partial(nn.init.normal_, std=0.1),
}
PYTORCH = "pytorch"  # uniform, of variance 1/(3n); biases too


def initialize(layers: Iterable[nn.Conv2d | nn.Linear], init: str) -> None:
    """Draw the weights of some layers; their biases start at zero.

    Args:
        layers: The layers, in the order in which they draw.
        init: A key of `INITS`, or `pytorch` for PyTorch's own weights and biases.

    Raises:
        ValueError: There is no such initialization.
    """
    if init not in (PYTORCH, *INITS):
        raise ValueError(f"init={init} is not one of {', '.join((PYTORCH, *INITS))}")
    for layer in layers:
        if init == PYTORCH:
            layer.reset_parameters()
            continue
        INITS[init](layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
