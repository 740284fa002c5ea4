import pytest
import torch
from data.images_on_disk import make_folders
from hydra.utils import instantiate
from reference_protocols import imagenet_config
from torch import nn

from src.evaluation.ensemble import Ensemble, NormalizedNet


class ConstantNet(nn.Module):
    """Give the same scores to every image."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, x):
        return self.scores.expand(len(x), -1)


def test_scores_too_small_for_a_softmax_keep_their_order():
    scores = torch.tensor([[0.0, -300, -200, -500, -400, -600]])
    assert scores.softmax(1)[0, 1:].eq(0).all()
    nets = [NormalizedNet(ConstantNet(scores), torch.zeros(3), None) for _ in range(2)]
    views = [torch.zeros((1, 2, 4, 4, 3), dtype=torch.uint8)]
    torch.testing.assert_close(Ensemble(nets)(views), scores)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("imagenet"))


@pytest.mark.parametrize("normalization", ["pixel", "channel"])
@pytest.mark.parametrize("bgr", [False, True])
def test_images_are_normalized_in_evaluation_as_in_training(root, normalization, bgr):
    data = instantiate(imagenet_config(root, normalization=normalization, bgr=bgr), seed=0)
    data.prepare_data()
    data.setup()
    images, labels = next(iter(data.test_dataloader()))
    in_training, _ = data.on_after_batch_transfer((images, labels), 0)
    net = NormalizedNet(nn.Identity(), data.mean, data.std, data.bgr)
    assert torch.equal(net(images), in_training)

    larger = images.repeat(1, 1, 2, 1)  # the mean image does not fit
    other_order = NormalizedNet(nn.Identity(), data.mean, data.std, not data.bgr)
    torch.testing.assert_close(net(larger), other_order(larger).flip(1))


def test_a_mean_image_is_subtracted_at_its_own_size_and_its_channel_means_at_others():
    mean = 255 * torch.rand((224, 224, 3))
    net = NormalizedNet(nn.Identity(), mean, None)
    images = net(torch.zeros((2, 224, 224, 3), dtype=torch.uint8))
    torch.testing.assert_close(images, -mean.permute(2, 0, 1).expand(2, 3, 224, 224))
    for size in ((224, 300), (300, 224), (256, 256)):
        images = net(torch.zeros((2, *size, 3), dtype=torch.uint8))
        channel_means = -mean.mean((0, 1))[:, None, None]
        torch.testing.assert_close(images, channel_means.expand(2, 3, *size))
