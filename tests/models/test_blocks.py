import pytest
import torch
from net_helpers import randomize_batch_norm
from torch import nn
from torch.nn import functional as F

from src.models.blocks import BasicBlock, Bottleneck, PlainBlock, ZeroPadShortcut, make_shortcut


def test_shortcut_a_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.arange(2 * 4 * 6 * 6).view(2, 4, 6, 6).float()
    expected = torch.zeros(2, 10, 3, 3)
    expected[:, 3:7] = x[:, :, 0::2, 0::2]
    assert torch.equal(ZeroPadShortcut(6, 2)(x), expected)


@pytest.mark.parametrize(
    ("option", "same_shape", "new_shape"),
    [
        ("A", nn.Identity, ZeroPadShortcut),
        ("B", nn.Identity, nn.Sequential),
        ("C", nn.Sequential, nn.Sequential),
    ],
)
def test_only_shortcuts_b_and_c_project(option, same_shape, new_shape):
    assert type(make_shortcut(option, 16, 16, 1)) is same_shape
    assert type(make_shortcut(option, 16, 32, 2)) is new_shape
    assert type(make_shortcut(option, 16, 32, 1)) is new_shape


def test_basic_block_is_a_plain_block_that_adds_its_input_before_the_last_relu():
    torch.manual_seed(0)
    block = randomize_batch_norm(BasicBlock(16, 32, 2, 1, "A"), statistics=True).eval()
    x = torch.randn(2, 16, 8, 8)
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    shortcut = torch.zeros(2, 32, 4, 4)
    shortcut[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), F.relu(branch + shortcut))
    plain = PlainBlock(16, 32, 2, 1).eval()
    plain.load_state_dict(block.state_dict())
    torch.testing.assert_close(plain(x), F.relu(branch))


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_bottleneck_strides_in_one_layer_and_adds_its_input_before_the_last_relu(stride_in_1x1):
    torch.manual_seed(0)
    block = Bottleneck(16, 8, 2, 1, "B", stride_in_1x1, groups=1, width_per_group=64)
    block = randomize_batch_norm(block, statistics=True).eval()
    x = torch.randn(2, 16, 8, 8)
    stride1, stride2 = (2, 1) if stride_in_1x1 else (1, 2)
    y = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=stride1)))
    y = F.relu(block.bn2(F.conv2d(y, block.conv2.weight, stride=stride2, padding=1)))
    y = block.bn3(F.conv2d(y, block.conv3.weight))
    projection, norm = block.downsample
    y = y + norm(F.conv2d(x, projection.weight, stride=2))
    torch.testing.assert_close(block(x), F.relu(y))
    assert y.shape == (2, block.out_channels, 4, 4) == (2, 32, 4, 4)
