"""A segmenter on our nets: its metric, ignored pixels, frozen batch norm, and exact resuming."""

import io
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import KillBefore, Killed
from ranks import run_on_ranks, train_and_capture
from run_comparison import assert_same_run, load_checkpoint
from safetensors.torch import load_file, save_file
from small_tasks import (
    EVALUATION,
    SEGMENTATION,
    assert_same_from_1_2_and_3_processes,
    first_batch,
    make_module,
)
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from src.evaluation.task_evaluator import evaluate_task_runs
from src.export import export
from src.models.resnet import resnet
from src.models.vgg import VGG
from src.tasks.segmentation import Segmenter, class_ious, padded_batch, pixel_loss


@pytest.fixture
def segmenter(find):
    """Build the module and the data of a command line."""
    return lambda *overrides: make_module(find, *SEGMENTATION, *overrides)


@pytest.fixture
def segment(tiny):
    """Train a segmenter in this process."""
    return lambda *overrides, **options: tiny(*SEGMENTATION, *overrides, **options)


def reference_ious(truth, predicted, classes):
    """IoU of each class by sets of pixels, over all images at once."""
    pixels = [
        (image, place)
        for image, mask in enumerate(truth)
        for place in np.ndindex(*mask.shape)
        if mask[place] != 255
    ]
    ious = {}
    for label in range(classes):
        ours = {p for p in pixels if predicted[p[0]][p[1]] == label}
        theirs = {p for p in pixels if truth[p[0]][p[1]] == label}
        if ours | theirs:
            ious[label] = len(ours & theirs) / len(ours | theirs)
    return ious


def evaluate_predictions(module, truth, predicted):
    """Let a module evaluate masks as if its net had predicted them."""
    given = iter(predicted)
    module.predicted = lambda _: torch.from_numpy(next(given)).long()
    for mask in truth:  # one batch for each
        module.validation_step(([None], [{"mask": torch.from_numpy(mask)}]), 0)
    return module.pop_eval_metrics()


def random_masks(rng, labels, sizes=((5, 4), (3, 7), (6, 6))):
    return [rng.choice(labels, size).astype(np.uint8) for size in sizes]


def test_mean_iou_is_that_of_one_confusion_matrix_over_images_of_all_sizes(segmenter):
    module, _ = segmenter()
    rng = np.random.default_rng(0)
    # Class 3 is predicted only, 4 is in the masks only, and those after it are in neither.
    truth = random_masks(rng, [0, 1, 2, 4, 255])
    predicted = random_masks(rng, [0, 1, 2, 3])
    metrics = evaluate_predictions(module, truth, predicted)
    expected = reference_ious(truth, predicted, 11)
    assert sorted(expected) == [0, 1, 2, 3, 4]
    names = ["background", *module.classes]
    assert module.ious == pytest.approx({names[k]: 100 * v for k, v in expected.items()})
    assert metrics["iou"] == pytest.approx(100 * np.mean([*expected.values()]))
    counted = np.concatenate([m.ravel() for m in truth]) != 255
    hits = np.concatenate([(t == p).ravel() for t, p in zip(truth, predicted, strict=True)])
    assert metrics["accuracy"] == pytest.approx(100 * hits[counted].mean())


def test_mean_iou_equals_that_of_torchmetrics_and_not_the_mean_over_the_images(segmenter):
    module, _ = segmenter()
    rng = np.random.default_rng(1)
    truth, predicted = (random_masks(rng, [0, 1, 2]) for _ in range(2))
    metric = MulticlassJaccardIndex(11, ignore_index=255)
    for t, p in zip(truth, predicted, strict=True):
        metric.update(torch.from_numpy(p).long()[None], torch.from_numpy(t).long()[None])
    iou = evaluate_predictions(module, truth, predicted)["iou"]
    assert iou == pytest.approx(100 * metric.compute().item(), rel=1e-5)
    of_images = [
        np.mean([*reference_ious([t], [p], 3).values()])
        for t, p in zip(truth, predicted, strict=True)
    ]
    assert abs(iou - 100 * np.mean(of_images)) > 0.1


def test_an_evaluation_starts_from_no_pixels(segmenter):
    module, _ = segmenter()
    mask = np.array([[0, 1]], np.uint8)
    assert evaluate_predictions(module, [mask], [1 - mask]) == {"iou": 0, "accuracy": 0}
    assert evaluate_predictions(module, [mask], [mask]) == {"iou": 100, "accuracy": 100}


def test_images_of_which_no_pixel_counts_have_no_metrics_and_no_loss(segmenter):
    module, _ = segmenter()
    mask = np.full((2, 2), 255, np.uint8)
    assert evaluate_predictions(module, [mask], [mask * 0]) == {}
    assert module.ious == {}
    assert pixel_loss(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255)) == 0


def test_classes_that_are_in_neither_mask_have_no_iou():
    confusion = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert class_ious(confusion) == {0: 3 / 4, 1: 2 / 3}


def test_ignored_pixels_and_padding_do_not_change_the_loss():
    torch.manual_seed(0)
    scores, mask = torch.randn(3, 4, 5), torch.randint(0, 3, (4, 5), dtype=torch.uint8)
    larger = torch.zeros(6, 5, dtype=torch.uint8)
    _, masks = padded_batch([torch.ones(3, 4, 5), torch.ones(3, 6, 5)], [mask, larger])
    assert masks.shape == (2, 6, 5)
    assert (masks[0, 4:] == 255).all()
    other = torch.cat([scores, torch.randn(3, 2, 5)], 1)  # whatever is predicted there
    alone = pixel_loss(scores[None], mask.long()[None])
    torch.testing.assert_close(pixel_loss(other[None], masks[:1]), alone)
    expected = -scores.log_softmax(0).gather(0, mask.long()[None]).mean()
    torch.testing.assert_close(alone, expected)


def test_images_are_padded_with_the_mean_color():
    images, _ = padded_batch(
        [torch.ones(3, 2, 3), torch.ones(3, 3, 2)], [torch.zeros(2, 3), torch.zeros(3, 2)]
    )
    assert images.shape == (2, 3, 3, 3)
    assert images[0].sum(0).tolist() == [[3, 3, 3], [3, 3, 3], [0, 0, 0]]
    assert images[1].sum(0).tolist() == [[3, 3, 0]] * 3


def test_a_step_of_one_iteration_drops_the_same_and_of_another_others(segmenter):
    module, data = segmenter()
    batch = first_batch(data)
    losses = [module.training_step(batch, index).item() for index in (0, 0, 1)]
    # Batch norm in training does not depend on its running statistics, which move.
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize("dilate", ["[]", "[false,true,true]"])
def test_every_pixel_has_a_score_for_each_class(segmenter, dilate):
    module, data = segmenter(f"model.dilate={dilate}")
    with torch.no_grad():
        assert module(torch.randn(2, 3, 30, 45)).shape == (2, 11, 30, 45)
        assert module.predicted(data.example("test", 0).image).shape == (64, 64)


def test_every_parameter_of_a_vgg_net_learns(segmenter):
    """The fc layers, which no map needs, are gone: several processes would wait for them."""
    _, data = segmenter()
    net = VGG([[3]] * 5, [4, 4, 4, 4, 8], 16, True, 0.5, 10, "he_fan_in")
    module = Segmenter(net, data, {}, seed=0)
    module.trainer = SimpleNamespace(global_rank=0)
    module.training_step(first_batch(data), 0).backward()
    assert all(parameter.grad is not None for parameter in module.learned_parameters())


def test_the_net_may_be_computed_in_bf16_but_not_the_loss(segmenter):
    module, data = segmenter()
    seen = []
    module.head.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step(first_batch(data), 0)
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a net for images of 100 classes."""
    torch.manual_seed(0)
    net = resnet(1, "A", 100, "he_fan_in")
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(net.state_dict(), path, {"channels": "RGB"})
    return path, net.state_dict()


@pytest.mark.parametrize("frozen", [True, False])
def test_an_interrupted_run_ends_as_if_it_had_not_been_interrupted(
    segment, weights, tmp_path, frozen
):
    options = [f"weights={weights[0]}", "recipe.schedule.lr=0.001"] if frozen else []
    expected = segment(*options, f"output_dir={tmp_path}/undisturbed")
    for iterations in (1, 3):
        with pytest.raises(Killed):
            segment(*options, callbacks=[KillBefore(iterations)])
    resumed = segment(*options)
    assert_same_run(resumed, expected, iterations=4)
    own, other = (
        {k: v for k, v in run.summary.items() if k.startswith("test_")}
        for run in (resumed, expected)
    )
    assert own == other
    trained = load_checkpoint(resumed)["state_dict"]
    norms = [name for name in weights[1] if ".bn" in name or name.startswith("bn")]
    same = [torch.equal(trained[f"net.{name}"], weights[1][name]) for name in norms]
    assert len(same) == 7 * 5
    assert all(same) == frozen
    assert trained["head.1.num_batches_tracked"] == 4  # the head's own always learns


def test_a_finished_run_has_results_and_a_picture_and_is_evaluated_again(segment, capsys):
    run_dir = segment()
    summary = run_dir.summary
    assert summary["task"] == "segmentation"
    assert summary["val_iou"] is None
    ious = summary["test_iou_per_class"]
    assert summary["test_iou"] == pytest.approx(np.mean([*ious.values()]))
    assert summary["test_iou"] == run_dir.rows()[-1]["test/iou"]
    assert summary["train_loss"] == run_dir.rows()[-1]["train/loss"]
    means = f"mean IoU {summary['test_iou']:.1f}, pixel accuracy {summary['test_accuracy']:.1f}"
    assert f"finished: test {means}, " in capsys.readouterr().out
    picture = run_dir.path / "examples.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    picture.unlink()
    evaluate_task_runs([run_dir], EVALUATION, "center", show=2)
    assert means in capsys.readouterr().out
    assert picture.exists()


@pytest.mark.slow
def test_mean_iou_is_the_same_from_1_2_and_3_processes(segment):
    assert_same_from_1_2_and_3_processes(segment(), "center")


def train_share(run_dir):
    return train_and_capture(run_dir)


@pytest.mark.slow
def test_two_processes_share_each_batch_and_evaluate_with_one_batch_norm(find):
    run_dir = find(*SEGMENTATION, "n=1", "trainer.precision=32-true", "trainer.devices=2")
    first, second = run_on_ranks(2, train_share, run_dir)
    assert "world size 2" in first
    assert second == ""
    with redirect_stdout(io.StringIO()) as printed:
        evaluate_task_runs([run_dir], EVALUATION, "center")
    # Of the checkpoint, which has the statistics of rank 0, those of the head too.
    assert f"mean IoU {run_dir.summary['test_iou']:.1f}" in printed.getvalue()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=digits", "recipe=digits"], "data=digits has no labels for segmentation"),
        (["data=nuclei", "recipe=nuclei", "task=detection"], "set task=segmentation"),
        (["trainer.precision=bf16-true"], "task=segmentation needs trainer.precision=32-true or"),
        (["recipe.precise_bn_batches=2"], "needs recipe.precise_bn_batches=0"),
    ],
)
def test_what_segmentation_cannot_do_is_an_error_before_anything_is_written(
    find, tmp_path, overrides, message
):
    base = ["task=segmentation", "data=scenes", "data.train_scenes=20", "trainer.accelerator=cpu"]
    if overrides[0].startswith("data="):
        base = ["task=segmentation", "trainer.accelerator=cpu"]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_and_capture(find(*base, "n=1", "trainer.precision=32-true", *overrides))
    assert not (tmp_path / "runs").exists()


def test_the_backbone_is_exported_and_another_segmenter_starts_from_it(segment, tmp_path):
    run_dir, file = segment(), tmp_path / "backbone.safetensors"
    export(run_dir.path, file)
    trained = load_checkpoint(run_dir)["state_dict"]
    exported = load_file(file)
    assert {f"net.{name}" for name in exported} == {n for n in trained if n.startswith("net.")}
    assert all(torch.equal(trained[f"net.{name}"], exported[name]) for name in exported)
    assert "test mean IoU" in file.with_suffix(".md").read_text()
    started = load_checkpoint(segment(f"weights={file}", "recipe.schedule.lr=0.0"))["state_dict"]
    assert all(torch.equal(started[f"net.{name}"], exported[name]) for name in exported)
