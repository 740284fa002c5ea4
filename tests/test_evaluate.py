"""The command line of src.evaluate; the numbers are tested in tests/evaluation."""

import shutil

import pytest
from data.images_on_disk import make_folders
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from random_run import random_run
from test_cli import call

from src import evaluate

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
    run_dirs = [find("n=1", f"trainer.precision={p}") for p in ("32-true", "bf16-mixed")]
    for run_dir in run_dirs:
        random_run(run_dir)
    first, second = (run_dir.path for run_dir in run_dirs)
    for overrides, message in {
        (f"run=[{first},nowhere]",): "^nowhere is not a run directory",
        (f"run={first}", "weights=a.pt"): "^set either run=DIRECTORY, or weights=FILE",
        (): "^set either run=DIRECTORY, or weights=FILE",
        ("weights=nowhere.pt",): "^there is no file nowhere.pt",
        (f"run=[{first},{second}]",): r"different precisions \(32-true and bf16-mixed\)",
    }.items():
        with pytest.raises(SystemExit, match=message) as error:
            command(*overrides)
        assert len(str(error.value).splitlines()) == 1
