"""Batches of ImageNet's images: worker processes, resuming, ranks, corrupt images."""

import numpy as np
import pytest
import torch
from images_on_disk import imagenet, make_folders

CORRUPT = pytest.mark.fault_injection("bad input", "an image that is truncated, no image, or gone")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def train_batches(root):
    return list(imagenet(root).train_dataloader())


def equal(batches, others):
    return all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(batches, others, strict=True)
    )


class OneOfSeveral:
    """Stands in for the trainer of process `global_rank` of `world_size`."""

    num_devices = 1
    strategy = type("Strategy", (), {"root_device": torch.device("cpu")})

    def __init__(self, global_rank, world_size):
        self.global_rank, self.world_size = global_rank, world_size


def on_rank(data, rank, world_size):
    data.trainer = OneOfSeveral(rank, world_size)
    return data


def test_worker_processes_change_no_batch(root, train_batches):
    data = imagenet(root, num_workers=2)
    assert equal(data.train_dataloader(), train_batches)
    assert equal(data.test_dataloader(), imagenet(root).test_dataloader())


def test_a_batch_depends_on_the_seed_and_the_iteration_alone(root, train_batches):
    np.random.seed(3)
    torch.manual_seed(3)
    assert equal(imagenet(root).train_dataloader(), train_batches)
    other = next(iter(imagenet(root, seed=1).train_dataloader()))
    assert not torch.equal(train_batches[0][1], other[1])
    assert not torch.equal(train_batches[0][2], other[2])


def test_reading_does_not_advance_the_global_random_generator(root):
    state = torch.manual_seed(3).get_state()
    list(imagenet(root, num_workers=1).test_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("iteration", "workers"), [(0, 0), (2, 0), (3, 0), (1, 2)])
def test_a_resumed_stream_continues_at_its_iteration(root, train_batches, iteration, workers):
    data = imagenet(root, num_workers=workers)
    first, second = data.train_dataloader(), data.train_dataloader()
    batches = iter(first)
    for _ in range(iteration):
        next(batches)
    assert first.state_dict() == {"iteration": iteration}
    second.load_state_dict(first.state_dict())
    assert equal(second, train_batches[iteration:])


def test_two_epochs_have_each_image_twice(train_batches):
    assert len(train_batches) == 3
    labels = torch.cat([labels for _, labels, _ in train_batches])
    assert np.bincount(labels).tolist() == [8, 8, 8]


def test_two_ranks_share_each_training_batch(root, train_batches):
    halves = [on_rank(imagenet(root), rank, 2).train_dataloader() for rank in range(2)]
    together = [
        tuple(torch.cat(parts) for parts in zip(*pair, strict=True))
        for pair in zip(*halves, strict=True)
    ]
    assert equal(together, train_batches)


def test_two_ranks_share_the_test_images(root):
    (first, _), (second, _) = (
        next(iter(on_rank(imagenet(root), rank, 2).test_dataloader())) for rank in range(2)
    )
    ((images, labels),) = imagenet(root).test_dataloader()
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(images[0::2], first)
    assert torch.equal(images[1::2], second)


def test_a_batch_size_that_the_ranks_do_not_divide_is_refused(root):
    data = imagenet(root)
    data.splits = {}
    with pytest.raises(ValueError, match=r"recipe.batch_size=8 .* must be a multiple of 3"):
        on_rank(data, 0, 3).setup()


def test_each_test_image_comes_once_in_batches(root):
    data = imagenet(root)
    test_loader, val_loader = data.test_dataloader(), data.val_dataloader()
    test_loader.batch_size = val_loader.batch_size = 4
    batches = list(test_loader)
    assert [labels.tolist() for _, labels in batches] == [[0, 0, 1, 1], [2, 2]]
    assert len(test_loader) == 2
    assert equal(val_loader, batches)


@CORRUPT
@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_the_run_with_its_path(tmp_path, workers, record_property):
    record_property("tried", 2)
    root = make_folders(tmp_path)
    train, val = sorted(root.glob("train/*/*"))[5], sorted(root.glob("val/*/*"))[3]
    train.write_bytes(train.read_bytes()[:900])
    val.write_bytes(b"text")
    data = imagenet(root, num_workers=workers)
    message = f"^{train} cannot be decoded .*truncated.* with data.on_bad=skip$"
    with pytest.raises(ValueError, match=message):
        list(data.train_dataloader())
    with pytest.raises(ValueError, match=f"^{val} is not an image: fix or remove it, or skip"):
        list(data.test_dataloader())


@CORRUPT
def test_a_skipped_image_is_reported_once_and_replaced_by_the_next(tmp_path, capsys):
    root = make_folders(tmp_path)
    paths = sorted(root.glob("train/*/*"))
    paths[5].write_bytes(paths[5].read_bytes()[:900])
    val = sorted(root.glob("val/*/*"))[3]
    val.write_bytes(b"text")
    data = imagenet(root, on_bad="skip", num_workers=2)
    batches = list(data.train_dataloader())
    ((images, labels),) = data.test_dataloader()
    assert len(images) == 5
    assert labels.tolist() == [0, 0, 1, 2, 2]

    messages = capsys.readouterr().err.splitlines()
    assert len(messages) == 2  # once each, though training met it in both epochs
    assert messages[0].startswith(f"{paths[5]} cannot be decoded")
    assert messages[0].endswith(": skipped, 1 so far")
    assert messages[1] == f"{val} is not an image: skipped, 2 so far"

    # The next image takes its place, cropped as the corrupt one would have been.
    paths[5].write_bytes(paths[6].read_bytes())
    assert equal(imagenet(root).train_dataloader(), batches)


@CORRUPT
def test_skipping_ends_when_no_image_can_be_decoded(tmp_path, record_property):
    record_property("tried", 3)
    root = make_folders(tmp_path)
    for path in root.glob("*/*/*"):
        path.write_bytes(b"text")
    data = imagenet(root, on_bad="skip")
    with pytest.raises(
        ValueError, match="none of the 12 training images can be read: .* is not an image"
    ):
        list(data.train_dataloader())
    assert list(data.test_dataloader()) == []
    with pytest.raises(ValueError, match=f"none of the images in {root} can be read"):
        imagenet(root, on_bad="skip", normalization="pixel")
    assert not (root / "mean-224.npy").exists()


@CORRUPT
def test_a_file_that_vanished_is_named_from_a_worker_process_too(tmp_path):
    root = make_folders(tmp_path, train=1, val=1)
    data = imagenet(root, num_workers=1, on_bad="skip")
    gone = next(root.glob("val/*/*"))
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=str(gone)):
        list(data.test_dataloader())
