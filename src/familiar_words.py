"""Words that users know from other projects, and what they are called here."""

import re
import sys
from itertools import pairwise

ITERATIONS = (
    "runs are counted in iterations: set recipe.iterations=N, where an epoch is training images / "
    "recipe.batch_size, 391 iterations of CIFAR-10"
)
OPTIMIZER = (
    "set recipe.optimizer._target_=torch.optim.NAME, and its arguments with +recipe.optimizer."
)
PRECISION = "set trainer.precision=16-mixed, bf16-mixed or 32-true"
RESUME = "rerunning the same command resumes it from its last checkpoint"

# Regular expressions for arguments, and the answers; \1 stands for the value.
FAMILIAR_WORDS = {
    r"(?:ckpt_path|resume|resume_from_checkpoint)=.*|--resume(?:[ =].*)?": RESUME,
    r"trainer=(?:ddp\w*)": "set trainer.devices=N, which trains on N GPUs by DDP",
    r"trainer=(gpu|cpu|mps)": r"set trainer.accelerator=\1",
    r"(?:(?:trainer\.)?m(?:ax|in)_epochs|trainer\.max_time|(?:--)?epochs)[= ].*": ITERATIONS,
    r"(?:trainer\.)?m(?:ax|in)_steps=(.*)": r"set recipe.iterations=\1",
    r"trainer\.(?:limit_\w+_batches|overfit_batches|fast_dev_run)=.*": "for a quick trial set "
    "recipe.iterations=20",
    r"trainer\.(?:val_check_interval|check_val_every_n_epoch|num_sanity_val_steps)=.*": "set "
    "recipe.eval_every=N, in iterations",
    r"trainer\.log_every_n_steps=(.*)": r"set recipe.log_every=\1",
    r"trainer\.accumulate_grad_batches=.*": "set recipe.batch_size=N, the images of an update",
    r"trainer\.logger=.*": "set logger=tensorboard, mlflow or wandb",
    r"trainer\.enable_checkpointing=.*": "every run saves checkpoints: set "
    "checkpoint_seconds=600 for fewer",
    r"trainer\.callbacks=.*": "add one with +callbacks.NAME._target_=CLASS",
    r"trainer\.default_root_dir=(.*)": r"set output_dir=\1",
    r"trainer\.profiler=.*": "python -m src.benchmark profile shows where the time goes",
    r"trainer\.benchmark=.*": "it is on unless trainer.deterministic=true",
    r"trainer\.(?:plugins|use_distributed_sampler|reload_dataloaders\w+|enable_progress_bar|"
    r"enable_model_summary)=.*": "leave it out: the run sets it itself",
    r"debug=.*": "for a quick trial set recipe.iterations=20; HYDRA_FULL_ERROR=1 shows tracebacks",
    r"hparams_search=.*": "experiments/wandb_sweep.yaml is a search by W&B; -m sweeps over values",
    r"callbacks=.*": "add one with +callbacks.NAME._target_=CLASS; how often the run's own act is "
    "recipe.log_every, eval_every and checkpoint_every",
    r"(?:(?:model|optimizer)\.|--)?lr[= ](.*)": r"set recipe.schedule.lr=\1",
    r"(?:data\.|--)?batch[_-]size[= ](.*)": r"set recipe.batch_size=\1, over all devices",
    r"(?:data\.)?num_workers=.*": "leave it out: these data are in memory and need no workers; "
    "data=imagenet has data.num_workers",
    r"(?:--)?arch[= ](.*)": r"set model=\1",
    r"(?:--)?dataset[= ](.*)": r"set data=\1",
    r"(?:--)?(?:gpus|devices)[= ](.*)": r"set trainer.devices=\1",
    r"seed_everything=(.*)": r"set seed=\1",
    r"precision=(?:16|fp16)": "set trainer.precision=16-mixed, or bf16-mixed where it is native",
    r"precision=.*": PRECISION,
    r"wandb=.*|use_wandb=.*": "set logger=wandb",
    r"logger=(\w+(?:,\w+)+)": r"set 'logger=[\1]'",
    r"logger=(?:null|none|false)": "set logger=csv, which writes metrics.csv alone",
    r"scheduler=.*": "recipe.schedule has the learning rate's keys: lr, milestones and gamma; one "
    "of torch's is recipe.schedule._target_=torch.optim.lr_scheduler.NAME",
    r"optimizer=.*|--optimizer[= ].*": OPTIMIZER,
}


def explain_word(argument: str) -> str | None:
    """Return what an argument of another project is called here; None if it is unknown.

    Args:
        argument: Such as `trainer=ddp`, `--epochs 90` or `lr=0.1`.
    """
    for pattern, answer in FAMILIAR_WORDS.items():
        match = re.fullmatch(pattern, argument)
        if match:
            return f"there is no {argument} here: {match.expand(answer)}"
    return None


def explain_options(arguments: list[str]) -> str | None:
    """Return the answer to the first familiar `--option` of a command line, with its value."""
    for argument, following in pairwise([*arguments, ""]):
        value = "" if "=" in argument or following.startswith("-") else following
        if argument.startswith("--"):
            answer = explain_word(f"{argument} {value}".strip()) or explain_word(argument)
            if answer:
                return answer
    return None


def explain_key(key: str) -> str | None:
    """Return the answer to an unknown key, with the value that the command line gives it."""
    given = (argument.lstrip("+") for argument in sys.argv[1:])
    # Hydra names the first unknown group: `optimizer` of optimizer.lr=0.1.
    named = [argument for argument in given if argument.startswith((f"{key}=", f"{key}."))]
    return explain_word(named[0]) if named else None
