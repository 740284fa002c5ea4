"""VGG nets of Simonyan and Zisserman 2014, Very Deep Convolutional Networks for Large-Scale Image Recognition.

Layers carry torchvision's names, so that weights move between the two.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from src.models.resnet import checkpointed

WIDTHS = (64, 128, 256, 512, 512)
FC_WIDTH = 4096
WINDOW = 7  # pixels a side that the first fc layer takes: the whole last map of a 224x224 image
# Table 1: convolutions per stage in nets A, B, D and E.
VGG_NETS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
INITS = {
    "glorot": nn.init.xavier_uniform_,
    "normal": partial(nn.init.normal_, std=0.1),
    "fan_in": partial(nn.init.kaiming_normal_, mode="fan_in", nonlinearity="relu"),
    "fan_out": partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
}


class VGG(nn.Module):
    """Images [N, 3, H, W] to class scores [N, num_classes]: stages of convolutions, each pooled, then three fc layers.

    On images larger than 224x224 this is dense testing (Sec. 3.2): the fc layers take each 7x7 window of the last map,
    as a 7x7 and two 1x1 convolutions would, one position for every 32 pixels, and the scores of all positions are
    averaged. So one call serves every image size here as in `ResidualNet`, whose fc layer, being linear, gives the same
    at each position and then averaged as once after average pooling. (torchvision pools larger images to 7x7.)

    `kernels` has for each stage the sizes of its convolutions. With `activation_checkpointing` set, the activations inside a stage
    are not kept for the backward pass but computed again (see `checkpointed`). Raises ValueError for smaller images.
    """

    activation_checkpointing = False

    def __init__(
        self,
        kernels: Sequence[Sequence[int]],
        widths: Sequence[int],
        fc_width: int,
        batch_norm: bool,
        dropout: float,
        num_classes: int,
        init: str,
    ) -> None:
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init={init} is not one of {', '.join(INITS)}")
        self.features, self.ends = nn.Sequential(), [0]
        channels = 3
        for width, sizes in zip(widths, kernels, strict=True):
            for size in sizes:
                self.features.append(nn.Conv2d(channels, width, size, padding=size // 2))
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU())
                channels = width
            self.features.append(nn.MaxPool2d(2, 2))
            self.ends.append(len(self.features))
        self.classifier = nn.Sequential(
            nn.Linear(channels * WINDOW**2, fc_width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(fc_width, fc_width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(fc_width, num_classes),
        )
        self.smallest = WINDOW * 2 ** len(widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                INITS[init](module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if min(height, width) < self.smallest:
            raise ValueError(
                f"images of {height}x{width} are too small: a VGG net takes {self.smallest} pixels a side"
            )
        for start, end in pairwise(self.ends):
            stage = self.features[start:end]
            x = (
                checkpointed(stage, x)
                if self.activation_checkpointing and self.training
                else stage(x)
            )
        windows = x.unfold(2, WINDOW, 1).unfold(3, WINDOW, 1)  # [N, channels, rows, columns, 7, 7]
        return self.classifier(windows.movedim(1, 3).flatten(3)).mean((1, 2))

    @property
    def depth(self) -> int:
        """Weighted layers from image to scores (Table 1)."""
        return sum(isinstance(m, nn.Conv2d | nn.Linear) for m in self.modules())


def vgg(
    depth: int, conv1x1: bool, batch_norm: bool, dropout: float, num_classes: int, init: str
) -> VGG:
    """Net A, B, D or E of Table 1, by its depth of 11, 13, 16 or 19 layers, or C: 16 layers with `conv1x1`.

    Args:
        conv1x1: make the third convolution of the last three stages 1x1.
        batch_norm: after each convolution; the paper has none.
        dropout: after the first two fc layers.
        init: of all weights, the biases being zero; see conf/model/vgg11.yaml.

    Raises ValueError for a net or an init that is not there.
    """
    if depth not in VGG_NETS or (conv1x1 and depth != 16):
        raise ValueError(
            f"there is no net of {depth} layers{' with 1x1 convolutions' if conv1x1 else ''} in Table 1 of the VGG "
            f"paper: it has {sorted(VGG_NETS)}, and with 1x1 convolutions 16"
        )
    kernels = [[3] * count for count in VGG_NETS[depth]]
    if conv1x1:
        for sizes in kernels[2:]:
            sizes[-1] = 1
    return VGG(kernels, WIDTHS, FC_WIDTH, batch_norm, dropout, num_classes, init)
