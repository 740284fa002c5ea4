"""Runs on few scenes, for tests of tasks in which the result does not matter."""

import io
from contextlib import redirect_stdout
from types import SimpleNamespace

from ranks import run_on_ranks
from torch import nn

from src.evaluation.task_evaluator import evaluate_task_runs
from src.runs.run_dir import RunDir
from src.training.build import build
from src.training.trainer import make_trainer

# Four iterations; a test adds the task.
SCENES = [
    "data=scenes",
    "data.train_scenes=20",
    "data.test_scenes=5",
    "recipe.batch_size=2",
    "recipe.iterations=4",
    "recipe.eval_every=4",
    "recipe.log_every=1",
    "recipe.checkpoint_every=1",
    "trainer.accelerator=cpu",
]
DETECTION = ["task=detection", *SCENES]
SEGMENTATION = ["task=segmentation", *SCENES]
LOCALIZATION = ["task=localization", *SCENES, "data.max_objects=1", "data.crop=56"]
EVALUATION = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}


def make_module(find, *overrides):
    """Build the module and the data of a command line, as if in training on one process."""
    net = [] if any(override.startswith("model=") for override in overrides) else ["n=1"]
    config = find(*net, "trainer.precision=32-true", *overrides).config
    module, data = build(config, make_trainer(config, []))
    module.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=None)
    return module, data


def first_batch(data):
    """Return the first training batch."""
    return next(iter(data.train_dataloader()))


def assert_same_from_1_2_and_3_processes(run_dir, protocol):
    """Check that the printed results of a run do not depend on the number of processes."""
    expected = evaluate_share(run_dir.path, 1, protocol)
    assert "5 test images" in expected
    for world_size in (2, 3):
        outputs = run_on_ranks(world_size, evaluate_share, run_dir.path, world_size, protocol)
        assert outputs == [expected, *[""] * (world_size - 1)]
    return expected


def evaluate_share(path, world_size, protocol):
    """Evaluate a run in this process, and return what it prints."""
    options = EVALUATION | {"devices": world_size}
    with redirect_stdout(io.StringIO()) as printed:
        evaluate_task_runs([RunDir.open(path)], options, protocol)
    return printed.getvalue()


def make_detector(find, *overrides, seed=0):
    """Build an untrained detector, in evaluation, with an image that it takes."""
    options = [f"seed={seed}", "recipe.detector.min_score=0.0", *overrides]
    module, data = make_module(find, *DETECTION, *options)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):  # otherwise the maps of such a net are all alike
            norm.running_mean.normal_()
    nn.init.normal_(module.detector.roi_heads.box_predictor.cls_score.weight, std=0.5)
    nn.init.normal_(module.detector.roi_heads.box_predictor.bbox_pred.weight, std=0.2)
    image = data.example("test", 0).image
    return module.eval(), image
