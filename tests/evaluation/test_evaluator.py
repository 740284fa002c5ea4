import os
import signal
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import TINY
from data.images_on_disk import make_folders
from hydra.utils import instantiate
from random_run import random_run
from reference_protocols import counts, expected_counts, imagenet_config, reader, reference
from torch import nn

from src import train
from src.evaluation.evaluator import ImageProgress, evaluate, run_config
from src.runs.describe import describe_results

CPU = {"accelerator": "cpu", "precision": "32-true"}


def test_evaluating_a_finished_run_gives_the_errors_of_its_summary(tiny, capsys):
    run_dir = tiny("data.val_images=100", "data.test_images=300")
    result = evaluate([run_config(run_dir)], CPU, "center", "title")
    errors, errors_top5, images = counts(result)
    assert images == 300
    assert 100 * errors / images == result["test_error"] == run_dir.summary["test_error"]
    top5 = run_dir.summary["test_error_top5"]
    assert 100 * errors_top5 / images == result["test_error_top5"] == top5
    assert f"({errors} and {errors_top5} of 300 test images)" in capsys.readouterr().out


@torch.no_grad()
def softmax_scores(net, data):
    """The softmax scores [N, classes] of in-memory test images, one after the other."""
    images = data.splits["test"][0].float() - data.mean
    return torch.stack([net(image.permute(2, 0, 1)[None])[0].softmax(0) for image in images])


def load_data(run_dir):
    data = instantiate(run_dir.config["data"], seed=run_dir.config["seed"])
    data.setup()
    return data


@pytest.mark.parametrize("test_images", [31, 33, 7])
def test_every_test_image_counts_once_in_batches_of_any_size(find, monkeypatch, test_images):
    run_dir = find("n=1", f"data.test_images={test_images}")
    net = random_run(run_dir)
    monkeypatch.setattr("src.data.in_memory.TEST_BATCH", 16)
    data = load_data(run_dir)
    expected = expected_counts(softmax_scores(net, data), data.splits["test"][1])
    assert counts(evaluate([run_config(run_dir)], CPU, "center", "title")) == expected
    assert expected[2] == test_images


def test_an_ensemble_averages_softmax_scores_and_normalizes_by_each_runs_own_mean(find):
    small = ["n=1", "data.test_images=40", "data.val_images=1000"]
    run_dirs = [find(*small, f"seed={seed}") for seed in (0, 1)]
    scores = []
    for seed, run_dir in enumerate(run_dirs):
        net = random_run(run_dir, seed)
        data = load_data(run_dir)
        scores.append(softmax_scores(net, data))
    labels = data.splits["test"][1]
    one, other = (expected_counts(each, labels) for each in scores)
    both = expected_counts((scores[0] + scores[1]) / 2, labels)
    assert len({one, other, both}) == 3

    nets = [run_config(run_dir) for run_dir in run_dirs]
    assert counts(evaluate(nets, CPU, "center", "title")) == both
    assert counts(evaluate(nets[:1] * 2, CPU, "center", "title")) == one

    fewer = nets[0] | {"data": nets[0]["data"] | {"test_images": 30}, "name": "third"}
    with pytest.raises(ValueError, match="third has different test images"):
        evaluate([*nets, fewer], CPU, "center", "title")


@pytest.mark.parametrize("protocol", ["center", "10crop", "multiscale"])
def test_every_readable_image_is_evaluated_by_each_protocol(tmp_path, protocol, capsys):
    """Against scores computed image by image; one image cannot be decoded and is skipped."""
    root = make_folders(tmp_path, train=1, val=3)
    paths = sorted(root.glob("val/*/*"))
    paths.pop(4).write_bytes(b"text")
    nets = []
    for seed in (0, 1):
        weights = tmp_path / f"{seed}.pt"
        torch.save(reader(seed).state_dict(), weights)
        model = {"_target_": "reference_protocols.reader", "seed": seed}
        data = imagenet_config(root, num_workers=1, on_bad="skip")
        nets.append({"model": model, "data": data, "seed": 0, "weights": weights})
    scores = [[reference(protocol, path, "channel", seed) for path in paths] for seed in (0, 1)]
    expected = expected_counts(np.mean(scores, 0), [0, 0, 0, 1, 1, 2, 2, 2])
    assert counts(evaluate(nets, CPU, protocol, "title")) == expected
    printed = capsys.readouterr()
    assert "of 8 test images" in printed.out
    assert "skipped" in printed.err
    assert len(printed.err.splitlines()) == 1


def send_sigterm(*_):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_finished_run_is_evaluated_by_another_protocol_without_training_again(
    tmp_path, find, monkeypatch, capsys
):
    root = make_folders(tmp_path / "images", train=1, val=1)
    small = ["n=1", "trainer.precision=32-true", "recipe.iterations=2", "recipe.batch_size=2"]
    small += ["data=imagenet", f"data.root={root}", "data.num_workers=0"]
    center, ten_crop, multi_scale = (
        find(*small, f"protocol={protocol}") for protocol in ("center", "10crop", "multiscale")
    )
    assert center.path == ten_crop.path == multi_scale.path
    train.run(ten_crop)
    assert center.finished
    assert ten_crop.finished
    assert not multi_scale.finished

    monkeypatch.setattr("src.training.trainer.fit", None)
    with monkeypatch.context() as patch:
        patch.setattr(ImageProgress, "on_test_batch_end", send_sigterm)
        with pytest.raises(SystemExit) as interruption:
            train.run(multi_scale)
    assert interruption.value.code == 128 + signal.SIGTERM
    assert not multi_scale.finished
    assert "SIGTERM: saved at iteration 2" in capsys.readouterr().out

    train.run(multi_scale)
    assert multi_scale.finished
    for run_dir, protocol in ((ten_crop, "10crop"), (multi_scale, "multiscale")):
        saved = run_dir.evaluation(protocol)
        assert (saved["protocol"], saved["images"]) == (protocol, 3)
        assert f", {protocol} top-1 error {saved['test_error']:.2f}%" in describe_results(run_dir)
    again = evaluate([run_config(ten_crop)], CPU, "10crop", "title")
    assert counts(again) == counts(ten_crop.evaluation("10crop"))
    names = sorted(path.name for path in center.path.glob("*.json"))
    assert names == ["10crop.json", "multiscale.json", "summary.json"]


class InputRecorder(nn.Module):
    """Keeps the images that nets of this class are given."""

    inputs: ClassVar[list[torch.Tensor]] = []

    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        self.inputs.append(x)
        return self.scores.expand(len(x), -1)


def test_each_net_of_an_ensemble_gets_its_channels_in_its_own_order(tmp_path, monkeypatch):
    root, weights = make_folders(tmp_path, train=1, val=1), tmp_path / "weights.pt"
    torch.save(InputRecorder().state_dict(), weights)
    monkeypatch.setattr(InputRecorder, "inputs", [])
    rgb, bgr = (imagenet_config(root, bgr=value) for value in (False, True))
    for key in ("mean", "bgr"):  # the defaults of ImageNet, which a config may leave out
        del rgb[key]
    model = {"_target_": "test_evaluator.InputRecorder"}
    net = {"model": model, "seed": 0, "weights": weights, "name": "net"}
    evaluate([net | {"data": rgb}, net | {"data": bgr}], CPU, "center", "title")
    first, second = InputRecorder.inputs
    assert torch.equal(first, second.flip(1))
    assert not torch.allclose(first, second)


def test_a_protocol_that_does_not_apply_to_the_data_is_refused(find):
    run_dir = find("n=1")
    random_run(run_dir)
    with pytest.raises(
        ValueError, match="10crop does not apply to these images: set protocol=center"
    ):
        evaluate([run_config(run_dir)], CPU, "10crop", "title")
    with pytest.raises(ValueError, match="10crops does not apply to these images"):
        evaluate([run_config(run_dir)], CPU, "10crops", "title")


def test_a_run_with_a_protocol_that_does_not_apply_fails_before_training(find):
    run_dir = find(*TINY, "protocol=multiscale")
    with pytest.raises(ValueError, match="protocol=multiscale does not apply"):
        train.run(run_dir)
    assert not run_dir.path.exists()
