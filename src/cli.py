"""How entry points answer a user's error: one or two lines, and a non-zero exit status.

Nothing heavy is imported here, so a mistyped word is answered at once. HYDRA_FULL_ERROR=1 shows the
traceback.
"""

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.config import CONF, known_keys
from src.familiar_words import explain_key, explain_options, explain_word
from src.runs.config_files import RENAMED_KEYS, RENAMED_VALUES

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)
# The last one is a loss or weight that is not finite.
USER_ERRORS = (*CONFIG_ERRORS, ValueError, OSError, FloatingPointError)
# By name, so that Lightning and submitit need not be imported.
LIGHTNING_ERROR = "MisconfigurationException"
USER_ERROR_NAMES = (LIGHTNING_ERROR, "FailedJobError", "UncompletedJobError")
# Of keys that were renamed, by their old names.
OLD_KEY_VALUES = {
    "step": {"eager": "none", "graph": "cudagraph", "compile": "inductor"},
    "recipe.schedule.divisor": {"10": "0.1", "10.0": "0.1", "5.0": "0.2", "2.0": "0.5"},
}


def run_entry_point(main: Callable[[], None]) -> None:
    """Run a Hydra entry point; a user's error ends the process with a message."""
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra then raises errors instead of printing them its own way.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = [rename_old_key(argument) for argument in sys.argv[1:]]
    answer = explain_options(sys.argv[1:])
    if answer:
        sys.exit(answer)
    try:
        main()
    except SystemExit as stop:
        if show_traceback and stop.__cause__:  # the error that `catch_user_errors` caught
            raise stop.__cause__ from None
        raise
    except Exception as error:
        if show_traceback or not is_user_error(error):
            raise
        sys.exit(format_error(error))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes", file=sys.stderr)
        sys.exit(130)


def catch_user_errors(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Make a user's error in a single run exit with a message instead of Hydra's own output.

    In a sweep the error is raised, so that Hydra's launcher sees it.
    """

    @functools.wraps(task)
    def catching(config: DictConfig) -> None:
        try:
            task(config)
        except Exception as error:
            if not is_user_error(error) or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            raise SystemExit(format_error(error)) from error

    return catching


def rename_old_key(argument: str) -> str:
    """Return an argument with the present names of its key and values; an old one prints a line."""
    key, equals, value = argument.partition("=")
    present_key = RENAMED_KEYS.get(key, key)
    values = OLD_KEY_VALUES.get(key) or RENAMED_VALUES.get(key, {})
    # A sweep has several values: step=graph,eager.
    present_value = ",".join(values.get(part, part) for part in value.split(","))
    renamed = f"{present_key}={present_value}"
    if not equals or renamed == argument:
        return argument
    if key == present_key:
        print(f"{argument} is now {renamed}", file=sys.stderr)
    else:
        print(f"{key}= is now {present_key}=: reading {renamed}", file=sys.stderr)
    return renamed


def is_user_error(error: BaseException) -> bool:
    """Return whether the user can fix an error, or whether it is a bug."""
    if isinstance(error, InstantiationException):
        # A `_target_` that names nothing has the failed import as its cause.
        unknown = str(error).startswith("Error locating target")
        return unknown or error.__cause__ is None or is_user_error(error.__cause__)
    if isinstance(error, TypeError):
        # A key under model or data, added with +, that the net or the data do not have.
        return "unexpected keyword argument" in str(error)
    return isinstance(error, USER_ERRORS) or type(error).__name__ in USER_ERROR_NAMES


def format_error(error: BaseException) -> str:
    """Return one or two lines for an error, with what to do about it."""
    cause = error.__cause__
    if isinstance(error, InstantiationException):
        target = re.match(r"Error locating target '([^']*)'", str(error))
        if target:
            return f"there is no {target[1]} to import: a _target_ names a function or a class"
        if cause is not None:
            return format_error(cause)
    if isinstance(error, MissingConfigException):
        listed = re.search(r"Could not load '(\w+)/(.+)'", str(error))  # such as logger=[csv,tenso]
        if listed:
            names = [path.stem for path in (CONF / listed[1]).glob("*.yaml")]
            return _format_choice(f"{listed[1]}/{listed[2]}", names)
        if error.missing_cfg_file and error.options:
            return _format_choice(error.missing_cfg_file, error.options)
    # Hydra's text names the file that lacks the key; OmegaConf's has the key with its groups.
    unknown_key = re.search(r"not in struct\s+full_key: (\S+)", str(cause))
    if isinstance(error, HydraException) and unknown_key:
        answer = explain_key(unknown_key[1])
        if answer:
            return answer
        config_name = "evaluate" if "evaluate" in sys.argv[0] else "train"
        suggestion = did_you_mean(unknown_key[1], known_keys(config_name, sys.argv[1:]))
        if unknown_key[1].startswith("trainer."):
            suggestion += f"; set +{unknown_key[1]}=VALUE for a flag of Lightning's Trainer"
        return f"there is no key {unknown_key[1]}{suggestion}; --help lists all keys"

    # More lines than two are of Hydra or Lightning, and say where in their code, not what to do.
    text = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
    if text.startswith("Ambiguous value for argument"):
        argument = text.split("'")[1]
        return explain_word(argument) or f"{argument} is a sweep: use python -m src.train -m ..."
    if text.startswith("Config group override must be"):  # Hydra does not say which
        return next(filter(None, map(explain_word, sys.argv[1:])), text)
    if type(error).__name__ == LIGHTNING_ERROR:
        return f"{text} Change the trainer.* keys; trainer.accelerator=auto uses what is there"
    return text


def _format_choice(choice: str, options: Sequence[str]) -> str:
    """Return the message for a name that a config group does not have."""
    group, _, name = choice.rpartition("/")
    net = re.fullmatch(r"(plain|resnet)(\d+)", name)
    if group == "model" and net:
        kind, depth = net[1], int(net[2])
        n, remainder = divmod(depth - 2, 6)
        if not remainder:
            return f"there is no file for {name}: set model={kind} n={n}"
        n = max(n, 1)
        below, above = (f"model={kind} n={m} ({6 * m + 2} layers)" for m in (n, n + 1))
        return (
            f"there is no {name}: {depth} layers is not 6n+2; the nearest are {below} and {above}"
        )

    suggestion = did_you_mean(name, options)
    if group == "hydra/launcher" and not suggestion:
        # Hydra's launchers are packages of their own: submitit_slurm is in hydra-submitit-launcher.
        package = f"hydra-{name.partition('_')[0]}-launcher"
        return f"{group}={name} is not installed: pip install {package}"
    return f"there is no {group}={name}" + (suggestion or f": {', '.join(options)}")


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """Return `; did you mean X?` for the most similar word, or nothing."""
    similar = difflib.get_close_matches(word, words, 1)
    return f"; did you mean {similar[0]}?" if similar else ""
