import numpy as np
import pytest
import torch

from src.data.sampler import TrainingStream


def stream(images=100, batch_size=32, iterations=20, seed=0, rank=0, world_size=1):
    """A stream whose batches are their indices and random numbers, so that tests can see both."""

    def make_batch(indices, rng, rank_slice):
        numbers = torch.from_numpy(rng.integers(0, 1000, len(indices)))
        return indices[rank_slice], numbers[rank_slice]

    return TrainingStream(make_batch, images, batch_size, iterations, seed, rank, world_size)


def indices_of(batches):
    return torch.cat([batch[0] for batch in batches]).numpy()


def test_each_epoch_has_each_image_once_in_another_order():
    epochs = indices_of(stream(iterations=25)).reshape(8, 100)
    assert (np.sort(epochs, axis=1) == np.arange(100)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 8


@pytest.mark.parametrize("images", [5, 31, 32, 33, 100])
def test_every_batch_is_full_even_if_an_epoch_is_smaller_than_a_batch(images):
    batches = list(stream(images=images))
    assert [len(batch[0]) for batch in batches] == [32] * 20
    assert len(stream(images=images)) == 20
    indices = indices_of(batches)
    epochs = len(indices) // images
    complete = indices[: epochs * images].reshape(epochs, images)
    assert (np.sort(complete, axis=1) == np.arange(images)).all()


def test_a_batch_depends_on_the_seed_and_the_iteration_alone():
    one = stream()
    np.random.seed(5)
    torch.manual_seed(5)
    batches = list(one)
    for i in (19, 0, 7):
        for part, expected in zip(stream().batch(i), batches[i], strict=True):
            assert torch.equal(part, expected)
    assert not np.array_equal(indices_of(stream(seed=1)), indices_of(batches))
    assert not torch.equal(batches[0][1], batches[1][1])


@pytest.mark.parametrize("iteration", [0, 1, 7, 19, 20])
def test_a_resumed_stream_continues_at_its_iteration(iteration):
    complete, first, second = list(stream()), stream(), stream()
    iterator = iter(first)
    for _ in range(iteration):
        next(iterator)
    assert first.state_dict() == {"iteration": iteration}
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert len(rest) == 20 - iteration
    for batch, expected in zip(rest, complete[iteration:], strict=True):
        assert torch.equal(batch[0], expected[0])
        assert torch.equal(batch[1], expected[1])


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_same_batch(world_size):
    batch = stream().batch(3)
    parts = [stream(rank=rank, world_size=world_size).batch(3) for rank in range(world_size)]
    for i in (0, 1):
        assert torch.equal(torch.cat([part[i] for part in parts]), batch[i])
