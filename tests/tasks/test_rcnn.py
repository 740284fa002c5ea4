"""The R-CNN step of localization: what it warps, samples and learns, and exact resuming."""

import pytest
import torch
from conftest import KillBefore, Killed
from ranks import train_and_capture
from run_comparison import assert_same_run, load_checkpoint
from small_tasks import EVALUATION, LOCALIZATION, SCENES, first_batch, make_module

from src.evaluation.task_evaluator import evaluate_task_runs, load_task
from src.tasks.localization_task import main_objects
from src.tasks.localization_views import parse_protocol

RCNN = ["task=rcnn", *SCENES, "data.max_objects=1"]


@pytest.fixture
def localizer(tiny):
    return tiny(*LOCALIZATION)


@pytest.fixture
def refine(tiny, localizer):
    """Train an R-CNN on the proposals of a localizer in this process."""
    return lambda *overrides, **options: tiny(
        *RCNN, f"localizer={localizer.path}", *overrides, **options
    )


@pytest.fixture
def rcnn(find, localizer):
    """Build the module and the data of a command line."""
    return make_module(find, *RCNN, f"localizer={localizer.path}")


def test_a_localizer_that_is_unfinished_or_none_is_refused(find, tiny, tiny_until):
    tiny_until(3, *LOCALIZATION, "seed=7")
    until_3 = find("n=1", "trainer.precision=32-true", *LOCALIZATION, "seed=7")
    classifier = tiny("data=scene_digits", "data.train_scenes=8", "data.test_scenes=5")
    other = tiny(*LOCALIZATION, 'data.classes=["9","8","7","6","5","4","3","2","1","0"]')
    for run, message in (
        (until_3, "is not finished"),
        (classifier, "is a run of classification, not of localization"),
        (other, "has other classes than the data, or in another order"),
    ):
        with pytest.raises(ValueError, match=message):
            make_module(find, *RCNN, f"localizer={run.path}")


def test_a_region_is_warped_to_a_square_of_the_same_pixels(rcnn):
    module, _ = rcnn
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, 10:20, 30:50] = 200  # the region
    image[:, 10:15, 30:40] = 100  # its upper left quarter
    (region,) = module.warp(image, torch.tensor([[30.0, 10, 50, 20]]))
    assert region.shape == (3, 32, 32)
    pixels = region * module.std + module.mean
    for rows, columns, expected in (
        (slice(2, 13), slice(2, 13), 100),
        (slice(2, 13), slice(19, 30), 200),
        (slice(19, 30), slice(2, 30), 200),
    ):
        quarter = pixels[:, rows, columns]
        torch.testing.assert_close(quarter, torch.full_like(quarter, expected), atol=1, rtol=0)


def test_a_step_learns_from_the_class_of_each_image_alone(rcnn):
    module, data = rcnn
    module.positive_iou = 0.0  # so that every proposal counts for the boxes
    images, targets = first_batch(data)
    module.training_step((images, targets), 0).backward()
    labels = {main_objects(target)[0] for target in targets}
    for layer in (module.scores, module.deltas):
        of_class = layer.weight.grad.view(len(data.classes), -1).abs().sum(1)
        assert {*(1 + of_class.nonzero().flatten()).tolist()} == labels


def test_a_region_is_positive_from_an_iou_of_one_half(rcnn):
    module, _ = rcnn
    truth = [torch.tensor([[0.0, 0, 10, 10], [40, 40, 60, 60]])] * 4 + [torch.zeros(0, 4)]
    boxes = torch.tensor(
        [[0.0, 0, 10, 5], [0, 0, 10, 4.9], [40, 40, 60, 60], [20, 20, 20, 20], [0, 0, 10, 10]]
    )
    scores = torch.tensor([2.0, -1.0, 0.5, -3.0, 1.0])
    deltas = torch.zeros(5, 4)
    loss_object, loss_box = module.region_losses(scores, deltas, boxes, truth)
    wrong = torch.log1p(torch.exp(torch.tensor([-2.0, -1.0, -0.5, -3.0, 1.0])))
    torch.testing.assert_close(loss_object, wrong.mean())
    # The first box must move down by half its height and become twice as high, the third is right.
    shift, growth = 0.5, torch.log(torch.tensor(2.0)).item()
    expected = sum(abs(x) - 0.5 / 9 for x in (shift, growth)) / 5
    assert loss_box.item() == pytest.approx(expected, rel=1e-5)


def test_the_regressed_box_of_the_highest_score_is_found(rcnn):
    module, data = rcnn
    image = data.example("test", 0).image
    given = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 40, 60]], [[5, 5, 9, 9], [1, 1, 3, 3]]])
    module.localizers[0].propose = lambda *_: given
    deltas = torch.zeros(2, 10, 4)
    deltas[1, 3] = torch.tensor([0.5, 0.25, 0.0, 0.0])  # of the second box and the fourth class
    scores = torch.zeros(2, 10)
    scores[1, 3], scores[0, 6] = 5.0, 1.0
    module.forward = lambda _: (scores, deltas)
    first, second = module.locate(image, [4, 7]).tolist()
    assert first == [30, 30, 50, 64]  # moved, and clipped to the image
    assert second == [5, 5, 9, 9]


def test_proposals_are_those_of_the_localizer_by_falling_score(rcnn):
    module, data = rcnn
    localizer, image = module.localizers[0], data.example("test", 0).image
    protocols = [parse_protocol(name, 64) for name in ("dense", "scales48-64")]
    with torch.no_grad():
        ten = localizer.propose(image, [3, 1], 10, protocols[0])
        assert ten.shape == (2, 10, 4)
        for count in (1, 4):
            fewer = localizer.propose(image, [3, 1], count, protocols[0])
            assert torch.equal(fewer, ten[:, :count])
        anchors = 16 * 16 * 6
        assert localizer.propose(image, [3], 10**6, protocols[0]).shape[1] == anchors
        assert localizer.propose(image, [3], 10**6, protocols[1]).shape[1] == anchors + 12 * 12 * 6


def test_a_step_of_one_iteration_samples_the_same_and_of_another_others(rcnn):
    module, data = rcnn
    batch = first_batch(data)
    losses = [module.training_step(batch, index).item() for index in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_an_interrupted_run_ends_as_if_it_had_not_been_interrupted(refine, tmp_path):
    expected = refine(f"output_dir={tmp_path}/undisturbed")
    with pytest.raises(Killed):
        refine(callbacks=[KillBefore(3)])
    resumed = refine()
    assert_same_run(resumed, expected, iterations=4)
    key = "test_localization_error"
    assert resumed.summary[key] == expected.summary[key]


def test_the_localizer_neither_learns_nor_is_saved(refine, localizer):
    before = load_checkpoint(localizer)["state_dict"]
    run_dir = refine()
    saved = load_checkpoint(run_dir)["state_dict"]
    assert {name.partition(".")[0] for name in saved} == {"net", "scores", "deltas", "mean", "std"}
    module, _ = load_task(run_dir)
    for name, values in module.localizers[0].state_dict().items():
        assert torch.equal(values, before[name]), name


def test_a_run_is_evaluated_by_the_protocols_of_its_localizer(refine, capsys):
    run_dir = refine()
    assert run_dir.summary["task"] == "rcnn"
    evaluate_task_runs([run_dir], EVALUATION, "dense", show=2)
    assert "localization error" in capsys.readouterr().out
    assert run_dir.evaluation("dense")["images"] == 5
    assert (run_dir.path / "examples-dense.png").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=rcnn"], "task=rcnn alone needs localizer=RUN"),
        (["task=localization", "localizer=somewhere"], "task=rcnn alone needs localizer=RUN"),
        (["task=rcnn", "localizer=nowhere"], "nowhere is not a run directory"),
        (["task=rcnn", "localizer={}", "data.crop=48"], "learns from complete images"),
        (["task=rcnn", "localizer={}", "recipe=cifar10"], "task=rcnn needs a recipe for it"),
        (["task=rcnn", "localizer={}", "data.classes=[a,b]"], "has other classes than the data"),
        (["task=rcnn", "localizer={}", "protocol=refine"], "protocol=refine does not apply"),
    ],
)
def test_what_it_cannot_do_is_an_error_before_anything_is_written(
    find, localizer, tmp_path, overrides, message
):
    base = ["data=scenes", "data.max_objects=1", "trainer.accelerator=cpu"]
    base += ["trainer.precision=32-true", f"output_dir={tmp_path}/other"]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_and_capture(find(*base, *(o.format(localizer.path) for o in overrides)))
    assert not (tmp_path / "other").exists()
