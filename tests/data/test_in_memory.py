"""The datasets in memory: the digits, and the real CIFAR-10 where it is present."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.datasets import load_digits
from torchvision import datasets

from src.data.cifar10 import CIFAR10
from src.data.digits import Digits
from src.data.sampler import AUGMENTATION


def digits(**changes):
    options = {"test_images": 500, "val_images": 0, "normalization": "pixel", "seed": 0}
    options |= {"padding": 1, "flip": False, "batch_size": 128, "iterations": 10}
    data = Digits(**options | changes)
    data.setup()
    return data


def cifar10(root=ROOT / "data", **changes):
    options = {"val_images": 5000, "normalization": "pixel", "padding": 4, "flip": True, "seed": 0}
    options |= {"batch_size": 128, "iterations": 10}
    return CIFAR10(root=str(root), download=False, **options | changes)


def test_each_of_scikit_learns_digits_is_in_one_split():
    data = digits(val_images=97)
    sizes = {name: len(images) for name, (images, _) in data.splits.items()}
    assert sizes == {"train": 1200, "val": 97, "test": 500}
    images = [x.numpy()[..., 0].reshape(len(x), 64) for x, _ in data.splits.values()]
    labels = np.concatenate([y for _, y in data.splits.values()])
    rows = np.column_stack([np.concatenate(images) // 15, labels])
    expected = load_digits()
    expected_rows = np.column_stack([expected.data.astype(int), expected.target])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, expected_rows))


def test_the_seed_changes_the_validation_images_but_not_the_test_images():
    one, other = digits(val_images=97), digits(val_images=97, seed=1)
    assert torch.equal(one.splits["test"][0], other.splits["test"][0])
    assert not torch.equal(one.splits["val"][0], other.splits["val"][0])


def test_the_mean_is_of_the_training_images_alone():
    data = digits(val_images=400)
    expected = data.splits["train"][0].numpy().mean(0)
    assert torch.equal(data.mean, torch.from_numpy(expected).float())
    assert data.std is None


def test_channel_normalization_gives_mean_0_and_std_1():
    data = digits(normalization="channel", test_images=797)
    normalized = (data.splits["train"][0].float() - data.mean) / data.std
    assert normalized.mean().item() == pytest.approx(0, abs=1e-5)
    assert normalized.std().item() == pytest.approx(1, abs=1e-3)
    only_mean = digits(normalization="channel_mean", test_images=797)
    assert torch.equal(only_mean.mean, data.mean)
    assert only_mean.std is None
    with pytest.raises(
        ValueError, match="data.normalization=none is not one of pixel, channel_mean"
    ):
        digits(normalization="none")


@pytest.mark.parametrize("val_images", [0, 97])
def test_evaluation_sees_each_image_once_in_order(val_images):
    data = digits(val_images=val_images)
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert torch.equal(labels, data.splits["test"][1])
    val_batches = list(data.val_dataloader())
    assert len(data.val_dataloader()) == len(val_batches) == 1
    held_out = data.splits["val" if val_images else "test"]
    assert sum(len(labels) for _, labels in val_batches) == len(held_out[0])


def test_training_batches_are_normalized_images_with_their_labels():
    data = digits(padding=0)
    images, labels = data.augment(*data.train_dataloader().batch(0))
    assert images.shape == (128, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    indices = data.train_dataloader().indices(0)
    assert torch.equal(labels, data.splits["train"][1][indices])
    expected = data.splits["train"][0][indices].float() - data.mean
    assert torch.equal(images.permute(0, 2, 3, 1), expected)


def test_training_images_are_normalized_then_padded_cropped_and_flipped():
    data = digits(padding=2, flip=True)
    stream = data.train_dataloader()
    images, _ = data.augment(*stream.batch(3))
    rng = np.random.default_rng([0, AUGMENTATION, 3])
    (tops, lefts), flips = rng.integers(0, 5, (2, 128)), rng.integers(0, 2, 128)
    pixels = data.splits["train"][0].numpy()
    mean = pixels.mean(0).astype(np.float32)
    results = images.permute(0, 2, 3, 1).numpy()
    for index, top, left, flip, result in zip(
        stream.indices(3), tops, lefts, flips, results, strict=True
    ):
        padded = np.zeros((12, 12, 3), np.float32)
        padded[2:10, 2:10] = pixels[index].astype(np.float32) - mean
        crop = padded[top : top + 8, left : left + 8]
        assert np.array_equal(crop[:, ::-1] if flip else crop, result)


@pytest.mark.parametrize("test_images", [0, 1797])
def test_some_digits_must_be_tested_and_some_left(test_images):
    with pytest.raises(ValueError, match=f"data.test_images={test_images} must be from 1 to 1796"):
        digits(test_images=test_images)


@pytest.mark.parametrize("val_images", [-1, 1297])
def test_some_images_must_be_left_for_training(val_images):
    with pytest.raises(ValueError, match=f"data.val_images={val_images} must be from 0 to 1296"):
        digits(val_images=val_images)


@pytest.fixture(scope="module")
def cifar10_arrays():
    return cifar10().read()


@pytest.mark.cifar10
def test_cifar10_is_split_into_45k_5k_10k_images(cifar10_arrays, monkeypatch):
    monkeypatch.setattr(CIFAR10, "read", lambda _: cifar10_arrays)
    data = cifar10()
    data.setup()
    assert {name: tuple(images.shape) for name, (images, _) in data.splits.items()} == {
        "train": (45000, 32, 32, 3),
        "val": (5000, 32, 32, 3),
        "test": (10000, 32, 32, 3),
    }
    official = datasets.CIFAR10(str(ROOT / "data"), train=False)
    assert np.array_equal(data.splits["test"][0].numpy(), official.data)
    assert data.splits["test"][1].tolist() == official.targets
    # The mean of the 45k in 0 .. 255, near the published mean of the 50k.
    assert data.mean.shape == (32, 32, 3)
    assert data.mean.mean((0, 1)).tolist() == pytest.approx([125.3, 123.0, 113.9], abs=0.3)
    labels = torch.cat([data.splits["train"][1], data.splits["val"][1]])
    assert torch.bincount(labels).tolist() == [5000] * 10


@pytest.mark.cifar10
def test_cifar10_channel_means_and_stds_are_the_published_ones(cifar10_arrays, monkeypatch):
    monkeypatch.setattr(CIFAR10, "read", lambda _: cifar10_arrays)
    data = cifar10(normalization="channel", val_images=0)
    data.setup()
    assert data.mean.tolist() == pytest.approx([125.307, 122.950, 113.865], abs=0.001)
    assert data.std.tolist() == pytest.approx([62.993, 62.089, 66.705], abs=0.001)


@pytest.mark.cifar10
def test_the_official_cifar10_files_pass_the_check():
    cifar10().prepare_data()


def test_a_missing_cifar10_names_the_directory(tmp_path):
    message = f"{tmp_path}/cifar-10-batches-py .*data.root="
    with pytest.raises(FileNotFoundError, match=message):
        cifar10(tmp_path).prepare_data()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cifar10
def test_a_damaged_cifar10_names_the_file(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for path in (ROOT / "data" / "cifar-10-batches-py").iterdir():
        (folder / path.name).symlink_to(path)
    content = bytearray((folder / "data_batch_3").read_bytes())
    content[100_000] ^= 1
    (folder / "data_batch_3").unlink()
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"\(data_batch_3 missing or damaged\)"):
        cifar10(tmp_path).prepare_data()
