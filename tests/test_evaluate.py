import pytest
import torch
from conftest import TINY, compose_run
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.evaluate import evaluate
from src.weights import load_weights, read_weights


def test_a_run_is_tested_as_it_was_when_it_ended(tiny, capsys):
    folder = tiny("data.val_images=100")
    config = folder.config | {"weights": folder.last_checkpoint, "trainer": {"accelerator": "cpu", "precision": None}}
    mistakes, mistakes_top5, images = evaluate(config, "it")
    assert images == 500
    assert 100 * mistakes / images == folder.summary["test_error"]
    assert 100 * mistakes_top5 / images == folder.summary["test_error_top5"]
    assert f"({mistakes} and {mistakes_top5} of 500 test images)" in capsys.readouterr().out


@pytest.mark.parametrize("test_images", [499, 501, 7])
def test_every_test_image_counts_once_in_batches_of_any_size(tiny, monkeypatch, test_images):
    """Against a plain loop over single images."""
    folder = tiny()
    config = OmegaConf.to_container(compose_run(*TINY, f"data.test_images={test_images}"), resolve=True)
    config |= {"weights": folder.last_checkpoint, "trainer": {"accelerator": "cpu", "precision": "32-true"}}
    monkeypatch.setattr("src.data.images.TEST_BATCH", 64)
    mistakes, mistakes_top5, images = evaluate(config, "it")
    assert images == test_images
    data = instantiate(config["data"], seed=0)
    data.setup()
    net = instantiate(config["model"])
    load_weights(net, read_weights(folder.last_checkpoint))
    net.eval()
    ranks = []
    with torch.no_grad():
        for image, label in zip(*data.splits["test"], strict=True):
            scores = net((image.float() - data.mean).permute(2, 0, 1)[None])[0]
            ranks.append(int((scores > scores[label]).sum()))
    assert mistakes == sum(rank >= 1 for rank in ranks)
    assert mistakes_top5 == sum(rank >= 5 for rank in ranks)
