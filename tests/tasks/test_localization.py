"""A localizer on our nets: what it learns, its protocols and classes, processes, exact resuming."""

import pytest
import torch
from conftest import KillBefore, Killed
from PIL import Image
from ranks import train_and_capture
from run_comparison import assert_same_run, load_checkpoint
from safetensors.torch import load_file
from small_tasks import EVALUATION, LOCALIZATION, assert_same_from_1_2_and_3_processes, make_module

from src import train
from src.data.examples import make_target
from src.evaluation.task_evaluator import evaluate_task_runs, load_task
from src.export import export
from src.runs.describe import describe_results
from src.tasks.localization_error import Located
from src.tasks.localization_task import main_objects
from src.tasks.pictures import SIDE

CLASSIFICATION = [
    "data=scene_digits",
    "data.train_scenes=40",
    "data.test_scenes=5",
    "recipe.batch_size=4",
    "recipe.iterations=4",
    "recipe.eval_every=4",
]


@pytest.fixture
def localizer(find):
    """Build the module and the data of a command line."""
    return lambda *overrides: make_module(find, *LOCALIZATION, *overrides)


@pytest.fixture
def localize(tiny):
    """Train a localizer in this process."""
    return lambda *overrides, **options: tiny(*LOCALIZATION, *overrides, **options)


def test_an_image_is_of_the_class_of_its_largest_object():
    boxes = [[0, 0, 2, 2], [0, 0, 9, 9], [5, 5, 6, 6], [3, 3, 3, 8]]
    label, found = main_objects(make_target(0, boxes, [1, 2, 2, 2]))
    assert label == 2
    assert found.tolist() == boxes[1:3]  # the last has no width


def test_ignored_objects_are_no_objects():
    ignored = torch.tensor([0, 1])
    target = make_target(0, [[0, 0, 2, 2], [0, 0, 9, 9]], [1, 2], iscrowd=ignored)
    assert main_objects(target)[0] == 1
    label, found = main_objects(make_target(0, [], []))
    assert (label, found.shape) == (1, (0, 4))


def test_a_step_of_one_iteration_samples_the_same_and_of_another_others(localizer):
    module, data = localizer()
    batch = next(iter(data.train_dataloader()))
    losses = [module.training_step(batch, index).item() for index in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_training_images_of_several_sizes_are_an_error_that_names_what_to_set(localizer):
    module, data = localizer()
    images = [data.example("test", 0).image, torch.zeros(3, 48, 56, dtype=torch.uint8)]
    with pytest.raises(ValueError, match=r"\(56x48, 64x64\): set data.crop=SIDE"):
        module(images)


def test_the_net_alone_is_computed_in_reduced_precision(localizer):
    module, data = localizer()
    seen = {}
    for name, layer in (("net", module.net.conv1), ("scores", module.proposals.scores)):
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        module.training_step(next(iter(data.train_dataloader())), 0)
    assert seen == {"net": torch.bfloat16, "scores": torch.float32}


def test_the_box_of_the_view_with_the_highest_score_counts(localizer):
    module, data = localizer()
    module.eval().test_by("scales32-64-96")
    image = data.example("test", 0).image
    shapes = []

    def top(last_map, labels, count):
        shapes.append(last_map.shape[2:])
        score = {8: 1.0, 16: 3.0, 24: 2.0}[last_map.shape[2]]
        scores = torch.tensor([[score], [-score]])
        return scores, torch.tensor([[[8.0, 8, 16, 16]], [[4, 4, 200, 12]]])

    module.proposals.top = top
    with torch.no_grad():
        first, second = module.locate(image, [1, 2]).tolist()
    assert [h for h, _ in shapes] == [8, 16, 24]
    assert first == [8, 8, 16, 16]  # at the size of the image
    assert second == [8, 8, 64, 24]  # at half of it, and clipped


def test_a_net_that_learns_finds_more_than_at_first(localize):
    options = ["data.train_scenes=200", "data.test_scenes=40", "recipe.batch_size=16"]
    options += ["recipe.iterations=120", "recipe.eval_every=40", "recipe.schedule.lr=0.05"]
    run_dir = localize(*options)
    rows = [row for row in run_dir.rows() if "test/localization_error" in row]
    assert rows[-1]["train/loss"] < 0.5 * run_dir.rows()[0]["train/loss"]
    assert run_dir.summary["test_localization_error"] < 90


def test_an_interrupted_run_ends_as_if_it_had_not_been_interrupted(localize, tmp_path):
    expected = localize(f"output_dir={tmp_path}/undisturbed")
    for iterations in (1, 3):
        with pytest.raises(Killed):
            localize(callbacks=[KillBefore(iterations)])
    resumed = localize()
    assert_same_run(resumed, expected, iterations=4)
    key = "test_localization_error"
    assert resumed.summary[key] == expected.summary[key]


def test_the_first_images_with_objects_are_drawn(localizer, tmp_path):
    module, data = localizer()
    path, last = tmp_path / "examples.png", len(data.indices["test"]) - 1
    module.draw_examples(path, data, count=1)
    assert not path.exists()  # no image has objects

    target = data.example("test", last).target
    boxes, labels = target["boxes"], target["labels"].tolist()
    module.results = [Located(int(target["image_id"]), labels[0], boxes, [], boxes[:1])]
    module.draw_examples(path, data, count=1)
    with Image.open(path) as picture:
        assert picture.size == (SIDE + 8, 2 * SIDE + 12)  # one column, with margins of 4 pixels


def test_a_finished_run_has_results_and_a_picture(localize):
    run_dir = localize()
    summary = run_dir.summary
    assert summary["task"] == "localization"
    assert summary["test_localization_error"] in {0, 20, 40, 60, 80, 100}
    per_class = summary["test_localization_error_per_class"]
    assert {*per_class} <= {*map(str, range(10))}
    assert summary["train_loss"] == run_dir.rows()[-1]["train/loss"]
    assert (run_dir.path / "examples.png").read_bytes()[:4] == b"\x89PNG"
    assert "localization error" in describe_results(run_dir)


@pytest.mark.parametrize(
    "overrides", [["model=resnet20"], ["model=vgg11", "data.size=224", "data.crop=224"]]
)
def test_localizers_are_on_residual_and_vgg_nets(localizer, overrides):
    module, data = localizer(*overrides)
    images, _ = next(iter(data.train_dataloader()))
    with torch.no_grad():
        last_map = module(images)
    side = images[0].shape[-1]
    assert last_map.shape[2:] == (side // module.net.last_stride,) * 2


def test_the_classes_of_a_classifier_are_localized(localize, find, capsys):
    run_dir = localize()
    kept = {f.name: f.read_bytes() for f in run_dir.path.iterdir() if f.is_file()}
    classifier = find(*CLASSIFICATION, "n=1", "trainer.precision=32-true")
    train.run(classifier)
    evaluate_task_runs([run_dir], EVALUATION, "center", classifier=classifier)
    assert "top-5 localization error" in capsys.readouterr().out
    results = run_dir.evaluation("center")
    assert results["test_localization_error"] == run_dir.summary["test_localization_error"]
    assert results["test_localization_error_top5"] >= results["test_classification_error_top5"]
    assert results["test_localization_error_top5"] <= results["test_localization_error_top1"]
    evaluate_task_runs([run_dir], EVALUATION, "dense", classifier=classifier, show=2)
    assert run_dir.evaluation("dense")["images"] == 5
    assert (run_dir.path / "examples-dense.png").exists()
    assert all((run_dir.path / name).read_bytes() == content for name, content in kept.items())


def test_a_classifier_of_other_images_or_classes_is_an_error(localize, tiny):
    run_dir = localize()
    digits = tiny("data=digits")
    with pytest.raises(ValueError, match="the classifier takes images of"):
        evaluate_task_runs([run_dir], EVALUATION, "center", classifier=digits)
    with pytest.raises(ValueError, match="is a run of localization; this needs a classifier"):
        evaluate_task_runs([run_dir], EVALUATION, "center", classifier=run_dir)


@pytest.mark.slow
def test_the_error_is_the_same_from_1_2_and_3_processes(localize):
    run_dir = localize("recipe.iterations=40", "recipe.eval_every=40")
    assert_same_from_1_2_and_3_processes(run_dir, "dense")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=cifar10"], "task=localization needs a recipe for it"),
        (["protocol=refine"], "protocol=refine does not apply to localization"),
        (["data=digits", "recipe=scenes"], "data=digits has no labels for localization"),
        (["task=detection", "data.crop=32"], "task=detection learns from complete images"),
        (["task=detection", "data.scales=[32,64]"], "set data.crop=0 data.scales=null"),
    ],
)
def test_what_localization_cannot_do_is_an_error_before_anything_is_written(
    find, tmp_path, overrides, message
):
    base = ["task=localization", "data=scenes", "trainer.accelerator=cpu"]
    with pytest.raises(ValueError, match=message):
        train_and_capture(find(*base, "trainer.precision=32-true", *overrides))
    assert not (tmp_path / "runs").exists()


def test_the_backbone_is_exported(localize, tmp_path):
    run_dir, file = localize(), tmp_path / "backbone.safetensors"
    export(run_dir.path, file)
    trained = load_checkpoint(run_dir)["state_dict"]
    exported = load_file(file)
    assert {f"net.{name}" for name in exported} == {n for n in trained if n.startswith("net.")}
    assert "test localization error" in file.with_suffix(".md").read_text()
    module, _ = load_task(run_dir)
    assert torch.equal(module.net.conv1.weight, exported["conv1.weight"])
