"""The modes of `compile`: what they refuse, and that they change no number."""

from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from pytorch_lightning import Callback
from pytorch_lightning.strategies import SingleDeviceStrategy
from run_comparison import assert_same_run, load_checkpoint
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from src import train
from src.models.resnet import resnet
from src.tasks.classification import Classifier
from src.training.build import build
from src.training.cuda_graph import CapturedStepClassifier, CUDAGraphStep, resolve_compile
from src.training.trainer import make_trainer


def trainer_on(device, world_size, **settings):
    """Return what `resolve_compile` asks a Trainer."""
    usual = {"gradient_clip_val": None, "precision": "32-true", "callbacks": []}
    strategy = SingleDeviceStrategy(torch.device(device))
    return SimpleNamespace(strategy=strategy, world_size=world_size, **usual | settings)


@pytest.mark.parametrize(
    ("mode", "device", "world_size", "expected"),
    [
        ("auto", "cpu", 1, "none"),
        ("auto", "cuda", 1, "cudagraph"),
        ("auto", "cuda", 2, "none"),
        ("none", "cuda", 1, "none"),
        ("inductor", "cpu", 1, "inductor"),
        ("inductor+cudagraph", "cuda", 1, "inductor+cudagraph"),
    ],
)
def test_auto_is_a_cuda_graph_on_one_gpu_only(mode, device, world_size, expected):
    assert resolve_compile(mode, trainer_on(device, world_size)) == expected


@pytest.mark.parametrize(
    ("mode", "expected"), [("auto", "none"), ("cudagraph", "none"), ("inductor", "inductor")]
)
def test_only_sgd_is_captured(mode, expected, capsys):
    """Adam, for one, raises in a capture unless it was made with `capturable`."""
    trainer = trainer_on("cuda", 1)
    assert resolve_compile(mode, trainer, False, "torch.optim.AdamW") == expected
    captures = "compile=none instead of cudagraph, which captures torch.optim.SGD, not torch.optim."
    assert capsys.readouterr().out == ("" if mode == "inductor" else f"{captures}AdamW\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("cudagrap", "cpu", 1),
            "compile=cudagrap is not one of auto, none, cudagraph, inductor, inductor",
        ),
        (("cudagraph", "cpu", 1), "compile=cudagraph needs a GPU, not cpu: set compile=auto"),
        (("inductor+cudagraph", "cpu", 1), "needs a GPU, not cpu: set compile=auto"),
        (("cudagraph", "cuda", 2), "is for one device, the world size is 2"),
        (("inductor", "cpu", 1, True), "activation_checkpointing=true exclude each other"),
        (("inductor+cudagraph", "cuda", 1, True), "exclude each other"),
    ],
)
def test_a_mode_that_is_unknown_or_impossible_is_refused(arguments, message):
    mode, device, world_size, *checkpointing = arguments
    with pytest.raises(ValueError, match=message):
        resolve_compile(mode, trainer_on(device, world_size), *checkpointing)


@pytest.mark.parametrize(
    ("override", "ignored"),
    [
        ("+trainer.gradient_clip_val=1.0", "trainer.gradient_clip_val=1.0"),
        ("trainer.strategy=ddp", "trainer.strategy=DDPStrategy"),
    ],
)
def test_settings_that_a_captured_step_would_ignore_select_the_eager_one(
    find, capsys, override, ignored
):
    config = find(*TINY, "trainer.accelerator=cpu", "trainer.precision=32-true", override).config
    trainer = make_trainer(config, [])
    assert resolve_compile("none", trainer) == "none"
    assert capsys.readouterr().out == ""
    assert resolve_compile("inductor", trainer) == "none"
    message = f"compile=none instead of inductor, which would ignore {ignored}\n"
    assert capsys.readouterr().out == message


def test_half_precision_selects_the_eager_step_which_scales_the_loss(capsys):
    """On a CPU Lightning would use bf16 instead."""
    trainer = trainer_on("cuda", 1, precision="16-mixed")
    assert resolve_compile("auto", trainer) == "none"
    message = "compile=none instead of cudagraph, which would ignore trainer.precision=16-mixed\n"
    assert capsys.readouterr().out == message


@pytest.mark.parametrize(
    "overrides",
    [
        ("recipe.schedule.warmup_from_n=1", "recipe.schedule.warmup_error=89.0", "seed=3"),
        ("recipe.batch_norm_images=32", "recipe.decay_norm_and_bias=false"),
    ],
)
def test_the_captured_step_is_bitwise_identical_to_lightnings(
    tiny, uncompiled, tmp_path, overrides
):
    modes = ("none", "inductor")
    eager, full = (tiny(*overrides, f"compile={m}", f"output_dir={tmp_path}/{m}") for m in modes)
    assert eager.path.name == full.path.name
    assert_same_run(eager, full, compiled=True)
    groups = load_checkpoint(full)["optimizer_states"][0]["param_groups"]
    assert {type(group["lr"]) for group in groups} == {float}


class RecordLR(Callback):
    """Collect what the optimizer computes with in each iteration."""

    def __init__(self):
        self.lrs = []

    def on_train_batch_end(self, trainer, *_):
        self.lrs.append(float(trainer.optimizers[0].param_groups[0]["lr"]))


def test_eager_and_captured_steps_use_the_same_float32_learning_rate(tiny, uncompiled, tmp_path):
    """The paper's 0.1 is no binary fraction: float64 and float32 round it differently."""
    for mode in ("none", "inductor"):
        record = RecordLR()
        run_dir = tiny(f"compile={mode}", f"output_dir={tmp_path}/{mode}", callbacks=[record])
        assert record.lrs[0] == float(np.float32(0.1)) != 0.1
        assert record.lrs[-1] == float(np.float32(0.001))
        assert run_dir.rows()[0]["lr"] == 0.1
        checkpoint = load_checkpoint(run_dir)
        assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.001


@pytest.fixture
def recorded_captures(monkeypatch):
    """Replace CUDA's graphs by objects that record how they are captured and replayed."""
    captures = []

    class Graph:
        def replay(self):
            captures.append("replay")

    @contextmanager
    def capture(graph, **options):
        captures.append(options)
        yield

    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: capture(None, eager=True))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return captures


def test_a_capture_allows_cuda_calls_in_other_threads(recorded_captures):
    """The thread that copies a loader's batches into pinned memory makes some at any time."""
    calls = []
    step = CUDAGraphStep(calls.append)
    for i in range(6):
        step(torch.tensor(i))
    (capture,) = [options for options in recorded_captures if "capture_error_mode" in options]
    assert capture["capture_error_mode"] == "thread_local"
    assert recorded_captures[-3:] == ["replay"] * 3
    assert [int(batch) for batch in calls] == [0, 1, 2, 5]  # the captured one is overwritten
    assert calls[3].data_ptr() == step.batch[0].data_ptr()


def test_the_augmentation_is_a_part_of_the_captured_step(recorded_captures, find, monkeypatch):
    """Its input is the small tensor of random choices, not images."""
    config = find(*TINY, "trainer.accelerator=cpu", "trainer.precision=32-true").config
    seen = []

    def remember(self, meter, batch):
        seen.append([tensor.shape for tensor in batch])
        return Classifier.measure(self, meter, batch)

    monkeypatch.setattr(CapturedStepClassifier, "measure", remember)
    trainer = make_trainer(config, [])
    net, data = build(config, trainer)
    arguments = net.net, net.make_optimizer, net.schedule, net.augment
    module = CapturedStepClassifier(*arguments, use_graph=True)
    data.trainer = trainer
    data.setup("fit")
    module.trainer = trainer
    trainer.strategy.optimizers = [module.configure_optimizers()]
    module.on_train_start()
    for index, batch in enumerate(islice(data.train_dataloader(), 5)):
        module.training_step(batch, index)
    (choices,) = module.step.batch
    assert (choices.shape, choices.dtype) == ((4, 128), torch.int64)
    assert seen == [[(128, 3, 8, 8), (128,)]] * 4


@pytest.mark.parametrize(("first", "then"), [("none", "inductor"), ("inductor", "none")])
def test_a_checkpoint_of_one_mode_is_resumed_by_another(
    tiny, tiny_until, uncompiled, tmp_path, first, then
):
    undisturbed = tiny("compile=none", f"output_dir={tmp_path}/undisturbed")
    tiny_until(5, f"compile={first}")
    assert_same_run(undisturbed, tiny(f"compile={then}"), compiled=True)


def scores_and_gradients(net, images):
    scores = net(images)
    F.cross_entropy(scores, torch.zeros(len(images), dtype=torch.int64)).backward()
    return scores, torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.slow
def test_compiling_changes_no_number_and_needs_as_many_graphs_for_any_depth():
    graphs = []
    for n in (2, 4):
        torch.manual_seed(0)
        nets = [resnet(n, "A", 10, "he_fan_in") for _ in range(2)]
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
@pytest.mark.parametrize("mode", ["cudagraph", "inductor", "inductor+cudagraph"])
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
