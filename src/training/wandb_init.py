"""Start a run of Weights & Biases (W&B): its names, its config and its settings."""

from typing import TYPE_CHECKING, Any, Literal

from src.runs.config_files import flatten
from src.runs.naming import curve_name, family
from src.runs.run_dir import RunDir
from src.runs.wandb_identity import WandbIdentity

if TYPE_CHECKING:
    import wandb

# Seconds that W&B gets to start a run, and to receive the remaining rows at the end.
START_TIMEOUT, FINISH_TIMEOUT = 30, 60
# Letters; the server refuses longer names.
NAME_LENGTH, TAG_LENGTH = 128, 64


def flat_config(run_dir: RunDir, depth: int | None) -> dict[str, Any]:
    """Return a config for W&B's tables: one level, no dots in keys, names to compare runs by.

    `data` and `model` are what was chosen, `n` and `shortcut` the net's own (None where it has
    none), `curve` is what the seeds of a run have in common.
    """
    config = run_dir.config
    names = {key: config["choices"][key] for key in ("model", "data")}
    names |= {key: config["model"].get(key) for key in ("n", "shortcut")}
    names |= {"family": family(config), "depth": depth, "curve": curve_name(run_dir.key)}
    flat = {key.replace(".", "_"): value for key, value in flatten(config).items()}
    return {key: value for key, value in flat.items() if value != {}} | names  # no empty groups


def init_run(
    run_dir: RunDir,
    identity: WandbIdentity,
    depth: int | None,
    mode: Literal["online", "offline"],
    *,
    measure: bool,
) -> "wandb.Run":
    """Start or resume a run of W&B.

    Args:
        run_dir: the directory of the run.
        identity: which run of W&B it is.
        depth: the depth of the net, if it is known yet.
        mode: W&B's mode.
        measure: whether W&B measures the load of the machine.
    """
    import wandb

    config = flat_config(run_dir, depth)
    experiment = run_dir.config["choices"].get("experiment")
    tags = [experiment, config["family"], config["model"], config["data"]]
    return wandb.init(
        project=identity.project,
        entity=identity.entity,
        id=identity.id,
        name=run_dir.path.name[:NAME_LENGTH],
        # By default W&B averages the runs of a group, which therefore differ in the seed only.
        group=config["curve"][:NAME_LENGTH],
        job_type="train",
        tags=[tag[:TAG_LENGTH] for tag in tags if tag],
        config=config,
        dir=run_dir.path,
        mode=mode,
        # Without it rows are added to those of the same id, or replace them: the server decides.
        resume="allow",
        reinit="create_new",  # never the run of another job in this process
        settings=quiet_settings(
            x_disable_stats=not measure,
            init_timeout=START_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
        ),
    )


def quiet_settings(**options: Any) -> "wandb.Settings":
    """Return settings of a run that prints nothing and records no code, git state or console."""
    import wandb

    return wandb.Settings(
        silent=True,  # our own message says where to look
        console="off",
        disable_code=True,
        disable_git=True,  # a remote's address may contain a password
        **options,
    )
