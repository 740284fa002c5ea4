import numpy as np
import pytest
import torch

from src.data.sampler import Stream


def stream(images=100, batch_size=32, iterations=20, seed=0, rank=0, world=1):
    """A stream whose batch is its indices and its first draw, so that both can be looked at."""

    def make(indices, rng, share):
        return indices[share], torch.from_numpy(rng.integers(0, 1000, len(indices)))[share]

    return Stream(make, images, batch_size, iterations, seed, rank, world)


def indices(of):
    return torch.cat([batch[0] for batch in of]).numpy()


def test_each_pass_has_each_image_once_and_passes_differ():
    order = indices(stream(iterations=25))  # 800 images: 8 passes
    passes = order.reshape(8, 100)
    assert (np.sort(passes, axis=1) == np.arange(100)).all()
    assert len({tuple(p) for p in passes}) == 8


@pytest.mark.parametrize("images", [5, 31, 32, 33, 100])
def test_every_batch_is_full_also_where_a_pass_is_smaller_than_a_batch(images):
    batches = list(stream(images=images))
    assert [len(batch[0]) for batch in batches] == [32] * 20 and len(stream(images=images)) == 20
    order = indices(batches)
    whole = len(order) // images
    assert (np.sort(order[: whole * images].reshape(whole, images), axis=1) == np.arange(images)).all()


def test_a_batch_depends_on_the_seed_and_the_iteration_alone():
    one = stream()
    np.random.seed(5)
    torch.manual_seed(5)
    batches = list(one)
    for i in (19, 0, 7):
        for part, expected in zip(stream().batch(i), batches[i], strict=True):
            assert torch.equal(part, expected)
    assert not np.array_equal(indices(stream(seed=1)), indices(batches))
    assert not torch.equal(batches[0][1], batches[1][1])


@pytest.mark.parametrize("at", [0, 1, 7, 19, 20])
def test_a_resumed_stream_goes_on_where_it_was(at):
    whole, first, second = list(stream()), stream(), stream()
    iterator = iter(first)
    for _ in range(at):
        next(iterator)
    assert first.state_dict() == {"iteration": at}
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert len(rest) == 20 - at
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(rest, whole[at:], strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_same_batch(world):
    whole = stream().batch(3)
    shares = [stream(rank=rank, world=world).batch(3) for rank in range(world)]
    for i in (0, 1):
        assert torch.equal(torch.cat([share[i] for share in shares]), whole[i])
