"""The command line of src.evaluate; the numbers are tested in tests/evaluation."""

import shutil

import pytest
import torch
from data.images_on_disk import make_folders
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import open_dict
from random_run import random_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_cli import call

from src import evaluate
from src.evaluation import evaluator
from src.evaluation.ensemble import NormalizedNet as member
from src.export import export

SMALL = ["n=1", "trainer.precision=32-true", "data.test_images=100"]


@pytest.fixture
def command(capsys):
    """Run src.evaluate in this process, and return what it prints."""

    def run(*overrides):
        config = compose(
            "evaluate", [*overrides, "trainer.accelerator=cpu"], return_hydra_config=True
        )
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        evaluate.main(config)
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_an_ensemble_of_runs_is_evaluated_by_the_command(find):
    run_dirs = [find(*SMALL, f"seed={seed}") for seed in (0, 1)]
    for run_dir in run_dirs:
        random_run(run_dir)
    first, second = (run_dir.path for run_dir in run_dirs)
    done = call(f"run=[{first},{second}]", "trainer.accelerator=cpu", module="src.evaluate")
    title = f"ensemble of {first.name} and {second.name} on digits, center"
    assert done.stdout.startswith(f"{title}: top-1 error "), done.stderr
    assert "of 100 test images" in done.stdout
    assert done.stderr == ""


def test_files_of_weights_are_evaluated_alone_and_as_an_ensemble(find, command, tmp_path):
    random_run(find("n=1"))
    file, copy = tmp_path / "one.pt", tmp_path / "two.pt"
    shutil.copy(find("n=1").last_checkpoint, file)
    shutil.copy(file, copy)
    small = ["model=resnet", "n=1", "data.test_images=100"]
    alone = command(*small, f"weights={file}")
    assert alone.startswith("resnet on digits, center: top-1 error ")
    both = command(*small, f"weights=[{file},{copy}]")
    assert both.startswith(f"ensemble of {file} and {copy} on digits, center: top-1 error ")
    assert alone.split("error")[1] == both.split("error")[1]


@pytest.fixture
def exported(find, tmp_path):
    """Export a run with random weights; return the file."""

    def make(*overrides):
        run_dir = find("n=1", *overrides)
        random_run(run_dir)
        export(run_dir.path, tmp_path / "net.safetensors")
        return tmp_path / "net.safetensors"

    return make


def test_an_exported_file_says_itself_what_it_is(exported, find, command, monkeypatch):
    """It is given no `model=` and no `data=`, and the mean image is that of the file."""
    file = exported("data.val_images=300")
    of_run = command(f"run={find('n=1', 'data.val_images=300').path}")
    of_file = command(f"weights={file}")
    assert of_file.startswith("resnet on digits, center: top-1 error ")
    assert of_file.split(",")[:3] == ["resnet on digits", *of_run.split(",")[1:3]]
    # The data of the command line have another mean: 300 more images are trained on.
    seen = []
    monkeypatch.setattr(evaluator, "NormalizedNet", lambda *own: seen.append(own) or member(*own))
    command(f"weights={file}")
    data = instantiate(find("n=1", "data.val_images=300").config["data"], seed=0)
    data.setup()
    ((_, mean, _, _),) = seen
    assert torch.equal(mean, data.mean)


def test_a_model_or_data_that_disagrees_with_the_file_is_an_error(exported, command):
    file = exported()
    assert command(f"weights={file}", "model=resnet", "n=1", "data=digits")
    for overrides in (["model=plain", "n=1"], ["n=2"], ["model=resnet20"], ["model.shortcut=B"]):
        with pytest.raises(SystemExit, match="holds weights of resnet: leave out model=, model.*"):
            command(f"weights={file}", *overrides)
    with pytest.raises(SystemExit, match="holds weights for data=digits: leave out data="):
        command(f"weights={file}", "data=cifar10")


def test_a_file_that_names_foreign_code_is_refused(exported, command):
    file = exported()
    with safe_open(file, "pt") as old:
        metadata = old.metadata() | {"model": '{"_target_": "os.system", "command": "true"}'}
    save_file(load_file(file), file, metadata)
    with pytest.raises(SystemExit, match=r"net.safetensors calls os.system, which is not allowed"):
        command(f"weights={file}")


def test_a_run_whose_data_were_moved_is_evaluated_with_root(find, command, tmp_path):
    images = make_folders(tmp_path / "images", train=1, val=1)
    where = ["data=imagenet", f"data.root={images}", "data.num_workers=0"]
    run_dir = find("n=1", "trainer.precision=32-true", *where)
    random_run(run_dir)
    before = command(f"run={run_dir.path}", "protocol=10crop")
    saved = run_dir.evaluation("10crop")
    errors = f"({saved['errors']} and {saved['errors_top5']} of 3 test images)"
    assert errors in before

    images.rename(tmp_path / "moved")
    with pytest.raises(SystemExit, match="there is no"):
        command(f"run={run_dir.path}", "protocol=10crop")
    after = command(f"run={run_dir.path}", f"root={tmp_path}/moved", "protocol=10crop")
    assert errors in after


def test_errors_on_the_command_line_are_reported_as_one_line(find, command):
    run_dir = find("n=1", "trainer.precision=32-true")
    random_run(run_dir)
    first = run_dir.path
    for overrides, message in {
        (f"run=[{first},nowhere]",): "^nowhere is not a run directory",
        (f"run={first}", "weights=a.pt"): "^set either run=DIRECTORY, or weights=FILE",
        (): "^set either run=DIRECTORY, or weights=FILE",
        ("weights=nowhere.pt",): "^there is no file nowhere.pt",
        (f"run={first}", "n=3", "model.shortcut=B"): "leave out n=3 model.shortcut=B$",
        (f"run={first}", "show=8"): "^show= and classifier= are for runs of other tasks",
        (f"run={first}", f"classifier={first}"): "^show= and classifier= are for runs of other",
        (f"run={first}", "root=elsewhere"): "^root=elsewhere does not apply",
    }.items():
        with pytest.raises(SystemExit, match=message) as error:
            command(*overrides)
        assert len(str(error.value).splitlines()) == 1
