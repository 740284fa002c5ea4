"""Words of other projects are answered with what they are called here."""

import re

import pytest
from command_line import call_here

from src.cli import is_user_error
from src.config import compose_config, find_run_dir, to_dict
from src.config_values import parents
from src.familiar_words import FAMILIAR_WORDS
from src.runs.config_files import flatten

# Each word, and a part of its answer.
WORDS = {
    "ckpt_path=last.ckpt": "rerunning the same command resumes it",
    "--resume": "rerunning the same command resumes it",
    "trainer=ddp": "set trainer.devices=N",
    "trainer=gpu": "set trainer.accelerator=gpu",
    "trainer=cpu": "set trainer.accelerator=cpu",
    "trainer=mps": "set trainer.accelerator=mps",
    "trainer.max_epochs=3": "set recipe.iterations=N",
    "epochs=3": "set recipe.iterations=N",
    "--epochs 90": "set recipe.iterations=N",
    "trainer.max_steps=10": "set recipe.iterations=10",
    "+trainer.limit_train_batches=2": "set recipe.iterations=20",
    "+trainer.val_check_interval=0.5": "set recipe.eval_every=N",
    "trainer.log_every_n_steps=50": "set recipe.log_every=50",
    "+trainer.accumulate_grad_batches=2": "set recipe.batch_size=N",
    "+trainer.logger=true": "set logger=tensorboard",
    "+trainer.enable_checkpointing=false": "set checkpoint_seconds=600",
    "+trainer.callbacks=[]": "add one with +callbacks.NAME._target_=CLASS",
    "+trainer.default_root_dir=there": "set output_dir=there",
    "+trainer.profiler=simple": "python -m src.benchmark profile",
    "+trainer.benchmark=true": "unless trainer.deterministic=true",
    "+trainer.enable_progress_bar=false": "leave it out",
    "debug=true": "set recipe.iterations=20",
    "hparams_search=optuna": "experiments/wandb_sweep.yaml",
    "callbacks=default": "add one with +callbacks.NAME._target_=CLASS",
    "lr=0.3": "set recipe.schedule.lr=0.3",
    "+lr=0.3": "set recipe.schedule.lr=0.3",
    "optimizer.lr=0.3": "set recipe.schedule.lr=0.3",
    "model.lr=0.3": "set recipe.schedule.lr=0.3",
    "--lr 0.3": "set recipe.schedule.lr=0.3",
    "batch_size=64": "set recipe.batch_size=64",
    "data.batch_size=64": "set recipe.batch_size=64",
    "--batch-size 64": "set recipe.batch_size=64",
    "data.num_workers=4": "leave it out",
    "model=resnet_50": "did you mean resnet50?",
    "model=ResNet50": "did you mean resnet50?",
    "arch=resnet50": "set model=resnet50",
    "dataset=cifar10": "set data=cifar10",
    "--gpus 2": "set trainer.devices=2",
    "seed_everything=1": "set seed=1",
    "precision=16": "set trainer.precision=16-mixed",
    "precision=bf16": "set trainer.precision=16-mixed, bf16-mixed or 32-true",
    "wandb=true": "set logger=wandb",
    "logger=csv,wandb": "set 'logger=[csv,wandb]'",
    "logger=null": "set logger=csv",
    "scheduler=cosine": "recipe.schedule has",
    "optimizer=adam": "set recipe.optimizer._target_=torch.optim.NAME",
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_another_project_is_answered_with_the_one_of_this(capsys, word):
    result = call_here(capsys, *word.split())
    assert result.returncode == 1
    assert result.stdout == ""
    assert WORDS[word] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_every_line_of_the_table_answers_one_of_the_words():
    words = [word.lstrip("+") for word in WORDS]
    unused = [p for p in FAMILIAR_WORDS if not any(re.fullmatch(p, word) for word in words)]
    assert unused == []


@pytest.mark.parametrize("answer", FAMILIAR_WORDS.values())
def test_what_an_answer_says_to_set_is_accepted(answer):
    values = {r"\1": "2", "=N": "=2", "torch.optim.NAME": "torch.optim.AdamW"}
    for word, value in values.items():
        answer = answer.replace(word, value)
    answer = answer.replace("accelerator=2", "accelerator=cpu").replace("_dir=2", "_dir=there")
    answer = answer.replace("'logger=[2]'", "logger=[wandb]")
    answer = answer.replace("model=2", "model=resnet20").replace("data=2", "data=mnist")
    for override in re.findall(r"set (\S+=[^\s,;]+)", answer):
        find_run_dir(compose_config(override))


def test_words_of_this_project_are_none_of_another():
    keys = flatten(to_dict(compose_config("data=imagenet")))
    familiar = {key for key in keys for p in FAMILIAR_WORDS if re.fullmatch(p, f"{key}=1")}
    # What other data do not have, and a group.
    assert familiar <= {"data.num_workers", "callbacks"}


@pytest.mark.slow
@pytest.mark.parametrize("value", ["x", "3", "null", "[1]", "{a:1}"])
def test_no_key_has_a_traceback_for_a_value_of_the_wrong_kind(value):
    keys = list(flatten(to_dict(compose_config())))
    groups = {group for key in keys for group in parents(key)}
    for key in [*keys, *groups]:
        force = "++" if key in ("model", "data", "task", "recipe", "logger") else ""
        error = None
        try:
            find_run_dir(compose_config(f"{force}{key}={value}"))
        except Exception as raised:
            error = raised
        assert error is None or is_user_error(error), f"{key}={value}"
