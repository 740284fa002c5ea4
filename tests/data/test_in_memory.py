"""The data modules: splits, means, testing; on the digits, and on the real CIFAR-10 where it is."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10 as Files

from src.data.cifar10 import CIFAR10
from src.data.digits import Digits


def digits(**changes):
    options = {"test_images": 500, "val_images": 0, "normalization": "pixel", "padding": 1, "flip": False, "seed": 0}
    data = Digits(**options | {"batch_size": 128, "iterations": 10} | changes)
    data.setup()
    return data


def cifar10(root=ROOT / "data", **changes):
    options = {"val_images": 5000, "normalization": "pixel", "padding": 4, "flip": True, "seed": 0}
    return CIFAR10(root=str(root), download=False, **options | {"batch_size": 128, "iterations": 10} | changes)


def test_digits_are_scikit_learns_each_in_one_split():
    data = digits(val_images=97)
    assert {name: len(x) for name, (x, _) in data.splits.items()} == {"train": 1200, "val": 97, "test": 500}
    found = np.concatenate([x.numpy()[..., 0].reshape(len(x), 64) for x, _ in data.splits.values()]) // 15
    labels = np.concatenate([y for _, y in data.splits.values()])
    theirs = load_digits()
    rows = sorted(map(tuple, np.column_stack([theirs.data.astype(int), theirs.target])))
    assert sorted(map(tuple, np.column_stack([found, labels]))) == rows


def test_the_seed_moves_the_validation_images_but_not_the_test_images():
    one, other = digits(val_images=97), digits(val_images=97, seed=1)
    assert torch.equal(one.splits["test"][0], other.splits["test"][0])
    assert not torch.equal(one.splits["val"][0], other.splits["val"][0])


def test_the_mean_is_of_the_training_images_alone():
    data = digits(val_images=400)
    assert torch.equal(data.mean, torch.from_numpy(data.splits["train"][0].numpy().mean(0)).float())
    assert data.std is None


def test_channel_normalization_gives_mean_0_and_deviation_1():
    data = digits(normalization="channel", test_images=797)
    images, mean, std = data.splits["train"][0].float(), data.mean, data.std
    normalized = (images - mean) / std
    assert normalized.mean().item() == pytest.approx(0, abs=1e-5)
    assert normalized.std().item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="data.normalization=none is not one of pixel and channel"):
        digits(normalization="none")


@pytest.mark.parametrize("val_images", [0, 97])
def test_testing_sees_each_image_once_in_order_over_all_processes(val_images):
    data = digits(val_images=val_images)
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert torch.equal(labels, data.splits["test"][1])
    assert len(data.val_dataloader()) == len(list(data.val_dataloader())) == 1
    held_out = data.splits["val" if val_images else "test"]
    assert sum(len(y) for _, y in data.val_dataloader()) == len(held_out[0])


def test_training_batches_are_augmented_images_of_their_labels():
    data = digits(padding=0)
    images, labels = data.train_dataloader().batch(0)
    assert images.shape == (128, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    indices = data.train_dataloader().indices(0)
    assert torch.equal(labels, data.splits["train"][1][indices])
    assert torch.equal(images.permute(0, 2, 3, 1), data.splits["train"][0][indices].float() - data.mean)


@pytest.mark.parametrize("val_images", [-1, 1297])
def test_validation_images_must_leave_some_for_training(val_images):
    with pytest.raises(ValueError, match=f"data.val_images={val_images} must be from 0 to 1296"):
        digits(val_images=val_images)


@pytest.mark.cifar10
def test_cifar10_is_the_official_one_split_45k_5k_10k():
    data = cifar10()
    data.prepare_data()
    data.setup()
    assert {name: tuple(x.shape) for name, (x, _) in data.splits.items()} == {
        "train": (45000, 32, 32, 3),
        "val": (5000, 32, 32, 3),
        "test": (10000, 32, 32, 3),
    }
    official = Files(str(ROOT / "data"), train=False)
    assert np.array_equal(data.splits["test"][0].numpy(), official.data)
    assert data.splits["test"][1].tolist() == official.targets
    # The mean of the 45k in 0 .. 255, near the published mean of the 50k.
    assert data.mean.shape == (32, 32, 3)
    assert data.mean.mean((0, 1)).tolist() == pytest.approx([125.3, 123.0, 113.9], abs=0.3)
    both = torch.cat([data.splits["train"][1], data.splits["val"][1]])
    assert torch.bincount(both).tolist() == [5000] * 10


@pytest.mark.cifar10
def test_cifar10_channel_means_and_deviations_are_the_published_ones():
    data = cifar10(normalization="channel", val_images=0)
    data.setup()
    assert data.mean.tolist() == pytest.approx([125.307, 122.950, 113.865], abs=0.001)
    assert data.std.tolist() == pytest.approx([62.993, 62.089, 66.705], abs=0.001)


def test_a_missing_cifar10_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/cifar-10-batches-py .*data.root="):
        cifar10(tmp_path).prepare_data()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cifar10
def test_a_damaged_cifar10_names_the_file(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for path in (ROOT / "data" / "cifar-10-batches-py").iterdir():
        (folder / path.name).symlink_to(path)
    body = bytearray((folder / "data_batch_3").read_bytes())
    body[100_000] ^= 1
    (folder / "data_batch_3").unlink()
    (folder / "data_batch_3").write_bytes(body)
    with pytest.raises(FileNotFoundError, match=r"\(data_batch_3 missing or damaged\)"):
        cifar10(tmp_path).prepare_data()
