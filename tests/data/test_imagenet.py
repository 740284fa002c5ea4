import numpy as np
import pytest
import torch
from images_on_disk import (
    EIGENVALUES,
    EIGENVECTORS,
    SAMPLE,
    imagenet,
    make_folders,
    needs_sample,
)
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning import Trainer

from src.config import CONF
from src.data.imagenet import MEAN, STD
from src.data.webdataset import make_shards
from src.tasks.classification import Classifier


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def sample_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample")
    for split in ("train", "val"):
        (root / split).symlink_to(SAMPLE)
    return root


def test_the_default_config_is_the_papers():
    config = OmegaConf.load(CONF / "data" / "imagenet.yaml")
    augmentation = config.crop, config.scales, config.color_noise, config.normalization
    assert augmentation == ("scale", [256, 480], 0.1, "pixel")
    assert (config.val_images, config.on_bad) == (0, "stop")


def test_validation_images_are_held_out_of_training(root):
    data = imagenet(root, val_images=5)
    train, val = data.splits["train"].indices, data.splits["val"].indices
    assert len(val) == 5
    assert sorted([*train, *val]) == list(range(12))
    ((_, labels),) = data.val_dataloader()
    assert labels.tolist() == (val // 4).tolist()
    with pytest.raises(ValueError, match="data.val_images=12 must be from 0 to 11"):
        imagenet(root, val_images=12)


def test_shards_give_the_same_batches_as_their_folders(root, tmp_path):
    make_shards(root, tmp_path, workers=1)
    folders, shards = imagenet(root), imagenet(tmp_path)
    # Shards are shuffled: with the images in the folders' order the streams are the same.
    for split, files in (("train", folders.sources[0]), ("test", folders.sources[1])):
        source = shards.splits[split].source
        n = len(files.labels)
        stems = [source.location(i).rpartition("-")[2].partition(".")[0] for i in range(n)]
        index = {stem: i for i, stem in enumerate(stems)}
        order = [
            index[files.location(i).rpartition("/")[2].partition(".")[0]]
            for i in range(len(files.labels))
        ]
        assert sorted(order) == list(range(len(files.labels)))
        assert order != sorted(order)
        shards.splits[split].indices = np.array(order)
    pairs = zip(shards.train_dataloader(), folders.train_dataloader(), strict=True)
    for sharded, files in pairs:
        assert torch.equal(sharded[1], files[1])
        assert torch.equal(sharded[2], files[2])
        differing = (sharded[0] != files[0]).flatten(1).any(1)
        assert differing.sum() <= 3  # those of 650x520, which were reduced to a side of 512
    assert shards.fingerprint != folders.fingerprint


@pytest.mark.fault_injection(
    "bad input", "a mistyped word or an impossible value on the command line"
)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "random"}, "data.crop=random is not one of scale, area"),
        ({"normalization": "none"}, "=none is not one of pixel, channel_mean, channel"),
        ({"on_bad": "ignore"}, "data.on_bad=ignore is not one of stop, skip"),
        ({"mean": "a.npy"}, "data.mean=a.npy .* which data.normalization=channel_mean does not"),
        ({"scales": [480, 256]}, r"data.scales=\[480, 256\] must be \[smallest, largest\], .* 224"),
        ({"scales": [200, 256]}, r"data.scales=\[200, 256\] must be"),
        ({"num_classes": 2}, "has 3 classes, but the net has .* 2: set data.num_classes=3"),
        ({"root": "nowhere"}, "there is no folder .*/nowhere/train: name with data.root="),
    ],
)
def test_impossible_options_are_refused(root, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        imagenet(**{"root": root, **changes})


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("normalization", ["pixel", "channel_mean", "channel"])
def test_normalization_equals_a_reference_in_float64(root, normalization, bgr):
    data, order = imagenet(root, normalization=normalization, bgr=bgr), -1 if bgr else 1
    images, labels, noise = batch = next(iter(data.train_dataloader()))
    assert images.dtype == torch.uint8
    assert images.shape == (8, 224, 224, 3)
    assert noise.shape == (8, 3)
    before = images.clone()
    result, same_labels = data.on_after_batch_transfer(batch, 0)
    assert result.dtype == torch.float32
    assert result.shape == (8, 3, 224, 224)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, same_labels)
    assert torch.equal(images, before)

    mean = np.load(root / "mean-224.npy") if normalization == "pixel" else 255 * np.array(MEAN)
    std = 255 * np.array(STD) if normalization == "channel" else 1
    expected = (images.numpy().astype(float) + noise.numpy()[:, None, None] - mean) / std
    result = result.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(result, expected[..., ::order], atol=1e-3)

    test_batch = next(iter(data.test_dataloader()))
    expected = (test_batch[0].numpy().astype(float) - mean) / std
    result = data.on_after_batch_transfer(test_batch, 0)[0].permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(result, expected[..., ::order], atol=1e-3)


def test_an_image_of_one_color_comes_out_as_that_color_plus_noise(tmp_path):
    colors = np.random.default_rng(1).integers(40, 216, (6, 3))
    for split in ("train", "val"):
        for label, color in enumerate(colors):
            folder = tmp_path / split / f"n{label}"
            folder.mkdir(parents=True)
            Image.new("RGB", (300, 260), tuple(map(int, color))).save(folder / "a.png")
    data = imagenet(tmp_path, batch_size=12, iterations=1)
    batch = next(iter(data.train_dataloader()))
    images, labels = (tensor.numpy() for tensor in data.on_after_batch_transfer(batch, 0))
    assert np.ptp(images, axis=(2, 3)).max() < 1e-3
    noise = images[:, :, 0, 0] - (colors[labels] - 255 * np.array(MEAN))
    alphas = noise / 255 @ np.linalg.inv(EIGENVECTORS.T) / EIGENVALUES
    rng = np.random.default_rng([0, 2, 0])
    rng.random((12, 4))  # flip and crop come first
    np.testing.assert_allclose(alphas, rng.normal(0, 0.1, (12, 3)), atol=1e-3)


def expected_moments(image):
    """Mean and mean square of a pixel, [3] each, over scales, places and flips of an image."""
    moments = []
    for shorter in range(256, 481, 56):
        width, height = (shorter * side // min(image.size) for side in image.size)
        pixels = np.asarray(image.resize((width, height), Image.BILINEAR), float)
        rows, columns = (  # how often a crop includes a row or a column
            np.convolve(np.ones(side - 223), np.ones(224)) / (side - 223) / 224
            for side in (height, width)
        )
        moments.append([columns @ np.tensordot(rows, pixels**power, 1) for power in (1, 2)])
    return np.mean(moments, 0)


@pytest.mark.slow
@needs_sample
def test_mean_and_std_of_augmented_images_are_what_the_recipe_implies(sample_root):
    files = sorted(SAMPLE.glob("*/*"))
    moments = [expected_moments(Image.open(file).convert("RGB")) for file in files]
    first, second = np.mean(moments, 0)
    noise = np.diag(255**2 * EIGENVECTORS @ np.diag((0.1 * EIGENVALUES) ** 2) @ EIGENVECTORS.T)
    data = imagenet(sample_root, batch_size=127, iterations=6)
    means, squares = [], []
    for batch in data.train_dataloader():
        images = data.on_after_batch_transfer(batch, 0)[0].permute(0, 2, 3, 1).reshape(-1, 224 * 3)
        images += 255 * torch.tensor(MEAN).repeat(224)
        means.append(images.double().mean(0).view(224, 3).mean(0).numpy())
        squares.append(images.double().square_().mean(0).view(224, 3).mean(0).numpy())
    mean = np.mean(means, 0)
    std = np.sqrt(np.mean(squares, 0) - mean**2)
    # Crops of an image differ in their mean by some 20 levels: 0.7 in the mean of 762.
    assert mean == pytest.approx(first, abs=1.5)
    assert std == pytest.approx(np.sqrt(second - first**2 + noise), abs=1.5)


@needs_sample
def test_training_images_are_augmented_as_pillow_and_numpy_do(sample_root):
    data = imagenet(sample_root, batch_size=20, iterations=1)
    loader = data.train_dataloader()
    batch, indices = next(iter(loader)), loader.stream.indices(0)
    files, rng = sorted(SAMPLE.glob("*/*")), np.random.default_rng([0, 2, 0])
    assert len(files) == data.train_images == 127
    draws, alphas = rng.random((20, 4)), rng.normal(0, 0.1, (20, 3))
    results = data.on_after_batch_transfer(batch, 0)[0].numpy()
    per_image = zip(indices, draws, alphas, results, strict=True)
    for index, (flip, scale, down, across), alpha, result in per_image:
        image = Image.open(files[index]).convert("RGB")
        shorter = np.floor(256 + 225 * scale)
        width, height = np.floor(np.multiply(image.size, shorter) / min(image.size))
        x, y = np.floor(across * (width - 223)), np.floor(down * (height - 223))
        # In pixels of the stored image: first and length of each side, to the nearest pixel.
        w, h = np.round(224 * image.width / width), np.round(224 * image.height / height)
        x = min(np.round(x * image.width / width), image.width - w)
        y = min(np.round(y * image.height / height), image.height - h)
        crop = image.crop((x, y, x + w, y + h)).resize((224, 224), Image.BILINEAR)
        if flip < 0.5:
            crop = crop.transpose(Image.FLIP_LEFT_RIGHT)
        noise = 255 * sum(alpha[k] * EIGENVALUES[k] * EIGENVECTORS[:, k] for k in range(3))
        expected = np.asarray(crop, float) + noise - 255 * np.array(MEAN)
        # Both round to a level after the rows and after the columns.
        difference = abs(result.transpose(1, 2, 0) - expected)
        assert difference.max() < 2.01, files[index]
        assert difference.mean() < 0.1, files[index]


def test_lightning_tests_each_image_once(root):
    net = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3)
    )
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    classifier = Classifier(net)
    data = imagenet(root, num_workers=1)
    Trainer(accelerator="cpu", **options).test(classifier, datamodule=data, verbose=False)
    assert classifier.eval_meter.images.item() == 6
