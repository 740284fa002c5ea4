"""VGG nets of Simonyan and Zisserman 2014, for ImageNet.

From "Very Deep Convolutional Networks for Large-Scale Image Recognition"; sections and tables below
are those of that paper. Modules have the names that torchvision gives them, which lets weights move
between the two.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from src.models.activation_checkpointing import checkpointed_forward
from src.models.complexity import weighted_layers
from src.models.initialization import initialize

WIDTHS = (64, 128, 256, 512, 512)
FC_WIDTH = 4096
WINDOW = 7  # side length of the map that the first fc layer takes: the last map of a 224x224 image
# Table 1: convolutions per stage of nets A, B, D and E.
VGG_NETS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Images [N, 3, H, W] to class scores [N, num_classes]: pooled stages, then three fc layers.

    Images larger than 224x224 are tested densely (Sec. 3.2): the fc layers take each 7x7 window of
    the last map, as one 7x7 and two 1x1 convolutions would, and the scores of all windows are
    averaged. (torchvision instead pools the map of a larger image to 7x7.) A `ResidualNet` tests
    densely as it is, because its one fc layer is linear: scoring the average of all positions
    equals averaging the scores of all positions.

    With the attribute `activation_checkpointing` set, training computes the activations inside the
    stages a second time instead of keeping them.

    Args:
        kernels: For each stage, the kernel sizes of its convolutions.
        widths: Channels of each stage.
        fc_width: Width of the first two fc layers.
        batch_norm: Whether batch norm follows each convolution.
        dropout: Probability of dropout after the first two fc layers.
        num_classes: Number of class scores.
        init: Initialization of the weights, see `initialize`.

    Attributes:
        shared_channels, shared_stride, region_size, region_channels, last_channels, last_stride:
            As in `ResidualNet`.
        depth: Number of layers with weights from image to scores (Table 1).
    """

    activation_checkpointing = False
    region_size = WINDOW

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
        # One flat sequence, as in torchvision, so the ends of the stages are kept as positions.
        self.features = nn.Sequential()
        self.stage_ends = [0]
        channels = 3
        for width, sizes in zip(widths, kernels, strict=True):
            for size in sizes:
                # With a bias even before batch norm, as torchvision has it.
                self.features.append(nn.Conv2d(channels, width, size, padding=size // 2))
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU())
                channels = width
            self.features.append(nn.MaxPool2d(2, 2))
            self.stage_ends.append(len(self.features))

        first = nn.Linear(channels * WINDOW**2, fc_width), nn.ReLU(), nn.Dropout(dropout)
        second = nn.Linear(fc_width, fc_width), nn.ReLU(), nn.Dropout(dropout)
        self.classifier = nn.Sequential(*first, *second, nn.Linear(fc_width, num_classes))
        self.min_image_size = WINDOW * 2 ** len(widths)
        self.shared_channels = self.last_channels = channels
        self.shared_stride = self.last_stride = 2 ** (len(widths) - 1)
        self.region_channels = fc_width

        layers = weighted_layers(self)
        self.depth = len(layers)  # also when the classifier is removed
        initialize(layers.values(), init)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the class scores."""
        height, width = x.shape[2:]
        if min(height, width) < self.min_image_size:
            raise ValueError(
                f"images of {height}x{width} are too small: "
                f"a VGG net takes {self.min_image_size} pixels a side"
            )
        x = self._run([*pairwise(self.stage_ends)], x)
        # For a 224x224 image, one window: the whole map, which the fc layers take as it is.
        windows = x.unfold(2, WINDOW, 1).unfold(3, WINDOW, 1)  # [N, channels, rows, columns, 7, 7]
        return self.classifier(windows.movedim(1, 3).flatten(3)).mean((1, 2))

    def _run(self, stages: Sequence[tuple[int, int]], x: Tensor) -> Tensor:
        checkpointing = self.activation_checkpointing and self.training
        for start, end in stages:
            stage = self.features[start:end]
            x = checkpointed_forward(stage, x) if checkpointing else stage(x)
        return x

    def last_map(self, x: Tensor) -> Tensor:
        """Compute the map of the last convolution, before its pooling."""
        *stages, (start, end) = pairwise(self.stage_ends)
        return self._run([*stages, (start, end - 1)], x)

    # Regions are cut out of the same map: the fc layers alone are left for them (Fast R-CNN).
    shared_map = last_map

    def region_features(self, regions: Tensor) -> Tensor:
        """Compute the features of regions that were cut out of the shared map, by the fc layers.

        Args:
            regions: [R, shared_channels, 7, 7].

        Returns:
            [R, region_channels].
        """
        return self.classifier(regions.flatten(1))

    def remove_classifier(self, regions: bool = True) -> None:
        """Remove the last fc layer, in whose place a detector has layers of its own.

        Args:
            regions: Whether `region_features` is needed. Otherwise, as by a segmenter, all fc
                layers are removed.
        """
        if regions:
            self.classifier[-1] = nn.Identity()
        else:
            self.classifier = nn.Sequential()


def vgg(
    depth: int, conv1x1: bool, batch_norm: bool, dropout: float, num_classes: int, init: str
) -> VGG:
    """Make net A, B, D or E of Table 1, of 11, 13, 16 or 19 layers, or C: 16 with `conv1x1`.

    Args:
        depth: 11, 13, 16 or 19.
        conv1x1: Whether the third convolution of the last three stages is 1x1.
        batch_norm: Whether batch norm follows each convolution; the paper has none.
        dropout: Probability of dropout after the first two fc layers.
        num_classes: Number of class scores.
        init: Initialization of the weights, see conf/model/vgg11.yaml.

    Raises:
        ValueError: There is no such net or initialization.
    """
    if depth not in VGG_NETS or (conv1x1 and depth != 16):
        raise ValueError(
            f"there is no net of {depth} layers{' with 1x1 convolutions' if conv1x1 else ''} in "
            f"Table 1 of the VGG paper: it has {sorted(VGG_NETS)}, and with 1x1 convolutions 16"
        )
    # Net C differs from D in its kernels, not in its depth.
    kernels = [[3] * count for count in VGG_NETS[depth]]
    if conv1x1:
        for sizes in kernels[2:]:
            sizes[-1] = 1
    return VGG(kernels, WIDTHS, FC_WIDTH, batch_norm, dropout, num_classes, init)
