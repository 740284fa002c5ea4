"""Batch norm on several devices: over each one's images, or over those of all of them."""

import pytest
import torch
from ranks import run_on_ranks, train_and_capture
from sync_batchnorm import SyncBatchNorms, SyncedBatchNorm
from torch import nn
from torch.nn import functional as F

RUN = [
    *("n=1", "recipe.batch_size=64", "recipe.iterations=50", "recipe.log_every=1"),
    *(
        "checkpoint_seconds=0",
        "recipe.eval_every=25",
        "recipe.schedule.lr=0.01",
        "data.test_images=50",
    ),
    *("trainer.accelerator=cpu", "trainer.precision=32-true"),
]


def losses(run_dir):
    """Return the training loss of each iteration."""
    return torch.tensor([row["train/loss"] for row in run_dir.rows()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train on some ranks, and return the run directory and what rank 0 printed."""
    from src.config import compose_config, find_run_dir

    def train(world_size, callbacks=(), output_dir=None):
        output_dir = output_dir or tmp_path_factory.mktemp("runs")
        overrides = [*RUN, f"trainer.devices={world_size}", f"output_dir={output_dir}"]
        run_dir = find_run_dir(compose_config(*overrides))
        printed = run_on_ranks(world_size, train_and_capture, run_dir, callbacks)[0]
        return run_dir, printed

    return train


@pytest.fixture(scope="module")
def on_one(trained):
    """The losses on one device."""
    return losses(trained(1)[0])


@pytest.mark.fault_injection(
    "processes", "50 iterations on one device and on two with synchronized batch norm"
)
def test_two_processes_with_synchronized_batch_norm_train_as_one_process_does(trained, on_one):
    run_dir, _ = trained(2, [SyncBatchNorms()])
    assert len(on_one) == 50
    torch.testing.assert_close(losses(run_dir), on_one, rtol=1e-3, atol=1e-4)


def test_without_it_each_process_normalizes_its_own_images_and_the_run_says_so(trained, on_one):
    run_dir, printed = trained(2)
    assert "world size 2, batch norm over 32 images" in printed
    assert (losses(run_dir) - on_one).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.fault_injection("processes", "resuming with another number of devices")
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_run_resumes_with_another_world_size_and_says_so(trained, on_one, first, then):
    run_dir, _ = trained(first, [SyncBatchNorms()])
    # As if it had been stopped after the evaluation at iteration 25.
    (run_dir.path / "summary.json").unlink()
    run_dir.last_checkpoint.with_name("previous.ckpt").replace(run_dir.last_checkpoint)

    output_dir = run_dir.path.parents[1]
    resumed, printed = trained(then, [SyncBatchNorms()], output_dir)
    assert resumed.path == run_dir.path
    assert "resumes at iteration 25 of 50 iterations" in printed
    assert f"(world size {first} before)" in printed
    torch.testing.assert_close(losses(run_dir), on_one, rtol=1e-3, atol=1e-4)


def test_synchronized_batch_norm_on_a_cpu_is_refused_with_a_message(tiny, tmp_path):
    with pytest.raises(ValueError, match="trainer.sync_batchnorm=true needs GPUs: PyTorch's"):
        tiny("trainer.sync_batchnorm=true", "trainer.accelerator=cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_synchronized_batch_norm_on_a_gpu_is_accepted(tiny):
    assert tiny("trainer.sync_batchnorm=true", "trainer.accelerator=gpu").summary


@pytest.mark.parametrize("momentum", [0.1, None])
def test_in_one_process_synchronized_batch_norm_is_batch_norm(tmp_path, momentum):
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        synced, reference = (
            norm(4, momentum=momentum) for norm in (SyncedBatchNorm, nn.BatchNorm2d)
        )
        for norm in (synced, reference):
            nn.init.constant_(norm.weight, 1.5)
            nn.init.constant_(norm.bias, 0.5)
        x = torch.randn(8, 4, 5, 5) * 3 + 1
        gradients = []
        for norm in (synced, reference):
            norm(x + 2)  # so that the running statistics are over two batches
            images = x.clone().requires_grad_()
            F.mse_loss(norm(images), torch.ones_like(x)).backward()
            gradients.append(images.grad)
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(synced.state_dict(), reference.state_dict())
        torch.testing.assert_close(synced.eval()(x), reference.eval()(x))
    finally:
        torch.distributed.destroy_process_group()
