"""Refinement, scales and ensembles of detectors: cases worked by hand, and by torchvision."""

import json

import pytest
import torch
from small_tasks import DETECTION, EVALUATION, make_detector

from src import train
from src.config import join_protocol
from src.evaluation.task_evaluator import evaluate_task_runs
from src.runs.describe import describe_results
from src.runs.run_dir import RunDir
from src.tasks.detection_protocols import (
    DetectionProtocol,
    ImagePredictor,
    above,
    detect,
    most_probable,
    parse_protocol,
    vote,
)

CENTER = DetectionProtocol(False, ())


def objects(*rows):
    """Return objects from rows of a box, a label and a score."""
    boxes, labels, scores = zip(*rows, strict=True)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def test_boxes_of_one_class_vote_by_their_scores():
    kept = ([0, 0, 10, 10], 1, 0.6)
    candidates = objects(
        kept,
        ([0, 0, 10, 20], 1, 0.2),  # IoU 0.5
        ([0, 0, 10, 21], 1, 0.9),  # below it
        ([0, 0, 10, 12], 2, 0.9),  # of another class
        ([50, 50, 60, 60], 1, 0.9),  # elsewhere
    )
    (box,) = vote(objects(kept), candidates).tolist()
    # Only the lower edge differs: (0.6 * 10 + 0.2 * 20) / 0.8.
    assert box == pytest.approx([0, 0, 10, 12.5])


def test_a_box_that_no_other_overlaps_stays():
    kept = objects(([1, 2, 3, 4], 1, 0.3))
    assert vote(kept, kept).tolist() == kept["boxes"].tolist()


def test_the_box_of_the_most_probable_class_but_the_background_is_pooled_again():
    scores = torch.tensor([[0.9, 0.04, 0.06], [0.1, 0.5, 0.4]])
    boxes = torch.arange(24.0).reshape(2, 3, 4)
    assert most_probable(scores, boxes).tolist() == [boxes[0, 2].tolist(), boxes[1, 1].tolist()]


def test_objects_are_those_above_the_minimum_with_an_area():
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.05, 0.95]])
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]]).repeat(2, 1, 1)
    boxes[1, 2, 2] = 0  # no width
    found = above(scores, boxes, 0.05)
    assert found["labels"].tolist() == [1, 2]
    assert found["scores"].tolist() == pytest.approx([0.2, 0.1])
    assert found["boxes"].tolist() == [[0, 0, 2, 2], [0, 0, 3, 3]]


def test_a_region_has_the_context_of_its_own_image(find):
    module, image = make_detector(find, "recipe.detector.context=true")
    other = image.flip(-1)
    regions = module.detector.roi_heads.box_roi_pool
    boxes = [torch.tensor([[0.0, 0, 20, 20], [5, 5, 60, 50]]), torch.tensor([[1.0, 1, 30, 30]])]
    with torch.no_grad():
        images = torch.stack(module.normalized([image, other]))
        maps = {"0": module.detector.backbone(images)}
        features = regions(maps, boxes, [(64, 64)] * 2)
        whole = [torch.tensor([[0.0, 0, 64, 64]])] * 2
        per_region = regions.per_region(regions.pool(maps, boxes, [(64, 64)] * 2))
        context = regions.per_region(regions.pool(maps, whole, [(64, 64)] * 2))
    assert features.shape == (3, 2 * regions.per_region.out_channels)
    expected = torch.cat([per_region, context[[0, 0, 1]]], 1)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(context[0], context[1])


def test_context_is_learned_and_changes_what_is_detected(tiny):
    run_dir = tiny(*DETECTION, "recipe.detector.context=true")
    assert "contextTrue" in run_dir.path.name
    assert run_dir.finished


@pytest.mark.parametrize("context", [True, False])
def test_one_scale_without_refinement_gives_the_detections_of_torchvision(find, context):
    module, image = make_detector(find, f"recipe.detector.context={context}")
    with torch.no_grad():
        (expected,) = module(([image], None))
        found = detect([module.detector], module.normalized([image]), CENTER)
    assert len(expected["scores"]) > 10
    for key in ("labels", "scores", "boxes"):
        torch.testing.assert_close(found[key], expected[key], atol=1e-3, rtol=1e-4)


def test_an_image_of_another_size_is_resized_and_its_boxes_back(find):
    module, image = make_detector(find)
    image = image[:, :40, :50].repeat_interleave(3, 1).repeat_interleave(2, 2)  # 120 x 100
    with torch.no_grad():
        (expected,) = module(([image], None))
        found = detect([module.detector], module.normalized([image]), CENTER)
    assert expected["boxes"].max() > 64
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-2, rtol=1e-3)


def test_twice_the_same_detector_finds_what_it_finds_alone(find):
    module, image = make_detector(find)
    inputs = module.normalized([image])
    protocol = DetectionProtocol(True, (43, 64, 85))
    with torch.no_grad():
        alone = ImagePredictor([module.detector], inputs, protocol.shorter_sides)
        both = ImagePredictor([module.detector] * 2, inputs * 2, protocol.shorter_sides)
        boxes = alone.proposals[0]
        assert torch.equal(torch.cat(both.proposals), torch.cat([boxes, boxes]))
        for one, two in zip(alone.predict(boxes), both.predict(boxes), strict=True):
            torch.testing.assert_close(one, two)


def test_an_ensemble_averages_scores_and_boxes_over_the_proposals_of_all(find):
    (one, image), (other, _) = make_detector(find), make_detector(find, seed=1)
    inputs = [module.normalized([image])[0] for module in (one, other)]
    detectors = [one.detector, other.detector]
    with torch.no_grad():
        together = ImagePredictor(detectors, inputs, ())
        alone = [ImagePredictor([d], [i], ()) for d, i in zip(detectors, inputs, strict=True)]
        proposals = torch.cat([p for member in alone for p in member.proposals])
        assert torch.equal(torch.cat(together.proposals), proposals)
        scores, boxes = together.predict(proposals)
        parts = [member.predict(proposals) for member in alone]
    torch.testing.assert_close(scores, (parts[0][0] + parts[1][0]) / 2)
    # Means of boxes in the image are in the image, so that clipping before or after is the same
    # but for boxes that reach over the edge.
    inside = (boxes > 1).all(2) & (boxes < 63).all(2)
    assert inside.sum() > 10
    close = torch.isclose(boxes, (parts[0][1] + parts[1][1]) / 2, atol=1e-3)
    assert close[inside].all(1).float().mean() > 0.5


def test_refinement_adds_as_many_predictions_from_the_regressed_boxes(find):
    module, image = make_detector(find)
    inputs = module.normalized([image])
    with torch.no_grad():
        predictor = ImagePredictor([module.detector], inputs, ())
        scores, boxes = predictor.predict(predictor.proposals[0])
        again = predictor.predict(most_probable(scores, boxes))
        union = above(torch.cat([scores, again[0]]), torch.cat([boxes, again[1]]), 0.0)
        found = detect([module.detector], inputs, DetectionProtocol(True, ()))
    assert len(again[0]) == len(scores)
    # The scores of what is kept stay; each box lies within those that voted for it.
    assert {*found["scores"].tolist()} <= {*union["scores"].tolist()}
    assert not {*found["scores"].tolist()} <= {*scores.flatten().tolist()}
    best = union["scores"].argmax()
    assert found["scores"][0] == union["scores"][best]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("center", (False, ())),
        ("refine", (True, ())),
        ("multiscale", (False, (200, 400, 600, 800, 1000))),  # Appendix B
        ("refine+scales600-400", (True, (400, 600))),
    ],
)
def test_the_names_of_protocols(name, expected):
    assert parse_protocol(name, 600) == expected


@pytest.mark.parametrize(
    "name", ["10crop", "refine+refine", "center+refine", "scales400", "multiscale+scales400-600"]
)
def test_other_names_are_errors_that_list_the_protocols(name):
    with pytest.raises(ValueError, match="set protocol=center, refine, multiscale"):
        parse_protocol(name, 600)


def test_the_order_of_protocols_does_not_matter():
    expected = "refine+multiscale"
    names = [["refine", "multiscale"], ["multiscale", "refine"], "multiscale+refine", expected]
    assert {join_protocol(name) for name in names} == {expected}
    assert join_protocol("center") == "center"


def test_a_run_is_evaluated_by_its_protocol_and_keeps_its_own_results(find, tiny, capsys):
    run_dir = tiny(*DETECTION)
    kept = {f.name: f.read_bytes() for f in run_dir.path.iterdir() if f.is_file()}
    again = find(*DETECTION, "n=1", "trainer.precision=32-true", "protocol=[multiscale,refine]")
    assert again.path == run_dir.path
    assert not again.finished
    train.run(again)
    assert again.finished
    results = again.evaluation("refine+multiscale")
    assert 0 <= results["test_ap"] <= results["test_ap50"] <= 100
    assert results["images"] == 5
    assert f"refine+multiscale AP {results['test_ap']:.1f}" in describe_results(again)
    assert all((run_dir.path / name).read_bytes() == content for name, content in kept.items())
    capsys.readouterr()
    evaluate_task_runs([run_dir], EVALUATION, "refine", show=2)
    assert "examples-refine.png" in capsys.readouterr().out
    assert (run_dir.path / "examples-refine.png").exists()
    evaluate_task_runs([run_dir, run_dir], EVALUATION, "center")
    assert capsys.readouterr().out.startswith("ensemble of ")
    assert json.loads((run_dir.path / "detections.json").read_bytes()) is not None


def test_detectors_of_other_images_are_no_ensemble(tiny, tmp_path):
    one = tiny(*DETECTION)
    other = tiny(*DETECTION, "data.train_scenes=21", f"output_dir={tmp_path}/other")
    with pytest.raises(ValueError, match="has other images or classes"):
        evaluate_task_runs([one, RunDir.open(other.path)], EVALUATION, "center")


def test_an_unknown_protocol_is_an_error_before_anything_is_written(find, tmp_path):
    with pytest.raises(ValueError, match="protocol=10crop does not apply to detection"):
        train.run(find(*DETECTION, "n=1", "protocol=10crop", "trainer.precision=32-true"))
    assert not (tmp_path / "runs").exists()
