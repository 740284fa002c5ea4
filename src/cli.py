"""How the entry points answer a user's mistake: a line or two that say what to do, and a non-zero exit.

Nothing heavy is imported here, so that a mistyped word is answered at once. HYDRA_FULL_ERROR=1 shows the traceback.
"""

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.runs.naming import flatten

CONF = Path(__file__).resolve().parents[1] / "conf"
# By name, so as not to import Lightning and submitit here.
LIGHTNING_REFUSES = "MisconfigurationException"
SUBMITIT_REFUSES = ("FailedJobError", "UncompletedJobError")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", list: "a list", str: "a word"}
NULLABLE = ("recipe.schedule.warmup_from_n",)
USER_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, FloatingPointError)


def entry(main: Callable[[], None]) -> None:
    """Runs a Hydra entry point; a mistake ends the process with its explanation."""
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on rather than printing them its own way.
    try:
        main()
    except Exception as error:
        if show_traceback or not is_user_error(error):
            raise
        sys.exit(format_error(error))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        sys.exit(130)


def job(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Makes a mistake in one run end it with its explanation; the other runs of a sweep go on."""

    @functools.wraps(task)
    def reporting(config: DictConfig) -> None:
        try:
            task(config)
        except Exception as error:
            if not is_user_error(error) or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            sys.exit(format_error(error))

    return reporting


def resolve(config: DictConfig, config_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A composed config with what was chosen for it, and the defaults of the same net and data, as plain dicts.

    Raises ValueError for a key that nothing reads, a value of another kind than the default's or from the environment,
    or an n beside a named net's own.
    """
    hydra_config = HydraConfig.get()
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    choices = {group: name for group, name in hydra_config.runtime.choices.items() if group in groups and name}
    defaults = compose(config_name, [f"{group}={choices[group]}" for group in ("model", "data")])
    for key, value in flatten(OmegaConf.to_container(config)).items():
        if "oc.env" in str(value):
            raise ValueError(
                f"{key}={value} takes its value from the environment, and a config is written down: say it"
            )
    config, usual = (OmegaConf.to_container(c, resolve=True) for c in (config, defaults))
    flat = flatten(usual)
    for key, value in flatten(config).items():
        if key.partition(".")[0] not in usual:
            raise ValueError(f"there is no key {key}; --help lists them all")
        kind = type(flat.get(key))
        number = kind is float or key in ("n", "model.n")  # n=2.5 gets a better answer from the net
        fits = isinstance(value, int | float if number else kind) and (kind is bool or not isinstance(value, bool))
        fits = fits or (value is None and key in NULLABLE)
        if kind in KINDS and not fits and not key.startswith("trainer."):
            raise ValueError(f"{key}={value} must be {KINDS[kind]}, as {flat[key]} is")
    n_is_given = any(override.startswith("n=") for override in hydra_config.overrides.task)
    if n_is_given and config["model"].get("n") != config["n"]:
        any_depth = "model=plain, resnet, highway or preactivation"
        raise ValueError(f"model={choices['model']} has its own depth: n={config['n']} needs {any_depth}")
    return {"choices": choices, **config}, {"choices": choices, **usual}


def is_user_error(error: Exception) -> bool:
    """Whether an error is the user's to mend, not ours."""
    if isinstance(error, InstantiationException):
        return error.__cause__ is None or is_user_error(error.__cause__)
    if isinstance(error, TypeError):
        return "unexpected keyword argument" in str(error)
    return type(error).__name__ in (LIGHTNING_REFUSES, *SUBMITIT_REFUSES) or isinstance(error, USER_ERRORS)


def format_error(error: BaseException) -> str:
    """One or two lines for an error of the config, of the command line, or of ours."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _format_choice(error.missing_cfg_file, error.options)
    key = re.search(r"full_key: (\S+)", str(error.__cause__))
    if isinstance(error, HydraException) and key and "is not in struct" in str(error.__cause__):
        return f"there is no key {key[1]}" + _did_you_mean(key[1], _keys()) + "; --help lists them all"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return format_error(error.__cause__)
    text = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
    if text.startswith("Ambiguous value for argument"):
        return f"{text.split(chr(39))[1]} is a sweep: say python -m src.train -m ..."
    if type(error).__name__ == LIGHTNING_REFUSES:
        return f"{text} Change the trainer.* keys; trainer.accelerator=auto takes the device that is there"
    return text


def _format_choice(choice: str, options: list[str]) -> str:
    group, _, name = choice.rpartition("/")
    net = re.fullmatch(r"(plain|resnet)(\d+)", name)
    if group == "model" and net:
        n, remainder = divmod(int(net[2]) - 2, 6)
        if remainder:
            nearest = " and ".join(f"model={net[1]} n={m} ({6 * m + 2} layers)" for m in (max(n, 1), max(n, 1) + 1))
            return f"there is no {name}: {net[2]} layers is not 6n+2; the nearest are {nearest}"
        return f"there is no file for {name}: say model={net[1]} n={n}"
    close = _did_you_mean(name, options)
    if group == "hydra/launcher" and not close:
        return f"{group}={name} is not installed: pip install hydra-{name.partition('_')[0]}-launcher"
    return f"there is no {group}={name}" + (close or f": {', '.join(options)}")


def _did_you_mean(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _keys() -> list[str]:
    """All keys that a command line with the present choices may set."""
    chosen = [a for a in sys.argv[1:] if (CONF / a.partition("=")[0]).is_dir() and "," not in a]
    config_name = "evaluate" if "evaluate" in sys.argv[0] else "train"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for overrides in (chosen, []):
            try:
                config = OmegaConf.to_container(compose(config_name, overrides))
            except HydraException:
                continue
            return [*flatten(config), *(group.name for group in CONF.iterdir() if group.is_dir())]
    return []
