"""The class of all plain and residual nets: stages of blocks between a stem and an fc layer.

A plain net is a residual net without its shortcuts, so one class makes both. Modules have the names
that torchvision gives them, which lets weights move between the two. Batch norm follows every
convolution, before the activation, and there is no dropout (Sec. 3.4). With another `norm` than
`batch`, all batch norms of a net are replaced once it is built.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from src.models.activation_checkpointing import checkpointed_forward
from src.models.blocks import conv3x3
from src.models.complexity import weighted_layers
from src.models.initialization import initialize
from src.models.normalization import replace_batch_norm

# Makes one block from in_channels, width, stride and dilation.
BlockFactory = Callable[[int, int, int, int], Any]


class ResidualNet(nn.Module):
    """Images [N, 3, H, W] to class scores [N, num_classes], in stages of blocks.

    Every stage after the first halves height and width. With the attribute
    `activation_checkpointing` set, training computes the activations inside the blocks a second
    time instead of keeping them.

    Args:
        make_block: Makes one block, plain or residual.
        widths: Width of the blocks of each stage, in channels.
        blocks_per_stage: Number of blocks of each stage.
        num_classes: Number of class scores.
        init: Initialization of the convolutions, see `initialize`. The fc layer keeps PyTorch's,
            as the paper does not say what it has.
        imagenet_stem: Start with a 7x7 convolution and max pooling, both with stride 2, instead of
            a 3x3 convolution.
        dilate: For each stage, whether to dilate its convolutions instead of striding.
        norm: `batch`, `none` or `group`, see `make_norm`.

    Raises:
        ValueError: There is no such initialization or norm, or `dilate` has too many entries.

    Attributes:
        shared_channels: Channels of `shared_map`.
        shared_stride: Pixels of the image for each step on `shared_map`.
        region_size: Side length of the regions that a detector cuts out of the shared map: what
            the last stage of Table 1 is given in classification.
        region_channels: Number of `region_features`.
        last_channels: Channels of `last_map`.
        last_stride: Pixels of the image for each step on `last_map`.
        depth: Number of layers with weights from image to scores; projections do not count.
    """

    activation_checkpointing = False
    region_size = 14

    def __init__(
        self,
        make_block: BlockFactory,
        widths: Sequence[int],
        blocks_per_stage: Sequence[int],
        num_classes: int,
        init: str,
        imagenet_stem: bool = False,
        dilate: Sequence[bool] = (),
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if len(dilate) > len(widths):
            raise ValueError(
                f"model.dilate={list(dilate)} is for {len(dilate)} stages, but the net has "
                f"{len(widths)}"
            )
        channels = widths[0]
        if imagenet_stem:
            self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = conv3x3(3, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        # The paper does not state the pooling's padding; 1 is torchvision's.
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet_stem else nn.Identity()

        self.stages = [f"layer{i + 1}" for i in range(len(widths))]
        total_stride, dilation = 4 if imagenet_stem else 1, 1
        for i, name in enumerate(self.stages):
            # The first stage keeps the size of the stem's maps (Table 1).
            stride = 1 if i == 0 else 2
            # As in torchvision, the first block of a dilated stage keeps the dilation before it.
            first_dilation = dilation
            if i < len(dilate) and dilate[i]:
                stride, dilation = 1, dilation * stride
            stage = [make_block(channels, widths[i], stride, first_dilation)]
            channels = stage[0].out_channels
            stage += [
                make_block(channels, widths[i], 1, dilation) for _ in range(1, blocks_per_stage[i])
            ]
            self.add_module(name, nn.Sequential(*stage))
            total_stride *= stride
            if i == len(widths) - 2:
                self.shared_channels, self.shared_stride = channels, total_stride
        self.region_channels = self.last_channels = channels
        self.last_stride = total_stride

        # Pre-activation nets have a last batch norm and ReLU here.
        self.final: nn.Module = nn.Identity()
        self.fc: nn.Module = nn.Linear(channels, num_classes)
        replace_batch_norm(self, norm)
        initialize((layer for layer in self.modules() if isinstance(layer, nn.Conv2d)), init)
        self.depth = len(weighted_layers(self))  # also when the classifier is removed

    def forward(self, x: Tensor) -> Tensor:
        """Compute the class scores."""
        # Global average pooling over maps of any size: larger images need nothing more.
        return self.fc(self.last_map(x).mean((2, 3)))

    def last_map(self, x: Tensor) -> Tensor:
        """Compute the map before the global average pooling."""
        return self.final(self._run(self.stages, self._stem(x)))

    def shared_map(self, x: Tensor) -> Tensor:
        """Compute the map of all stages but the last, which a detector shares by all regions."""
        return self._run(self.stages[:-1], self._stem(x))

    def region_features(self, regions: Tensor) -> Tensor:
        """Compute the features of regions that were cut out of the shared map, by the last stage.

        Args:
            regions: [R, shared_channels, H, W].

        Returns:
            [R, region_channels].
        """
        return self.final(self._run(self.stages[-1:], regions)).mean((2, 3))

    def _stem(self, x: Tensor) -> Tensor:
        return self.maxpool(F.relu(self.bn1(self.conv1(x))))

    def _run(self, stages: Sequence[str], x: Tensor) -> Tensor:
        checkpointing = self.activation_checkpointing and self.training
        for block in self.blocks(stages):
            x = checkpointed_forward(block, x) if checkpointing else block(x)
        return x

    def blocks(self, stages: Sequence[str] | None = None) -> list[Any]:
        """Return the blocks of some stages, by default of all, from first to last."""
        names = self.stages if stages is None else stages
        return [block for name in names for block in self.get_submodule(name).children()]

    def remove_classifier(self, regions: bool = True) -> None:
        """Remove the fc layer, in whose place a detector or segmenter has layers of its own.

        Args:
            regions: Whether `region_features` is needed, which has no layers of its own here.
        """
        self.fc = nn.Identity()

    def compile(self, **options: object) -> None:
        """Compile block by block.

        Equal blocks share one compiled graph, so that deep nets compile as fast as shallow ones.
        """
        for block in self.blocks():
            block.compile(**options)
