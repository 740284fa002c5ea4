"""What a user is answered; where nothing heavy is needed, in a process of its own, as the user meets it."""

import subprocess
import sys
import time

import pytest
from conftest import ROOT
from hydra.errors import InstantiationException

from src.cli import format_error, is_user_error


def call(*arguments, module="src.train"):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


USER_ERRORS = {
    (
        "model=resnet57",
    ): "57 layers is not 6n+2; the nearest are model=resnet n=9 (56 layers) and model=resnet n=10",
    ("model=resnet62",): "say model=resnet n=10",
    ("model=resnt56",): "there is no model=resnt56; did you mean resnet56?",
    ("data=mnist5000",): "there is no data=mnist5000: cifar10, digits",
    ("recipe.iteratons=5",): "there is no key recipe.iteratons; did you mean recipe.iterations?",
    ("data=cifar10", "data.val_image=0"): "did you mean data.val_images?",
    ("trainer.acelerator=cpu",): "did you mean trainer.accelerator?",
    ("model=plain", "model.shortcut=A"): "there is no key model.shortcut",
    ("model=plain,resnet",): "model=plain,resnet is a sweep: say python -m src.train -m",
    (
        "model=resnet",
        "n=2.5",
    ): "n=2.5 does not give a depth of 6n+2; the nearest nets are n=2 (14 layers) and n=3",
    (
        "model=resnet20",
        "n=5",
    ): "model=resnet20 has its own depth: n=5 needs model=plain, resnet, highway or pre",
    ("recipe.batch_size=0",): "recipe.batch_size=0 must be at least 1",
    ("recipe.iterations=null",): "recipe.iterations=None must be a whole number",
    ("seed=one",): "seed=one must be a whole number",
    ("+foo=1",): "there is no key foo",
    (
        "-m",
        "hydra/launcher=joblib",
    ): "hydra/launcher=joblib is not installed: pip install hydra-joblib-launcher",
    ("model.shortcut=b",): "shortcut b is not one of A, B and C; did you mean B?",
    (
        "trainer.accelerator=gpu",
        "trainer.deterministic=true",
    ): "trainer.accelerator=auto takes the device",
    ("data=cifar10", "data.root=nowhere", "data.download=false"): "nowhere/cifar-10-batches-py",
}


@pytest.mark.fault_injection(
    "bad input", "a mistyped word or an impossible value on the command line"
)
@pytest.mark.parametrize("arguments", USER_ERRORS, ids=" ".join)
def test_a_mistake_gets_a_line_or_two_and_leaves_no_file(arguments, tmp_path):
    done = call(*arguments, f"output_dir={tmp_path}/runs")
    assert done.returncode == 1
    assert USER_ERRORS[arguments] in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_help_and_a_mistyped_word_import_nothing_heavy():
    code = "import sys, src.train; print(*{'torch', 'pytorch_lightning', 'matplotlib', 'wandb'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == ""
    started = time.monotonic()
    done = call("--help")
    assert time.monotonic() - started < 10  # It takes 0.3 s; see experiments/README.md.
    assert "python -m src.train model=resnet56 data=cifar10" in done.stdout


@pytest.mark.fault_injection(
    "bad input", "a mistyped word or an impossible value on the command line"
)
def test_a_mistake_in_a_sweep_lets_the_other_runs_go_on(tmp_path):
    tiny = ["recipe.iterations=2", "recipe.eval_every=2", "trainer.precision=32-true"]
    done = call("-m", "n=0.5,1", *tiny, f"output_dir={tmp_path}/runs")
    assert done.returncode == 1
    assert "n=0.5 does not give a depth of 6n+2" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs/digits/resnet8-iterations2-eval_every2-s0/summary.json").exists()


def test_our_own_errors_are_not_taken_for_the_users():
    assert not is_user_error(AssertionError())
    assert not is_user_error(KeyError("x"))
    assert not is_user_error(TypeError("unsupported operand"))
    wrapped = InstantiationException("Error in call to target\nValueError()")
    wrapped.__cause__ = ValueError("say n=3")
    assert is_user_error(wrapped)
    assert format_error(wrapped) == "say n=3"
    wrapped.__cause__ = KeyError("x")
    assert not is_user_error(wrapped)
