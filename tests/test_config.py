"""Files and names that mean harm, and secrets that must stay where they are."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, compose_run
from data.images_on_disk import make_folders
from fake_wandb_server import KEY, Offline
from hydra.utils import instantiate
from safetensors.torch import save_file
from test_cli import call

from src import train
from src.cli import format_error, is_user_error, resolve
from src.data.webdataset import index_path, make_shards, read_shards
from src.evaluation.evaluator import evaluate, run_config
from src.evaluation.weights import read_weights
from src.export import export
from src.report.__main__ import write_report
from src.report.results import read_runs
from src.runs.run_dir import RunDir


class Malice:
    """Unpickling this makes a file."""

    def __init__(self, harm: Path) -> None:
        self.harm = harm

    def __reduce__(self):
        return (os.mkdir, (str(self.harm),))


@pytest.fixture
def malice(tmp_path):
    """It works where it is let, and has not been let by the end of the test."""
    harm = tmp_path / "harm"
    pickle.loads(pickle.dumps(Malice(harm)))
    harm.rmdir()
    yield Malice(harm)
    assert not harm.exists()


def refused(call, *arguments):
    """The line that a user gets for what a call raises."""
    with pytest.raises(Exception) as caught:
        call(*arguments)
    assert is_user_error(caught.value), repr(caught.value)
    return format_error(caught.value)


@pytest.mark.fault_injection("safety", "a checkpoint that runs code when it is unpickled")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_is_refused_and_does_nothing(
    tiny, find, malice, tmp_path, zipped, record_property
):
    """As last.ckpt, and as previous.ckpt beside a damaged last.ckpt."""
    record_property("tried", 2)
    path = tiny().path
    last, previous = (path / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    state = torch.load(last, weights_only=True) | {"more": malice}
    for place in (last, previous):
        torch.save(state, place, _use_new_zipfile_serialization=zipped)
    for tool in (evaluate_run, lambda path: export(path, tmp_path / "net.pt")):
        assert refused(tool, path).startswith(f"{last} is damaged or contains more than tensors")
    runs, left_out = read_runs([path])
    write_report(runs, left_out, tmp_path / "report")  # reads no weights, nor does W&B
    (path / "summary.json").unlink()
    for place in (last, previous):
        said = refused(train.run, find(*TINY, "trainer.precision=32-true"))
        assert said.startswith(
            f"{place} holds more than tensors" if zipped else "no checkpoint in "
        )
        last.write_bytes(b"damaged")


def run_net(path):
    return run_config(RunDir.trained(path))


def evaluate_run(path):
    evaluate([run_net(path)], {"accelerator": "cpu", "precision": "32-true"}, "center", "it")


@pytest.mark.fault_injection(
    "safety", "weights, a shard index and a mean image that run code when they are unpickled"
)
def test_malicious_files_beside_the_run_are_refused_and_do_nothing(
    malice, tmp_path, record_property
):
    record_property("tried", 5)
    array = np.array([malice, None], dtype=object)
    weights = tmp_path / "weights.pt"
    for write_it in (
        lambda: torch.save({"conv1.weight": malice}, weights),
        lambda: torch.save({"conv1.weight": malice}, weights, _use_new_zipfile_serialization=False),
        lambda: weights.write_bytes(pickle.dumps(malice)),
        lambda: save_file({"conv1.weight": torch.zeros(1)}, weights),
    ):
        write_it()
        assert refused(read_weights, weights).startswith(
            f"{weights} is damaged or contains more than tensors"
        )

    folders = make_folders(tmp_path / "folders")
    make_shards(folders, tmp_path / "shards", workers=1)
    shard = next((tmp_path / "shards").glob("*.tar"))
    np.savez(index_path(shard), names=array, entries=array, size=shard.stat().st_size)
    assert "allow_pickle=False" in refused(read_shards, tmp_path / "shards")

    config = compose_run("data=imagenet", f"data.root={folders}", "data.num_workers=0").data
    np.save(folders / "mean-224.npy", array)
    data = instantiate(config, seed=0, _convert_="all")
    assert "allow_pickle=False" in refused(data.setup)


@pytest.mark.fault_injection(
    "safety", "a config.yaml that calls functions when it is read or built"
)
def test_a_malicious_config_in_a_run_folder_is_refused_and_does_nothing(
    tiny, find, malice, tmp_path, record_property
):
    record_property("tried", 4)
    folder = tiny()
    path, config = folder.path / "config.yaml", folder.config
    arguments = f"[{malice.harm}]"
    path.write_text(path.read_text() + f"\nmore: !!python/object/apply:os.mkdir {arguments}\n")
    for task, *given in ((run_net, folder.path), (export, folder.path, tmp_path / "net.pt")):
        assert "python/object/apply:os.mkdir" in refused(task, *given)
    assert "python/object/apply:os.mkdir" in refused(
        find(*TINY, "trainer.precision=32-true").check_same_config
    )
    runs, [(_, why)] = read_runs([folder.path])
    assert runs == [] and "python/object/apply:os.mkdir" in why

    call_it = {"_target_": "os.mkdir", "path": str(malice.harm)}
    for part in ({"model": call_it}, {"data": config["data"] | {"root": [{"deep": call_it}]}}):
        path.write_text(yaml.safe_dump(config | part))
        for task, *given in ((run_net, folder.path), (export, folder.path, tmp_path / "net.pt")):
            assert f"{path} calls os.mkdir, which is not run" in refused(task, *given)
    path.write_text(yaml.safe_dump(config))
    assert run_net(folder.path)["model"] == config["model"]


def holding(text: str, *folders: Path) -> list[Path]:
    """The files in and below some folders with this text in them, also in what is packed in them."""
    found = []
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        contents = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += b"".join(archive.read(name) for name in archive.namelist())
        if text.encode() in contents:
            found.append(path)
    return found


@pytest.mark.fault_injection(
    "safety", "a W&B key and another secret in the environment, looked for in every file of a run"
)
@pytest.mark.usefixtures("wandb_user")
def test_no_secret_reaches_a_file(tiny, tmp_path, monkeypatch):
    secret = "a-secret-that-nobody-must-see"
    monkeypatch.setenv("A_SECRET", secret)
    folder = tiny("logger=wandb", "logger.project=looked-for")
    runs, left_out = read_runs([folder.path])
    write_report(runs, left_out, tmp_path / "report")
    everything = (folder.path, tmp_path / "report")
    for text in (KEY, secret):
        assert holding(text, *everything) == []
        assert all(text not in str(record) for record in Offline(folder.path).all)
    # What is written does come through: the names of the config in all kinds of files.
    kinds = {path.suffix for path in holding("momentum", *everything)}
    assert {".yaml", ".ckpt", ".wandb"} <= kinds
    assert tmp_path / "report" / "index.html" in holding("resnet8", *everything)
    assert "looked-for" in str(Offline(folder.path).run)


@pytest.mark.fault_injection("safety", "a config that takes a secret from the environment")
def test_a_value_from_the_environment_is_refused_as_configs_are_written_down(monkeypatch, tmp_path):
    monkeypatch.setenv("A_SECRET", "digits-elsewhere")
    for override in (
        "logger.project=${oc.env:A_SECRET}",
        "data.scales=[1,'${oc.decode:${oc.env:A_SECRET}}']",
    ):
        config = compose_run("data=imagenet", "logger=wandb", override)
        with pytest.raises(
            ValueError, match="takes its value from the environment, and a config is written down"
        ):
            resolve(config, "train")
    done = call("logger=wandb", "logger.project=${oc.env:A_SECRET}", f"output_dir={tmp_path}/runs")
    assert done.returncode == 1 and "takes its value from the environment" in done.stderr
    assert "digits-elsewhere" not in done.stderr and list(tmp_path.iterdir()) == []
