import numpy as np
import pytest
import torch
from data.images_on_disk import make_folders
from omegaconf import OmegaConf
from torch import nn

from src.cli import CONF
from src.data.imagenet import MEAN, STD, ImageNet
from src.data.image_reader import decode_image
from src.data.transforms import resize
from src.evaluation.protocols import PROTOCOLS, Ensemble, Normalized, TestViews, ten_crops, whole_at_scales


class Reader(nn.Module):
    """Twelve scores of an image's first pixel and its mean color: it sees which part of a photo it is given."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x):
        return (x[:, :, 0, 0] + 3 * x.mean((2, 3))) @ self.weights


def reader(seed):
    return Reader(torch.randn((3, 12), generator=torch.Generator().manual_seed(seed)) / 30)


def reference(protocol, path, normalization, seed, mean_image=None):
    """Softmax scores of one photo, float64 [12], view by view; of its own it has all but decoding and resizing."""
    photo = decode_image(np.fromfile(path, np.uint8))
    height, width = photo.shape[1:]
    mean, std = 255 * np.array(MEAN), 255 * np.array(STD) if normalization == "channel" else np.ones(3)
    weights = reader(seed).weights.detach().double().numpy()
    scores = []
    for shorter in (224, 256, 384, 480, 640) if protocol == "multiscale" else (256,):
        size = [int(side * shorter / min(height, width) + 1e-9) for side in (height, width)]
        whole = resize(photo, *size).permute(1, 2, 0).double().numpy()
        down, across = size[0] - 224, size[1] - 224
        parts = {
            "center": [(round(down / 2), round(across / 2))],
            "10crop": [(y, x) for y in (0, down) for x in (0, across)] + [(round(down / 2), round(across / 2))],
            "multiscale": [None],
        }
        for part in parts[protocol]:
            seen = whole if part is None else whole[part[0] :][:224, part[1] :][:, :224]
            for image in (seen,) if protocol == "center" else (seen, np.fliplr(seen)):
                if mean_image is not None:
                    mean = mean_image if image.shape[:2] == (224, 224) else mean_image.mean((0, 1))
                image = (image - mean) / std
                powers = np.exp((image[0, 0] + 3 * image.mean((0, 1))) @ weights)
                scores.append(powers / powers.sum())
    return np.mean(scores, 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("imagenet"))


class Alone:
    """What is asked of a trainer that is the only process."""

    num_devices, global_rank, world_size = 1, 0, 1
    strategy = type("Strategy", (), {"root_device": torch.device("cpu")})


def photos(root, normalization, bgr=False):
    options = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "imagenet.yaml"))
    del options["_target_"]
    data = ImageNet(**options | {"root": root, "normalization": normalization, "num_workers": 0, "seed": 0, "bgr": bgr})
    data.prepare_data()
    data.setup()
    return data


@torch.no_grad()
def scored(data, protocol, *seeds):
    """Averaged softmax scores [N, 12] of all test photos, and their labels."""
    views = TestViews(data, protocol)
    views.trainer = Alone()
    net = Ensemble([Normalized(reader(seed), data.mean, data.std) for seed in seeds])
    batches = [views.on_after_batch_transfer(batch, 0) for batch in views.test_dataloader()]
    return torch.cat([net(images) for images, _ in batches]).exp(), torch.cat([labels for _, labels in batches])


@pytest.mark.parametrize("normalization", ["pixel", "channel_mean", "channel"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_are_those_of_a_plain_loop_over_photos(root, protocol, normalization):
    data = photos(root, normalization)
    mean = np.load(root / "mean-224.npy").astype(np.float64) if normalization == "pixel" else None
    scores, labels = scored(data, protocol, 0)
    expected = [reference(protocol, path, normalization, 0, mean) for path in sorted(root.glob("val/*/*"))]
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    assert not np.allclose(scores, scored(data, "10crop" if protocol != "10crop" else "center", 0)[0], atol=1e-3)


def test_an_ensemble_averages_softmax_scores_over_its_nets(root):
    data = photos(root, "channel")
    one, other, both = (scored(data, "10crop", *seeds)[0] for seeds in ([0], [1], [0, 1]))
    assert not torch.allclose(one, other, atol=0.01)
    torch.testing.assert_close(both, (one + other) / 2)
    torch.testing.assert_close(scored(data, "10crop", 0, 0)[0], one)


@pytest.mark.parametrize(("height", "width"), [(256, 300), (281, 256), (256, 256)])
def test_ten_crops_are_the_corners_and_the_middle_and_their_mirror_images(height, width):
    photo = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    pixels = photo.numpy()
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    five = [pixels[:, y, x] for y in (slice(224), slice(-224, None)) for x in (slice(224), slice(-224, None))]
    five.append(pixels[:, top : top + 224, left : left + 224])
    (crops,) = ten_crops(photo)
    np.testing.assert_array_equal(crops, [*five, *(crop[..., ::-1] for crop in five)])


def test_multi_scale_testing_sees_whole_photos_at_five_sizes():
    """The shorter sides of Sec. 3.4, the other in proportion."""
    photo = torch.randint(0, 256, (3, 375, 500), dtype=torch.uint8)
    views = whole_at_scales(photo)
    sizes = [(224, 298), (256, 341), (384, 512), (480, 640), (640, 853)]
    assert [of.shape for of in views] == [(2, 3, *size) for size in sizes]
    for of in views:
        assert of.dtype == torch.uint8
        np.testing.assert_array_equal(of[1], of[0].numpy()[..., ::-1])
    assert torch.equal(whole_at_scales(photo[:, :256, :256])[1][0], photo[:, :256, :256])


def test_scores_too_small_for_a_softmax_keep_their_order():
    first = torch.tensor([[0.0, -300, -200, -500, -400, -600]])
    assert first.softmax(1)[0, 1:].eq(0).all()
    net = Ensemble([Normalized(Said(first), torch.zeros(3), None), Normalized(Said(first), torch.zeros(3), None)])
    scores = net([torch.zeros((1, 2, 4, 4, 3), dtype=torch.uint8)])
    torch.testing.assert_close(scores, first)


class Said(nn.Module):
    """Gives the same scores for every image."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, x):
        return self.scores.expand(len(x), -1)


@pytest.mark.parametrize("normalization", ["pixel", "channel"])
@pytest.mark.parametrize("bgr", [False, True])
def test_testing_gives_a_net_the_numbers_that_training_does(root, normalization, bgr):
    data = photos(root, normalization, bgr=bgr)
    images, labels = next(iter(data.test_dataloader()))
    trained = data.on_after_batch_transfer((images, labels), 0)[0]
    assert torch.equal(Normalized(nn.Identity(), data.mean, data.std, data.bgr)(images), trained)
    larger = images.repeat(1, 1, 2, 1)  # no mean image fits
    found = Normalized(nn.Identity(), data.mean, data.std, data.bgr)(larger)
    other = Normalized(nn.Identity(), data.mean, data.std, not data.bgr)(larger)
    torch.testing.assert_close(found, other.flip(1))


def test_the_mean_image_is_for_its_own_size_and_its_channel_means_for_others():
    mean = 255 * torch.rand((224, 224, 3))
    seen = []

    class Looking(nn.Module):
        def forward(self, x):
            seen.append(x)

    net = Normalized(Looking(), mean, None)
    for size in ((224, 224), (224, 300), (300, 224), (256, 256)):
        net(torch.zeros((2, *size, 3), dtype=torch.uint8))
    torch.testing.assert_close(seen[0], -mean.permute(2, 0, 1).expand(2, 3, 224, 224))
    for image, shape in zip(seen[1:], ((224, 300), (300, 224), (256, 256)), strict=True):
        torch.testing.assert_close(image, -mean.mean((0, 1))[:, None, None].expand(2, 3, *shape))
