import numpy as np
import pytest
import torch
from data.images_on_disk import encode, make_folders, random_image
from hydra.utils import instantiate
from PIL import Image
from reference_protocols import imagenet_config, reader, reference

from src.data.shard_index import EARLIER_SHORTER_SIDE, index_path
from src.data.webdataset import make_shards
from src.evaluation.ensemble import Ensemble, NormalizedNet
from src.evaluation.protocols import (
    PROTOCOLS,
    TestViews,
    find_protocol,
    multi_scale,
    ten_crops,
)


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


def scores_by_name(data, protocol):
    """The scores of each test image, by the name of its file."""
    source = data.splits["test"].source
    names = [source.location(i).rpartition("/")[2] for i in range(len(source.labels))]
    names = [name.rpartition(":")[2].partition("-")[2] or name for name in names]
    scores, _ = scores_and_labels(data, protocol, 0)
    return dict(zip((name.partition(".")[0] for name in names), scores.tolist(), strict=True))


def load(root):
    data = instantiate(imagenet_config(root), seed=0)
    data.setup()
    return data


def test_scores_from_shards_equal_those_from_folders(tmp_path):
    folders = make_folders(tmp_path / "folders", train=1)
    # Larger than any test scale, and no JPEG files in spite of their names.
    large, cmyk = random_image(7, 800, 700), random_image(8, 300, 280).convert("CMYK")
    (folders / "val" / "n01440764" / "large.JPEG").write_bytes(encode(large, quality=90))
    (folders / "val" / "n01440764" / "png.JPEG").write_bytes(encode(large, "PNG"))
    (folders / "val" / "n01440764" / "cmyk.JPEG").write_bytes(encode(cmyk))
    make_shards(folders, tmp_path / "shards", workers=1)
    from_folders, from_shards = load(folders), load(tmp_path / "shards")
    for protocol in (*PROTOCOLS, "scales256-384-512"):
        expected = scores_by_name(from_folders, protocol)
        assert len(expected) == 9
        assert scores_by_name(from_shards, protocol) == expected


def test_shards_of_reduced_images_are_named_and_refused_for_multi_scale_evaluation(tmp_path):
    make_shards(make_folders(tmp_path / "folders", train=1), tmp_path, workers=1)
    (val,) = tmp_path.glob("*val*.tar")
    with np.load(index_path(val)) as index:
        earlier = dict(index) | {"shorter_side": EARLIER_SHORTER_SIDE}
    np.savez(index_path(val), **earlier)
    data = load(tmp_path)
    for protocol in ("multiscale", "scales384"):
        message = rf"{val} was made .*reduced its images to 480 .*protocol={protocol}: make the"
        with pytest.raises(ValueError, match=message):
            TestViews(data, protocol)
    for protocol in ("center", "10crop"):
        assert len(scores_and_labels(data, protocol, 0)[0]) == 6


def test_scores_at_any_scales_are_averages_over_complete_images_at_them(tmp_path):
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    make_views, images_per_batch = find_protocol("scales224-256-288")
    sizes = [(224, 298), (256, 341), (288, 384)]
    assert [views.shape for views in make_views(image)] == [(2, 3, *size) for size in sizes]
    assert images_per_batch == 1
    for split in ("train", "val"):
        (tmp_path / split / "n0").mkdir(parents=True)
        # Noise, which looks different at each scale.
        noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / split / "n0" / "a.png")
    data = load(tmp_path)
    both = scores_and_labels(data, "scales256-384", 0)[0]
    alone = [scores_and_labels(data, f"scales{side}", 0)[0] for side in (256, 384)]
    assert not torch.allclose(*alone, atol=1e-4)
    torch.testing.assert_close(both, sum(alone) / 2)
    for name in ("scales", "scales0", "scales256-", "scales256,384", "scale256"):
        with pytest.raises(ValueError, match=f"protocol={name} does not apply .*scales256-384-512"):
            TestViews(data, name)


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
