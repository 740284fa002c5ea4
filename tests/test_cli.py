"""What users are answered. Most commands run in this process; a real one takes seconds to start."""

import subprocess
import sys

import pytest
from command_line import call, call_here
from conftest import ROOT
from hydra.errors import InstantiationException

from src.cli import (
    OLD_KEY_VALUES,
    catch_user_errors,
    did_you_mean,
    format_error,
    is_user_error,
    rename_old_key,
    run_entry_point,
)
from src.config import compose_config
from src.runs.config_files import RENAMED_KEYS, RENAMED_VALUES

# What the config alone shows to be wrong, before torch is imported.
USER_ERRORS = {
    "model=resnet57": "57 layers is not 6n+2; the nearest are model=resnet n=9 (56 layers) and "
    "model=resnet n=10 (62 layers)",
    "model=resnet62": "there is no file for resnet62: set model=resnet n=10",
    "model=resnt56": "there is no model=resnt56; did you mean resnet56?",
    "data=svhn": "there is no data=svhn: bccd, cifar10, cifar100",
    "data=images": "data=images needs data.root=DIRECTORY",
    "data=images data.root=nowhere": "there is no folder data.root=nowhere",
    "experiment=tabel6": "there is no experiment=tabel6; did you mean table6?",
    "recipe.iteratons=5": "there is no key recipe.iteratons; did you mean recipe.iterations?",
    "data=cifar10 data.val_image=0": "did you mean data.val_images?",
    "trainer.acelerator=cpu": "did you mean trainer.accelerator?",
    "model=plain model.shortcut=A": "there is no key model.shortcut",
    "model=plain,resnet": "model=plain,resnet is a sweep: use python -m src.train -m",
    "model=resnet20 n=5": "model=resnet20 has its own depth: n=5 needs model=plain, resnet",
    "recipe.batch_size=0": "recipe.batch_size=0 must be at least 1",
    "recipe.precise_bn_batches=-1": "recipe.precise_bn_batches=-1 must be at least 0",
    "recipe.iterations=null": "recipe.iterations=None must be an integer, such as 800",
    "seed=one": "seed=one must be an integer, such as 0",
    "seed=-1": "seed=-1 must be from 0 to 2**32 - 1",
    "activation_checkpointing=1": "activation_checkpointing=1 must be true or false, such as False",
    "+foo=1": "there is no key foo; --help lists all keys",
    "-m hydra/launcher=joblib": "hydra/launcher=joblib is not installed: pip install "
    "hydra-joblib-launcher",
}
# What only the net, the data or Lightning knows.
LATE_USER_ERRORS = {
    "model=resnet n=2.5": "n=2.5 does not give a depth of 6n+2",
    "model.shortcut=b": "shortcut b is not one of A, B and C; did you mean B?",
    "trainer.accelerator=gpu": "trainer.accelerator=auto uses what is there",
    "data=cifar10 data.root=nowhere data.download=false": "nowhere/cifar-10-batches-py",
    "model._target_=torchvision.nothing": "there is no torchvision.nothing to import",
    "compile=eager": "compile=eager is not one of auto, none, cudagraph, inductor",
    "protocol=5crop": "protocol=5crop does not apply to these images: set protocol=center",
}
HEAVY_MODULES = ("torch", "pytorch_lightning", "matplotlib", "plotly", "wandb", "sklearn")

# Prints the modules among HEAVY_MODULES that --help and each user error import.
IMPORTS = f"""
import os, sys
from src import train
from src.cli import run_entry_point
for arguments in ["--help", *{[*USER_ERRORS]!r}]:
    os.environ.pop("HYDRA_FULL_ERROR", None)
    sys.argv = ["src/train.py", *arguments.split()]
    try:
        run_entry_point(train.main)
    except SystemExit:
        pass
    print(arguments, "imports", *[name for name in {HEAVY_MODULES!r} if name in sys.modules])
"""


@pytest.mark.fault_injection("bad input", "a mistyped word or an impossible value")
@pytest.mark.parametrize("command", [*USER_ERRORS, *LATE_USER_ERRORS])
def test_a_user_error_gets_a_message_of_two_lines_at_most_and_leaves_no_file(
    capsys, command, tmp_path
):
    result = call_here(capsys, *command.split(), f"output_dir={tmp_path}/runs")
    assert (USER_ERRORS | LATE_USER_ERRORS)[command] in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2, result.stderr
    assert (result.returncode, result.stdout) == (1, "")
    assert list(tmp_path.iterdir()) == []


def test_help_and_user_errors_import_nothing_heavy():
    command = [sys.executable, "-c", IMPORTS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "python -m src.train model=resnet56 data=cifar10" in result.stdout
    imports = [line for line in result.stdout.splitlines() if " imports" in line]
    assert imports == [f"{command} imports" for command in ("--help", *USER_ERRORS)]


@pytest.mark.fault_injection("bad input", "a mistyped word or an impossible value")
def test_a_user_error_in_a_real_process_ends_it_with_status_1():
    result = call("recipe.iteratons=5")
    assert (result.returncode, result.stdout) == (1, "")
    message = "there is no key recipe.iteratons; did you mean recipe.iterations?"
    assert result.stderr == f"{message}; --help lists all keys\n"


@pytest.mark.slow
@pytest.mark.fault_injection("bad input", "a mistyped word or an impossible value")
def test_a_user_error_in_a_sweep_lets_the_other_runs_finish(tmp_path):
    """The sweep has keys under their old names, too."""
    tiny = ["recipe.iterations=2", "recipe.eval_every=2", "trainer.precision=32-true"]
    old = ["recipe.norm_batches=0,1", f"runs={tmp_path}/runs"]
    result = call("-m", "n=0.5,1", *tiny, *old)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "recipe.norm_batches= is now recipe.precise_bn_batches=: reading "
        f"recipe.precise_bn_batches=0,1\nruns= is now output_dir=: reading output_dir={tmp_path}/"
    )
    assert "n=0.5 does not give a depth of 6n+2" in result.stderr
    assert "2 of 4 runs failed; the same command tries them again" in result.stderr
    assert "Traceback" not in result.stderr
    finished = sorted(path.parent.name for path in tmp_path.rglob("summary.json"))
    name = "resnet8-iterations2"
    assert finished == [f"{name}-eval_every2-s0", f"{name}-precise_bn_batches1-eval_every2-s0"]


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_an_old_key_is_read_as_the_present_one_with_a_line_that_says_so(capsys, old):
    value = {"recipe.schedule.divisor": "10"}.get(old, "1")
    present = {"recipe.schedule.divisor": "0.1"}.get(old, "1")
    new = f"{RENAMED_KEYS[old]}={present}"
    assert rename_old_key(f"{old}={value}") == new
    assert capsys.readouterr() == ("", f"{old}= is now {RENAMED_KEYS[old]}=: reading {new}\n")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [(f"{key}={old}", f"{RENAMED_KEYS[key]}={new}")
     for key, values in OLD_KEY_VALUES.items() for old, new in values.items()]
    + [(f"{key}={old}", f"{key}={new}")
     for key, values in RENAMED_VALUES.items() for old, new in values.items()]
    + [("step=graph,eager", "compile=cudagraph,none"), ("step=auto", "compile=auto")],
)  # fmt: skip
def test_an_old_value_of_a_key_is_read_as_the_present_one(argument, expected):
    assert rename_old_key(argument) == expected


def test_an_old_value_prints_a_line_with_the_present_one(capsys):
    argument = "model.init=fan_out,lecun"
    assert rename_old_key(argument) == "model.init=he_fan_out,lecun"
    assert capsys.readouterr() == ("", f"{argument} is now model.init=he_fan_out,lecun\n")


@pytest.mark.parametrize(
    "argument",
    [
        "-m",
        "--help",
        "n=3",
        "data.root=runs=old",
        "compile=none",
        "model.init=xavier",
        "+new=step",
        "",
    ],
)
def test_other_arguments_are_left_alone(capsys, argument):
    assert rename_old_key(argument) == argument
    assert capsys.readouterr() == ("", "")


OLD_COMMANDS = {
    "step=eager": ["compile=none"],
    "recompute=true": ["activation_checkpointing=true"],
    "recipe.norm_batches=2": ["recipe.precise_bn_batches=2"],
    "recipe.schedule.drops=[0.9] recipe.schedule.divisor=5.0": [
        *("recipe.schedule.milestones=[0.9]", "recipe.schedule.gamma=0.2"),
    ],
    "recipe=imagenet_plateau recipe.schedule.max_drops=2": [
        "recipe=imagenet_plateau recipe.schedule.max_reductions=2"
    ],
}


@pytest.mark.parametrize("old", OLD_COMMANDS)
def test_a_command_with_old_keys_finds_the_run_of_the_present_ones(capsys, find, tmp_path, old):
    new = " ".join(OLD_COMMANDS[old]).split()
    run_dir = find("n=1", "trainer.precision=32-true", *new)
    run_dir.create()
    results = {"iterations": 1, "train_error": 2, "test_error": 3, "test_error_top5": 4}
    run_dir.write_summary(results | {"images_per_second": 5})
    command = ["n=1", "trainer.precision=32-true", *old.split(), f"runs={tmp_path}/runs"]
    result = call_here(capsys, *command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{run_dir.path} is finished: training error 2.00%")
    assert f"runs= is now output_dir=: reading output_dir={tmp_path}/runs\n" in result.stderr


def test_an_experiment_is_found_under_the_old_name_of_its_key(capsys):
    result = call_here(capsys, "experiments=tabel6")
    assert result.stderr.splitlines() == [
        "experiments= is now experiment=: reading experiment=tabel6",
        "there is no experiment=tabel6; did you mean table6?",
    ]
    assert rename_old_key("experiments=digits_depth") == "experiment=digits_depth"


@pytest.mark.parametrize(
    "error", [AssertionError(), KeyError("x"), TypeError("unsupported operand"), RuntimeError("x")]
)
def test_a_bug_is_not_taken_for_a_users_error(error):
    assert not is_user_error(error)
    wrapped = InstantiationException("Error in call to target")
    wrapped.__cause__ = error
    assert not is_user_error(wrapped)


def test_a_users_error_is_found_inside_that_of_hydra():
    wrapped = InstantiationException("Error in call to target\nValueError()")
    wrapped.__cause__ = ValueError("set n=3")
    assert is_user_error(wrapped)
    assert format_error(wrapped) == "set n=3"


def test_an_error_without_text_is_named_by_its_type():
    assert format_error(FileNotFoundError()) == "FileNotFoundError"


def test_only_a_similar_word_is_suggested():
    assert did_you_mean("iteratons", ["iterations", "seed"]) == "; did you mean iterations?"
    assert did_you_mean("xyz", ["iterations", "seed"]) == ""


def test_an_interrupted_command_says_that_the_same_one_resumes(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("src.train.main", interrupt)
    result = call_here(capsys)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "\ninterrupted; the same command resumes\n"


def fail(config=None):
    raise ValueError("set n=3")


@pytest.mark.parametrize("main", [fail, lambda: catch_user_errors(fail)(compose_config())])
def test_hydra_full_error_shows_the_traceback_of_a_users_error(monkeypatch, main):
    monkeypatch.setattr(sys, "argv", ["src/train.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="set n=3"):
        run_entry_point(main)
