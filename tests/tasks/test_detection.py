"""A detector on our nets: its parts, its losses, frozen batch norm, and exact resuming."""

import json

import numpy as np
import pytest
import torch
from annotated_files import write_coco, write_voc
from conftest import KillBefore, Killed
from hydra.utils import instantiate
from ranks import run_on_ranks, train_and_capture
from run_comparison import assert_same_run, load_checkpoint
from safetensors.torch import load_file, save_file
from small_tasks import (
    DETECTION,
    EVALUATION,
    assert_same_from_1_2_and_3_processes,
    first_batch,
    make_module,
)
from torch import nn

from src import train
from src.evaluation.evaluator import run_config
from src.evaluation.task_evaluator import evaluate_task_runs, load_task
from src.export import export
from src.models.complexity import count_parameters, weighted_layers
from src.tables import read_csv
from src.tasks.detection import Detector, coco_detections
from src.tasks.faster_rcnn import make_faster_rcnn
from src.training.build import build
from src.training.trainer import make_trainer


@pytest.fixture
def detector(find):
    """Build the module and the data of a command line."""
    return lambda *overrides: make_module(find, *DETECTION, *overrides)


@pytest.fixture
def detect(tiny):
    """Train a detector in this process."""
    return lambda *overrides, **options: tiny(*DETECTION, *overrides, **options)


@pytest.mark.parametrize(
    ("model", "layers", "channels", "features"),
    [
        ("resnet101", 91, 1024, 2048),  # Sec. 4.3: "totally 91 conv layers"
        ("resnet20", 13, 32, 64),
        ("plain20", 13, 32, 64),
        ("vgg16", 13, 512, 4096),
        ("preactivation110", 73, 32, 64),
    ],
)
def test_all_stages_but_the_last_are_shared_by_the_regions(
    compose_net, model, layers, channels, features
):
    net = compose_net(model)
    net.remove_classifier()
    shared = {name for name in weighted_layers(net) if not is_of_regions(name, model)}
    assert len(shared) == layers
    with torch.device("meta"):
        image = torch.empty(1, 3, 224, 224)
        size = net.region_size
        shared_map = net.eval().to("meta").shared_map(image)
        regions = torch.empty(2, channels, size, size)
        assert net.region_features(regions).shape == (2, features)
    assert shared_map.shape[1] == net.shared_channels == channels
    assert shared_map.shape[2] == 224 / net.shared_stride
    assert net.region_channels == features


def is_of_regions(name, model):
    last = {"resnet101": "layer4", "vgg16": "classifier"}.get(model, "layer3")
    return name.startswith(last)


@pytest.fixture
def compose_net(find):
    def make(model):
        with torch.device("meta"):
            return instantiate(find(f"model={model}").config["model"], _convert_="all")

    return make


def test_a_detector_on_resnet101_for_20_classes_learns_52_1_million_parameters(compose_net, find):
    net = compose_net("resnet101")
    net.remove_classifier()
    options = find("data=scenes", "task=detection", "recipe=detection").config["recipe"]["detector"]
    with torch.device("meta"):
        heads = make_faster_rcnn(net, 20, options | {"rpn_channels": 1024}, 600, 1000)
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    frozen = sum(map(count_parameters, norms))
    learned = count_parameters(net) + count_parameters(heads) - frozen
    assert (round(learned / 1e6, 1), round(frozen / 1e6, 1)) == (52.1, 0.1)


def test_the_parameters_of_the_net_have_the_names_of_the_classifier_and_no_others(detector):
    module, _ = detector()
    names = {name for name in module.state_dict() if name.startswith("net.")}
    assert "net.layer3.0.conv1.weight" in names
    assert "net.fc.weight" not in names
    others = {name.partition(".")[0] for name in module.state_dict().keys() - names}
    assert others == {"detector", "mean", "std"}
    assert len({*module.learned_parameters()}) == len([*module.parameters()])


def test_a_step_of_one_iteration_samples_the_same_and_of_another_others(detector):
    module, data = detector()
    batch = first_batch(data)
    losses = [module.training_step(batch, index).item() for index in (0, 0, 1)]
    # Batch norm in training does not depend on its running statistics, which move.
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_the_loss_is_the_sum_of_its_four_parts(detector):
    module, data = detector()
    loss = module.training_step(first_batch(data), 0).item()
    metrics = module.pop_train_metrics()
    assert metrics.pop("loss") == pytest.approx(loss, rel=1e-6)
    assert len(metrics) == 4
    assert sum(metrics.values()) == pytest.approx(loss, rel=1e-5)


def test_only_convolutions_are_computed_in_reduced_precision(detector):
    module, data = detector()
    seen = {}

    def note(name):
        def hook(_, inputs, output):
            seen[name] = inputs[0].dtype, output.dtype

        return hook

    module.net.layer1[0].conv1.register_forward_hook(note("shared"))
    module.net.layer3[0].conv1.register_forward_hook(note("regions"))
    module.detector.rpn.head.cls_logits.register_forward_hook(note("proposals"))
    module.detector.roi_heads.box_predictor.cls_score.register_forward_hook(note("scores"))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step(first_batch(data), 0)
    assert seen["shared"][1] == seen["regions"][1] == torch.bfloat16
    assert seen["proposals"] == seen["scores"] == (torch.float32, torch.float32)
    assert loss.dtype == torch.float32


def test_evaluation_does_not_depend_on_how_images_are_batched(detector):
    module, data = detector()
    module.eval()
    together = [data.example("test", i) for i in range(3)]
    with torch.no_grad():
        images, targets = [e.image for e in together], [e.target for e in together]
        found = module((images, targets))
        for image, target, expected in zip(images, targets, found, strict=True):
            (alone,) = module(([image], [target]))
            torch.testing.assert_close(alone["scores"], expected["scores"], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a net for images of 100 classes, normalized in some way."""

    from src.models.resnet import resnet

    torch.manual_seed(0)
    net = resnet(1, "A", 100, "he_fan_in")
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    mean = [[[10.0, 20.0]], [[30.0, 30.0]], [[40.0, 60.0]]]  # of each pixel of a 1x2 image
    metadata = {"channels": "RGB", "mean": json.dumps(mean), "std": "[1.0, 2.0, 4.0]"}
    save_file(net.state_dict(), path, metadata)
    return path, net.state_dict()


def test_a_net_that_starts_from_weights_keeps_its_batch_norm_and_their_normalization(
    detect, weights, tmp_path
):
    path, state = weights
    run_dir = detect(f"weights={path}", "recipe.schedule.lr=0.001")
    trained = load_checkpoint(run_dir)["state_dict"]
    norms = [name for name in state if ".bn" in name or name.startswith("bn")]
    assert len(norms) == 7 * 5
    assert all(torch.equal(trained[f"net.{name}"], state[name]) for name in norms)
    assert not torch.equal(trained["net.conv1.weight"], state["conv1.weight"])
    assert trained["mean"].flatten().tolist() == [15, 30, 50]
    assert trained["std"].flatten().tolist() == [1, 2, 4]


def test_batch_norm_learns_where_a_net_starts_from_scratch(detect):
    trained = load_checkpoint(detect())["state_dict"]
    assert trained["net.bn1.num_batches_tracked"] > 0


@pytest.mark.parametrize("frozen", [True, False])
def test_an_interrupted_run_ends_as_if_it_had_not_been_interrupted(
    detect, find, weights, tmp_path, frozen
):
    options = [f"weights={weights[0]}", "recipe.schedule.lr=0.001"] if frozen else []
    expected = detect(*options, f"output_dir={tmp_path}/undisturbed")
    for iterations in (1, 3):
        with pytest.raises(Killed):
            detect(*options, callbacks=[KillBefore(iterations)])
    resumed = detect(*options)
    assert_same_run(resumed, expected, iterations=4)
    own, other = (
        {k: v for k, v in run.summary.items() if k.startswith("test_")}
        for run in (resumed, expected)
    )
    assert own == other
    assert (resumed.path / "detections.json").read_bytes() == (
        expected.path / "detections.json"
    ).read_bytes()


def test_a_finished_run_has_results_detections_and_a_picture(detect):
    run_dir = detect()
    summary = run_dir.summary
    assert summary["task"] == "detection"
    assert 0 <= summary["test_ap"] <= summary["test_ap50"] <= 100
    assert summary["train_loss"] == run_dir.rows()[-1]["train/loss"]
    assert (run_dir.path / "examples.png").read_bytes()[:4] == b"\x89PNG"
    for found in json.loads((run_dir.path / "detections.json").read_text()):
        assert {*found} == {"image_id", "category_id", "bbox", "score"}
        assert found["image_id"] in range(5)
        assert found["category_id"] in range(1, 11)


def test_detections_are_written_in_the_form_of_coco():
    found = {
        "boxes": torch.tensor([[1.0, 2, 11, 22]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.5]),
    }
    assert coco_detections([(7, found, {})], category_ids=[17, 70]) == [
        {"image_id": 7, "category_id": 70, "bbox": [1, 2, 10, 20], "score": 0.5}
    ]


def test_data_with_the_metric_of_voc_have_its_average_precision_next_to_that_of_coco(detect):
    run_dir = detect("data.metric=voc")
    summary = run_dir.summary
    per_class = summary["test_voc_ap_per_class"]
    assert {*per_class} == {*summary["test_ap_per_class"]}
    assert summary["test_voc_ap"] == pytest.approx(np.mean([*per_class.values()]))
    assert run_dir.rows()[-1]["test/voc_ap"] == summary["test_voc_ap"]
    assert "test_voc_ap" not in detect().summary


@pytest.mark.parametrize("data", ["voc", "coco"])
def test_one_command_trains_a_detector_on_boxes_of_ones_own(find, tmp_path, data):
    own = [f"data={data}", f"data.root={tmp_path}/pets"]
    if data == "voc":
        images = {name: [("cat", 10, 10, 40, 40, 0), ("dog", 30, 5, 60, 30, 1)] for name in "abc"}
        write_voc(tmp_path / "pets", images, {"trainval": "abc", "test": "ab"})
        own += ["data.classes=[cat,dog]", "data.train=[trainval]", "data.test=[test]"]
    else:
        entry = {"bbox": [10, 10, 30, 30], "category_id": 70}
        for split in ("train2017", "val2017"):
            write_coco(tmp_path / "pets", split, {5: [entry], 6: []}, {17: "cat", 70: "dog"})
    recipe = [option for option in DETECTION if option.startswith("recipe.")]
    sizes = ["recipe=bccd", "data.min_size=40", "data.max_size=60", "recipe.detector.min_score=0.0"]
    options = ["task=detection", "n=1", *own, *sizes, *recipe, "trainer.precision=32-true"]
    run_dir = find(*options)
    train.run(run_dir)
    assert run_dir.summary["test_ap"] >= 0
    assert ("test_voc_ap" in run_dir.summary) == (data == "voc")
    assert (run_dir.path / "examples.png").exists()
    detections = json.loads((run_dir.path / "detections.json").read_text())
    ids = {entry["category_id"] for entry in detections}
    assert ids
    assert ids <= ({1, 2} if data == "voc" else {17, 70})
    assert {entry["image_id"] for entry in detections} <= {0, 1, 5, 6}


def test_the_detections_of_a_run_are_those_of_its_checkpoint(detect, capsys):
    run_dir = detect()
    kept = json.loads((run_dir.path / "detections.json").read_text())
    for name in ("examples.png", "detections.json", "precision_recall.csv"):
        (run_dir.path / name).unlink()
    capsys.readouterr()
    evaluate_task_runs([run_dir], EVALUATION, "center", show=2)
    out = capsys.readouterr().out
    assert f"AP {run_dir.summary['test_ap']:.1f}" in out
    assert (run_dir.path / "examples.png").exists()
    assert len(read_csv(run_dir.path / "precision_recall.csv")) == 101
    again = json.loads((run_dir.path / "detections.json").read_text())
    assert [(d["image_id"], d["category_id"]) for d in again] == [
        (d["image_id"], d["category_id"]) for d in kept
    ]
    module, data = load_task(run_dir)
    module.eval()
    with torch.no_grad():
        found = module(([data.example("test", 0).image], [data.example("test", 0).target]))[0]
    scores = [entry["score"] for entry in kept if entry["image_id"] == 0]
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_average_precision_is_the_same_from_1_2_and_3_processes(detect):
    run_dir = detect("recipe.iterations=40", "recipe.eval_every=40", "data.metric=voc")
    assert "VOC AP by class" in assert_same_from_1_2_and_3_processes(run_dir, "center")
    assert_same_from_1_2_and_3_processes(run_dir, "refine+multiscale")


def train_share(run_dir):
    return train_and_capture(run_dir)


@pytest.mark.slow
def test_two_processes_share_each_batch(find, tmp_path):
    run_dir = find(*DETECTION, "n=1", "trainer.precision=32-true", "trainer.devices=2")
    first, second = run_on_ranks(2, train_share, run_dir)
    assert "world size 2" in first
    assert second == ""
    assert run_dir.summary["devices"] == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=classification"], "data=scenes has no labels for classification: set task=detect"),
        (["data=digits", "recipe=scenes"], "data=digits has no labels for detection"),
        (["recipe=cifar10"], "task=detection needs a recipe for it"),
        (["trainer.precision=bf16-true"], "boxes must be float32"),
        (["recipe.precise_bn_batches=2"], "needs recipe.precise_bn_batches=0"),
        (["model=vgg11", "recipe.detector.region_size=8"], "set recipe.detector.region_size=null"),
        (["data.metric=AP"], "data.metric=AP is not one of coco, voc07, voc"),
        (["weights=nowhere.pt"], "there is no file nowhere.pt"),
    ],
)
def test_what_detection_cannot_do_is_an_error_before_anything_is_written(
    find, tmp_path, overrides, message
):
    base = [option for option in DETECTION if not option.startswith(("data.", "recipe."))]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_and_capture(find(*base, "trainer.precision=32-true", *overrides))
    assert not (tmp_path / "runs").exists()


def test_a_captured_step_is_replaced_by_an_eager_one_with_a_message(find, capsys):
    config = find(*DETECTION, "n=1", "compile=inductor", "trainer.precision=32-true").config
    module, _ = build(config, make_trainer(config, []))
    assert isinstance(module, Detector)
    assert "compile=none instead of inductor" in capsys.readouterr().out


def test_the_backbone_is_exported_and_another_detector_starts_from_it(detect, tmp_path):
    run_dir, file = detect(), tmp_path / "backbone.safetensors"
    export(run_dir.path, file)
    trained = load_checkpoint(run_dir)["state_dict"]
    exported = load_file(file)
    assert {f"net.{name}" for name in exported} == {n for n in trained if n.startswith("net.")}
    assert all(torch.equal(trained[f"net.{name}"], exported[name]) for name in exported)
    assert "test AP" in file.with_suffix(".md").read_text()
    started = detect(f"weights={file}", "recipe.schedule.lr=0.0")
    unchanged = load_checkpoint(started)["state_dict"]
    assert all(torch.equal(unchanged[f"net.{name}"], exported[name]) for name in exported)
    assert torch.equal(unchanged["mean"], trained["mean"])


def test_commands_for_classifiers_refuse_a_detector(detect):
    run_dir = detect()
    with pytest.raises(ValueError, match="is a run of detection"):
        run_config(run_dir)
