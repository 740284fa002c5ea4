"""The modes of `compile`: what they refuse, and that they change no number."""

import pytest
import torch
from pytorch_lightning import Callback
from run_comparison import assert_same_run, load_checkpoint
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from src import train
from src.models.resnet import resnet
from src.training.cuda_graph import CUDAGraphStep, resolve_compile

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def uncompiled(monkeypatch):
    """Make compile=inductor skip the compiler, so that only its training step differs from Lightning's."""
    monkeypatch.setattr("src.models.resnet.ResidualNet.compile", lambda net: None)


@pytest.mark.parametrize(
    ("mode", "device", "world_size", "expected"),
    [
        ("auto", CPU, 1, "none"),
        ("auto", CUDA, 1, "cudagraph"),
        ("auto", CUDA, 2, "none"),
        ("none", CUDA, 1, "none"),
        ("inductor", CPU, 1, "inductor"),
    ],
)
def test_auto_is_a_cuda_graph_on_one_gpu_only(mode, device, world_size, expected):
    assert resolve_compile(mode, device, world_size) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cudagrap", CPU, 1), "compile=cudagrap is not one of auto, none, cudagraph, inductor"),
        (("cudagraph", CPU, 1), "needs a GPU, not cpu: set compile=auto"),
        (("cudagraph", CUDA, 2), "is for one device, and the world size is 2"),
        (("inductor", CPU, 1, True), "activation_checkpointing=true cannot be combined"),
    ],
)
def test_a_mode_that_is_unknown_or_impossible_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        resolve_compile(*arguments)


def test_the_captured_step_is_bitwise_identical_to_lightnings(tiny, uncompiled, tmp_path):
    warm_up = ("recipe.schedule.warmup_from_n=1", "recipe.schedule.warmup_error=89.0", "seed=3")
    modes = ("none", "inductor")
    eager, full = (tiny(*warm_up, f"compile={m}", f"output_dir={tmp_path}/{m}") for m in modes)
    assert eager.path.name == full.path.name
    assert_same_run(eager, full)
    groups = load_checkpoint(full)["optimizer_states"][0]["param_groups"]
    assert {type(group["lr"]) for group in groups} == {float}


@pytest.mark.parametrize(("first", "then"), [("none", "inductor"), ("inductor", "none")])
def test_a_checkpoint_of_one_mode_is_resumed_by_another(
    tiny, tiny_until, uncompiled, tmp_path, first, then
):
    undisturbed = tiny("compile=none", f"output_dir={tmp_path}/undisturbed")
    tiny_until(5, f"compile={first}")
    assert_same_run(undisturbed, tiny(f"compile={then}"))


def scores_and_gradients(net, images):
    scores = net(images)
    F.cross_entropy(scores, torch.zeros(len(images), dtype=torch.int64)).backward()
    return scores, torch.cat([p.grad.flatten() for p in net.parameters()])


def test_compiling_changes_no_number_and_needs_as_many_graphs_for_any_depth():
    graphs = []
    for n in (2, 4):
        torch.manual_seed(0)
        nets = [resnet(n, "A", 10, "fan_in") for _ in range(2)]
        nets[1].load_state_dict(nets[0].state_dict())
        keys = list(nets[1].state_dict())
        nets[1].compile(backend="aot_eager")
        assert list(nets[1].state_dict()) == keys
        torch.compiler.reset()
        counters.clear()
        images = torch.randn(4, 3, 8, 8)
        (a, a_gradients), (b, b_gradients) = (scores_and_gradients(net, images) for net in nets)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a_gradients, b_gradients)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


def test_evaluation_compiles_nothing_whatever_the_size_of_its_last_batch(tiny, monkeypatch):
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda block: compiled(block, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    tiny("compile=inductor", "data.test_images=507", "data.val_images=13")
    # Three evaluations and one of the final weights. The net has three blocks, which are compiled
    # for training.
    assert counters["stats"]["unique_graphs"] == 3


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["cudagraph", "inductor"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_losses_are_those_of_the_eager_step_over_200_iterations(find, tmp_path, mode, precision):
    """At a learning rate at which rounding errors do not grow."""
    overrides = ["n=3", "recipe.iterations=200", "recipe.log_every=1", "recipe.schedule.lr=0.01"]
    losses = []
    for kind in ("none", mode):
        execution = [f"compile={kind}", f"output_dir={tmp_path}/{kind}"]
        run_dir = find(*overrides, f"trainer.precision={precision}", *execution)
        train.run(run_dir)
        losses.append(torch.tensor([row["train/loss"] for row in run_dir.rows()]))
    assert len(losses[0]) == 200
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.01)


@pytest.mark.gpu
def test_a_graph_does_what_its_step_does_to_each_batch():
    total = torch.zeros(3, device="cuda")
    graph = CUDAGraphStep(lambda x, y: total.add_(x * y))
    for i in range(10):
        graph(torch.full((3,), float(i), device="cuda"), torch.arange(3.0, device="cuda"))
    assert total.tolist() == [0, 45, 90]


class ForbidWaiting(Callback):
    """Raise an error if the CPU waits for the GPU in iterations 5 to 14."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("error" if 5 <= batch_idx < 15 else "default")


@pytest.mark.gpu
def test_a_step_that_does_not_log_never_waits_for_the_gpu(tiny):
    every = [f"recipe.{name}_every=20" for name in ("log", "eval", "checkpoint")]
    tiny("recipe.iterations=20", *every, "compile=cudagraph", callbacks=[ForbidWaiting()])
