import pytest
import torch
from ranks import said_in_a_run, together
from src.training.synced import SyncBatchNorm, SyncedBatchNorm
from torch import nn
from torch.nn import functional as F

WHERE = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
LOG_EACH = [
    "n=1",
    "recipe.iterations=100",
    "recipe.log_every=1",
    "recipe.eval_every=50",
    "recipe.schedule.lr=0.01",
]


def losses(folder):
    return torch.tensor([row["train/loss"] for row in folder.rows()])


@pytest.mark.fault_injection(
    "processes", "100 iterations on one device and on two with synchronised batch norm"
)
def test_with_synchronised_batch_norm_two_processes_train_as_one_and_without_it_they_do_not(
    find, tmp_path
):
    found = {}
    for name, extra in {
        "one": ["trainer.sync_batchnorm=true"],
        "two": ["trainer.sync_batchnorm=true", "trainer.devices=2"],
        "two, each its own": ["trainer.devices=2"],
    }.items():
        overrides = [*LOG_EACH, *WHERE, *extra, f"output_dir={tmp_path}/{name.replace(', ', '_')}"]
        folder = find(*overrides)
        said = together(folder.config["trainer"]["devices"], said_in_a_run, folder)[0]
        assert ("on 2 devices, batch norm over 64 images" in said) == (name == "two, each its own")
        assert ("on 2 devices, batch norm over 128 images" in said) == (name == "two")
        found[name] = losses(folder)
    assert len(found["one"]) == 100
    torch.testing.assert_close(found["two"], found["one"], rtol=1e-3, atol=1e-4)
    assert (found["two, each its own"] - found["one"]).abs().max() > 0.01


def test_a_net_gets_its_own_batch_norm_back():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    sync = SyncBatchNorm()
    assert type(sync.apply(net)[1]) is SyncedBatchNorm
    assert type(sync.revert(net)[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("momentum", [0.1, None])
def test_in_one_process_it_is_batch_norm(tmp_path, momentum):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        own, reference = (kind(4, momentum=momentum) for kind in (SyncedBatchNorm, nn.BatchNorm2d))
        for norm in (own, reference):
            nn.init.constant_(norm.weight, 1.5)
            nn.init.constant_(norm.bias, 0.5)
        x = torch.randn(8, 4, 5, 5) * 3 + 1
        gradients = []
        for norm in (own, reference):
            norm(x + 2)  # averages are over two batches then
            given = x.clone().requires_grad_()
            F.mse_loss(norm(given), torch.ones_like(x)).backward()
            gradients.append(given.grad)
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(own.state_dict(), reference.state_dict())
        torch.testing.assert_close(own.eval()(x), reference.eval()(x))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.fault_injection("processes", "going on with another number of devices")
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_devices_and_says_so(find, tmp_path, first, then):
    overrides = [*LOG_EACH, *WHERE, "trainer.sync_batchnorm=true"]
    whole, folder = (
        find(*overrides, f"output_dir={tmp_path}/whole"),
        find(*overrides, f"trainer.devices={first}"),
    )
    together(1, said_in_a_run, whole)
    together(first, said_in_a_run, folder)
    # As if it had been stopped after the evaluation at iteration 50.
    (folder.path / "summary.json").unlink()
    folder.last_checkpoint.with_name("previous.ckpt").replace(folder.last_checkpoint)
    said = together(then, said_in_a_run, find(*overrides, f"trainer.devices={then}"))[0]
    assert "goes on at iteration 50 of 100" in said
    assert f"({first} devices before)" in said
    torch.testing.assert_close(losses(folder), losses(whole), rtol=1e-3, atol=1e-4)
