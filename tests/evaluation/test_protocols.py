import numpy as np
import pytest
import torch
from data.images_on_disk import make_folders
from hydra.utils import instantiate
from reference_protocols import imagenet_config, reader, reference

from src.evaluation.ensemble import Ensemble, NormalizedNet
from src.evaluation.protocols import PROTOCOLS, TestViews, multi_scale, ten_crops


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("imagenet"))


class SingleProcessTrainer:
    """What data modules ask of a trainer."""

    num_devices, global_rank, world_size = 1, 0, 1
    strategy = type("Strategy", (), {"root_device": torch.device("cpu")})


@torch.no_grad()
def scores_and_labels(data, protocol, *seeds):
    """Averaged softmax scores [N, 12] of all test images, and their labels."""
    views = TestViews(data, protocol)
    views.trainer = SingleProcessTrainer()
    net = Ensemble([NormalizedNet(reader(seed), data.mean, data.std) for seed in seeds])
    batches = [views.on_after_batch_transfer(batch, 0) for batch in views.test_dataloader()]
    scores = torch.cat([net(images) for images, _ in batches]).exp()
    return scores, torch.cat([labels for _, labels in batches])


@pytest.mark.parametrize("normalization", ["pixel", "channel_mean", "channel"])
def test_scores_equal_those_of_a_plain_loop_over_images(root, normalization):
    data = instantiate(imagenet_config(root, normalization=normalization), seed=0)
    data.prepare_data()
    data.setup()
    pixel = normalization == "pixel"
    mean = np.load(root / "mean-224.npy").astype(np.float64) if pixel else None
    paths = sorted(root.glob("val/*/*"))
    found = {protocol: scores_and_labels(data, protocol, 0) for protocol in PROTOCOLS}
    for protocol, (scores, labels) in found.items():
        expected = [reference(protocol, path, normalization, 0, mean) for path in paths]
        np.testing.assert_allclose(scores, expected, atol=2e-5)
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    # The references tell the protocols apart.
    assert not np.allclose(found["10crop"][0], found["center"][0], atol=1e-3)
    assert not np.allclose(found["10crop"][0], found["multiscale"][0], atol=1e-3)


def test_an_ensemble_averages_softmax_scores_over_its_nets(root):
    data = instantiate(imagenet_config(root), seed=0)
    data.setup()
    one, other, both = (scores_and_labels(data, "10crop", *s)[0] for s in ([0], [1], [0, 1]))
    assert not torch.allclose(one, other, atol=0.01)
    torch.testing.assert_close(both, (one + other) / 2)


@pytest.mark.parametrize(("height", "width"), [(256, 300), (281, 256), (256, 256)])
def test_ten_crops_are_the_corners_and_the_center_and_their_mirror_images(height, width):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    pixels = image.numpy()
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    ends = (slice(224), slice(-224, None))
    five = [pixels[:, rows, columns] for rows in ends for columns in ends]
    five.append(pixels[:, top : top + 224, left : left + 224])
    (crops,) = ten_crops(image)
    np.testing.assert_array_equal(crops, [*five, *(crop[..., ::-1] for crop in five)])


def test_multi_scale_views_are_complete_images_and_mirror_images_at_the_papers_five_scales():
    image = torch.randint(0, 256, (3, 375, 500), dtype=torch.uint8)
    views = multi_scale(image)
    sizes = [(224, 298), (256, 341), (384, 512), (480, 640), (640, 853)]
    assert [pair.shape for pair in views] == [(2, 3, *size) for size in sizes]
    for pair in views:
        assert pair.dtype == torch.uint8
        np.testing.assert_array_equal(pair[1], pair[0].numpy()[..., ::-1])
    assert torch.equal(multi_scale(image[:, :256, :256])[1][0], image[:, :256, :256])
