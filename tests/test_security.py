"""Files that mean harm do none, and secrets reach no file."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import call_here
from conftest import TINY
from data.images_on_disk import make_folders
from fake_wandb_server import KEY, OfflineRun
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import nn

from src import train
from src.cli import format_error, is_user_error
from src.config import compose_config
from src.data.shard_index import index_path
from src.data.webdataset import make_shards, read_shards
from src.models.weights import read_weights

REPORT = "src.report.__main__"


class Malice:
    """Creates a directory when it is unpickled."""

    def __init__(self, harm: Path) -> None:
        self.harm = harm

    def __reduce__(self):
        return os.mkdir, (str(self.harm),)


@pytest.fixture
def malice(tmp_path):
    """An object that does harm when unpickled; the end of the test checks that it did none."""
    harm = tmp_path / "harm"
    pickle.loads(pickle.dumps(Malice(harm)))
    harm.rmdir()
    yield Malice(harm)
    assert not harm.exists()


@pytest.fixture
def tools(capsys, tmp_path):
    """Return the messages with which evaluation and export refuse a run directory."""

    def messages(path):
        commands = {
            "src.evaluate": [f"run={path}", "trainer.accelerator=cpu"],
            "src.export": [str(path), str(tmp_path / "net.pt")],
        }
        for module, arguments in commands.items():
            result = call_here(capsys, *arguments, module=module)
            assert result.returncode == 1
            yield result.stderr

    return messages


def refusal(function, *arguments):
    """Return the message that a user gets for what a call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of any kind that is a user's error)
        function(*arguments)
    assert is_user_error(caught.value), repr(caught.value)
    return format_error(caught.value)


@pytest.mark.fault_injection("safety", "a checkpoint that runs code when it is unpickled")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_is_refused_and_does_nothing(
    tiny, find, malice, tools, capsys, tmp_path, zipped, record_property
):
    """As last.ckpt, and as previous.ckpt next to a damaged last.ckpt."""
    record_property("tried", 2)
    path = tiny().path
    last, previous = (path / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    state = torch.load(last, weights_only=True) | {"more": malice}
    for place in (last, previous):
        torch.save(state, place, _use_new_zipfile_serialization=zipped)
    for message in tools(path):
        assert message.startswith(f"{last} is ")
        assert "tensors" in message
    report = call_here(capsys, str(path), "-o", str(tmp_path / "report"), module=REPORT)
    assert report.returncode == 0  # it reads no weights

    (path / "summary.json").unlink()
    for place in (last, previous):
        message = refusal(train.run, find(*TINY, "trainer.precision=32-true"))
        assert message.startswith(f"{place} contains more" if zipped else "no checkpoint in ")
        last.write_bytes(b"damaged")


@pytest.mark.fault_injection("safety", "weights that run code when they are unpickled")
def test_malicious_weights_are_refused_and_do_nothing(malice, tmp_path, record_property):
    weights = tmp_path / "weights.pt"
    writers = [
        lambda: torch.save({"conv1.weight": malice}, weights),
        lambda: torch.save({"fc.bias": malice}, weights, _use_new_zipfile_serialization=False),
        lambda: weights.write_bytes(pickle.dumps(malice)),
        lambda: save_file({"conv1.weight": torch.zeros(1)}, weights),
    ]
    record_property("tried", len(writers))
    for write in writers:
        write()
        message = refusal(read_weights, weights, nn.Linear(1, 1))
        assert message.startswith(f"{weights} is ")
        assert "tensors" in message


@pytest.mark.fault_injection("safety", "a shard index and a mean image that run code when read")
def test_a_malicious_shard_index_or_mean_image_is_refused_and_does_nothing(
    malice, tmp_path, record_property
):
    record_property("tried", 2)
    array = np.array([malice, None], dtype=object)
    folders = make_folders(tmp_path / "folders")
    make_shards(folders, tmp_path / "shards", workers=1)
    shard = next((tmp_path / "shards").glob("*.tar"))
    np.savez(index_path(shard), names=array, entries=array, size=shard.stat().st_size)
    assert "allow_pickle=False" in refusal(read_shards, tmp_path / "shards")

    overrides = ["data=imagenet", f"data.root={folders}", "data.num_workers=0"]
    np.save(folders / "mean-224.npy", array)
    data = instantiate(compose_config(*overrides).data, seed=0, _convert_="all")
    assert "allow_pickle=False" in refusal(data.setup)


@pytest.mark.fault_injection(
    "safety", "a config.yaml that calls functions when it is read or built"
)
def test_a_malicious_config_of_a_run_is_refused_and_does_nothing(
    tiny, malice, tools, capsys, tmp_path, record_property
):
    record_property("tried", 3)
    run_dir = tiny()
    path = run_dir.path / "config.yaml"
    stored = path.read_text()
    tag = "python/object/apply:os.mkdir"
    path.write_text(f"{stored}\nmore: !!{tag} [{malice.harm}]\n")
    assert all(tag in message for message in tools(run_dir.path))
    assert tag in refusal(run_dir.check_same_config)
    report = call_here(capsys, str(run_dir.path), module=REPORT)
    assert tag in report.stderr

    call_it = {"_target_": "os.mkdir", "path": str(malice.harm)}
    config = yaml.safe_load(stored)
    for part in ({"model": call_it}, {"data": config["data"] | {"root": [{"deep": call_it}]}}):
        path.write_text(yaml.safe_dump(config | part))
        for message in tools(run_dir.path):
            assert f"{path} calls os.mkdir, which is not allowed" in message
    path.write_text(stored)
    evaluate = (f"run={run_dir.path}", "trainer.accelerator=cpu")
    assert call_here(capsys, *evaluate, module="src.evaluate").returncode == 0


def files_with(text: str, *places: Path) -> list[Path]:
    """Return the files below some directories that contain a text, also within zip archives."""
    found = []
    for path in sorted(path for place in places for path in place.rglob("*") if path.is_file()):
        contents = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += b"".join(archive.read(name) for name in archive.namelist())
        if text.encode() in contents:
            found.append(path)
    return found


@pytest.mark.fault_injection(
    "safety", "a W&B key and another secret in the environment, searched in every file of a run"
)
@pytest.mark.usefixtures("wandb_user")
def test_no_secret_reaches_a_file(tiny, capsys, tmp_path, monkeypatch):
    secret = "a-secret-that-nobody-must-see"
    monkeypatch.setenv("A_SECRET", secret)
    path = tiny("logger=wandb", "logger.wandb.project=searched").path
    offline = OfflineRun(path)
    call_here(capsys, str(path), "-o", str(tmp_path / "report"), module=REPORT)
    for text in (KEY, secret):
        assert files_with(text, path, tmp_path / "report") == []
        assert all(text not in str(record) for record in offline.records)

    # The search does find what is written: a key of the config, in all kinds of files.
    kinds = {path.suffix for path in files_with("momentum", path)}
    assert {".yaml", ".wandb"} <= kinds
    assert files_with("batch_size", path / "checkpoints") == []
    assert files_with("state_dict", path / "checkpoints")
    assert tmp_path / "report" / "index.html" in files_with("resnet8", tmp_path / "report")
    assert "searched" in str(offline.run)


@pytest.mark.fault_injection("safety", "a config that takes a secret from the environment")
@pytest.mark.parametrize(
    "override",
    [
        "logger.wandb.project=${oc.env:A_SECRET}",
        "data.scales=[1,'${oc.decode:${oc.env:A_SECRET}}']",
    ],
)
def test_a_value_from_the_environment_is_refused_because_configs_are_written_down(
    capsys, monkeypatch, tmp_path, override
):
    monkeypatch.setenv("A_SECRET", "a-secret")
    command = ["data=imagenet", "logger=wandb", override, f"output_dir={tmp_path}/runs"]
    result = call_here(capsys, *command)
    assert result.returncode == 1
    assert "takes its value from the environment: set the value" in result.stderr
    assert "a-secret" not in result.stderr
    assert list(tmp_path.iterdir()) == []
