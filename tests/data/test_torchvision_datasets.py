"""MNIST, Fashion-MNIST and CIFAR-100 as torchvision reads them, from files in their layout."""

import pickle
import threading

import numpy as np
import pytest
from conftest import ROOT
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from src.data.cifar100 import CIFAR100
from src.data.mnist import MNIST, FashionMNIST

OPTIONS = {"val_images": 0, "normalization": "pixel", "padding": 2, "flip": False, "seed": 0}
MNISTS = pytest.mark.parametrize(
    ("dataset", "folder"), [(MNIST, "MNIST"), (FashionMNIST, "FashionMNIST")]
)


def write_idx(path, array):
    """Write uint8 of any shape as the official files hold it: sizes as big-endian integers."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(header + array.tobytes())


def write_mnist(root, folder):
    """Write 40 training and 20 test images, and return their pixels."""
    rng, pixels = np.random.default_rng(0), []
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 40), ("t10k", 20)):
        pixels.append(rng.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        write_idx(raw / f"{split}-images-idx3-ubyte", pixels[-1])
        write_idx(raw / f"{split}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return pixels


def set_up(dataset, root, **changes):
    data = dataset(root=str(root), **OPTIONS | {"download": False, "num_classes": 10} | changes)
    data.prepare_data()
    data.setup()
    return data


class Downloader:
    """Stands for torchvision's class."""

    resources = datasets.MNIST.resources

    def __init__(self, download):
        self.download = download

    def __call__(self, root, download):
        self.download(root)


@MNISTS
def test_gray_images_become_three_equal_channels(dataset, folder, tmp_path):
    train, test = write_mnist(tmp_path, folder)
    data = set_up(dataset, tmp_path)
    for split, pixels in (("train", train), ("test", test)):
        images, labels = data.splits[split]
        assert images.shape == (len(pixels), 28, 28, 3)
        for channel in range(3):
            assert np.array_equal(images[..., channel].numpy(), pixels)
        assert labels.tolist() == [i % 10 for i in range(len(pixels))]
    assert data.image_shape == (3, 28, 28)


@MNISTS
def test_missing_files_are_named_and_where_they_belong(dataset, folder, tmp_path):
    write_mnist(tmp_path, folder)
    (tmp_path / folder / "raw" / "train-labels-idx1-ubyte").unlink()
    message = (
        rf"MNIST is incomplete in {tmp_path}/{folder}/raw \(train-labels-idx1-ubyte missing or "
        rf"damaged\): put the official files there or set data.root= to what holds {folder}/raw"
    )
    with pytest.raises(FileNotFoundError, match=message):
        set_up(dataset, tmp_path)


@pytest.mark.parametrize("length", [0, 10, 1000])
def test_a_truncated_file_of_mnist_is_refused(length, tmp_path):
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"MNIST is damaged in {tmp_path}/MNIST/raw: remove that"):
        set_up(MNIST, tmp_path)


def test_a_wrong_number_of_classes_is_refused(tmp_path):
    write_mnist(tmp_path, "MNIST")
    for wrong in (9, 11):
        with pytest.raises(ValueError, match=f"={wrong}, but the labels are of 10 classes: set"):
            set_up(MNIST, tmp_path, num_classes=wrong)
    assert set_up(MNIST, tmp_path, num_classes=None).train_images == 40


@pytest.mark.mnist
def test_the_official_mnist_has_60k_and_10k_images_with_the_published_mean_and_std():
    data = set_up(MNIST, ROOT / "data", normalization="channel")
    assert {name: tuple(images.shape) for name, (images, _) in data.splits.items()} == {
        "train": (60000, 28, 28, 3),
        "test": (10000, 28, 28, 3),
    }
    assert data.splits["train"][1].bincount().tolist()[:3] == [5923, 6742, 5958]
    assert (data.mean / 255).tolist() == pytest.approx([0.1307] * 3, abs=5e-5)
    assert (data.std / 255).tolist() == pytest.approx([0.3081] * 3, abs=5e-5)


@pytest.fixture
def cifar100_root(tmp_path, monkeypatch):
    """Files in the layout of CIFAR-100 with two images of each class, and with their own MD5s."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 3 * 32 * 32)).astype(np.uint8)
    labels = {"fine_labels": [i % 100 for i in range(200)], "coarse_labels": [0] * 200}
    contents = {"train": labels | {"data": pixels}, "test": labels | {"data": pixels[::-1]}}
    contents["meta"] = {"fine_label_names": [f"class {i}" for i in range(100)]}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    md5 = {name: calculate_md5(folder / name) for name in contents}
    for split in ("train", "test"):
        monkeypatch.setattr(datasets.CIFAR100, f"{split}_list", [(split, md5[split])])
    monkeypatch.setitem(datasets.CIFAR100.meta, "md5", md5["meta"])
    return tmp_path


def test_cifar100_has_its_100_fine_labels(cifar100_root):
    data = set_up(CIFAR100, cifar100_root, num_classes=100)
    images, labels = data.splits["train"]
    assert images.shape == (200, 32, 32, 3)
    assert labels.tolist() == [*range(100), *range(100)]
    # The official files have the channels one after the other.
    pixels = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32)).astype(np.uint8)
    assert np.array_equal(images.numpy(), pixels.transpose(0, 2, 3, 1))


def test_a_damaged_cifar100_names_the_file(cifar100_root):
    path = cifar100_root / "cifar-100-python" / "test"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    message = r"CIFAR-100 is incomplete in .*/cifar-100-python \(test missing or damaged\): put"
    with pytest.raises(FileNotFoundError, match=message):
        set_up(CIFAR100, cifar100_root, num_classes=100)


def test_processes_that_start_together_download_once(tmp_path):
    """Each opens the lock by itself, as processes do."""
    started, may_write, downloads = threading.Event(), threading.Event(), []

    def download(root):
        downloads.append(root)
        started.set()
        may_write.wait(60)
        write_mnist(tmp_path, "MNIST")

    data = [MNIST(root=str(tmp_path), **OPTIONS, download=True) for _ in range(2)]
    for one in data:
        one.dataset = Downloader(download)
    threads = [threading.Thread(target=one.prepare_data) for one in data]
    threads[0].start()
    assert started.wait(60)
    threads[1].start()
    threads[1].join(0.5)  # it waits, whereas without a lock it would download by now
    may_write.set()
    for thread in threads:
        thread.join(60)
    assert len(downloads) == 1
