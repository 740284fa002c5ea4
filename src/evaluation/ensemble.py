"""Average the scores of one or several nets over all views of an image (Sec. 3.4)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.data.transforms import nchw, normalize


class NormalizedNet(nn.Module):
    """A net together with the normalization it was trained with, so that it takes pixels.

    Args:
        net: Takes normalized images [N, 3, H, W].
        mean: Subtracted from the pixels, in units of 0 .. 255 and in RGB order: [3], [W, 3] (one
            row of pixels) or [H, W, 3] (the mean image of the paper).
        std: Divides the pixels, likewise; None divides by nothing, as in the paper.
        bgr: Whether the net takes its channels in the order B, G, R, as the authors' nets do.
    """

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor | None, bgr: bool = False) -> None:
        super().__init__()
        self.net = net
        self.bgr = bgr

        # Not buffers: Lightning's half precision would round buffers along with the weights.
        self.mean = mean
        self.std = std

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the scores [N, classes] of RGB pixels, uint8 [N, H, W, 3]."""
        self.mean = self.mean.to(pixels.device)
        self.std = None if self.std is None else self.std.to(pixels.device)
        mean, std = self.mean, self.std

        # A mean image has the size of the training crops. Images of any other size, as multi-scale
        # testing has them, are normalized by its mean per channel.
        if mean.shape[:-1] not in ((), pixels.shape[2:3], pixels.shape[1:3]):
            mean = _per_channel(mean)
            std = None if std is None else _per_channel(std)
        images = normalize(pixels, mean, std)

        # Lightning converts floating-point inputs to half precision itself, but these were uint8.
        dtype = next(self.net.parameters(), mean).dtype
        return self.net(nchw(images.flip(-1) if self.bgr else images).to(dtype))


def _per_channel(values: Tensor) -> Tensor:
    return values.reshape(-1, 3).mean(0)


class Ensemble(nn.Module):
    """Average the softmax scores of several nets (or of one) over all views of each image.

    The paper averages "the scores" without saying which. The authors' 10-crop evaluation averages
    softmax scores, so all protocols do so here. Every view and every net has the same weight.
    """

    def __init__(self, nets: Sequence[NormalizedNet]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Return the logarithms of the averaged softmax scores, [n, classes].

        Args:
            views: For each size of view, uint8 [n, views, height, width, 3].
        """
        log_scores = []
        for pixels in views:
            images = pixels.flatten(0, 1)  # views in the place of a batch
            for net in self.nets:
                log_softmax = net(images).float().log_softmax(1)
                log_scores.append(log_softmax.unflatten(0, pixels.shape[:2]))

        # Averaged as logarithms: small softmax scores underflow to zero, and such ties would make
        # the top-5 error depend on the order of the classes.
        stacked = torch.cat(log_scores, 1)
        return stacked.logsumexp(1) - math.log(stacked.shape[1])
