"""A run in Weights & Biases (W&B): a view, and nothing that a result is taken from. The truth is metrics.csv.

W&B's id of a run is made of what the run is, so the same run is the same there, however often it is stopped, goes on
or is sent. Without a key or a network W&B writes into `wandb` in the run folder, which can be sent later.
"""

import hashlib
import json
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from src.runs.naming import flatten, identity
from src.runs.run_dir import RunDir

if TYPE_CHECKING:
    import wandb

ANSWER, START, END = 5, 30, 60  # seconds for W&B to answer at all, to take a run up, and to take in the rest of it


def run_id(config: dict[str, Any]) -> str:
    """What W&B calls a run: a hash of what the run is, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]


def flat_config(config: dict[str, Any], family: str, depth: int) -> dict[str, Any]:
    """A config for W&B's tables: one level, no dots in keys, and the names by which runs are compared.

    `data` and `model` are what was chosen, `n` and `shortcut` the net's own (null where it has none).
    """
    names = {key: config["choices"][key] for key in ("model", "data")}
    names |= {key: config["model"].get(key) for key in ("n", "shortcut")}
    flat = {key.replace(".", "_"): value for key, value in flatten(config).items()}
    return flat | names | {"family": family, "depth": depth}


@contextmanager
def dashboard(folder: RunDir, family: str, depth: int, project: str, entity: str | None) -> Iterator["WandbRun"]:
    """Shows what happens meanwhile to a run folder; at the end its results, and whether an exception ended it."""
    board = WandbRun(folder, family, depth, project, entity)
    try:
        yield board
    except BaseException:
        board.finish(exit_code=1)
        raise
    board.finish(exit_code=0)


class WandbRun:
    """One W&B run for one run folder. What W&B cannot do is said in a line, and the training goes on."""

    def __init__(self, folder: RunDir, family: str, depth: int, project: str, entity: str | None) -> None:
        self.folder, self.family, self.depth = folder, family, depth
        self.project, self.entity = project, entity
        self.run: wandb.Run | None = None
        self.sent, self.given_up = 0, False  # the last iteration that W&B has; whether it failed

    def start(self) -> None:
        """Takes the run up, with the rows that metrics.csv has: call it when those to come again are forgotten."""
        if self.run is None and not self.given_up:
            with self._or_give_up():
                self._start()

    def _start(self) -> None:
        import wandb

        rows = self.folder.rows() if self.folder.metrics.exists() else []
        how, why = mode()
        if how == "disabled":
            return
        # What an earlier try wrote offline is a part of what comes now: sent as well, it would be there twice.
        for part in self.folder.path.glob("wandb/offline-run-*"):
            shutil.rmtree(part)
        if how == "online":
            try:
                self.run = self._init(how)
                print(f"{self.folder.path} is shown at {self.run.url}", flush=True)
            except Exception as error:  # such as a key that the server refuses
                how, why = "offline", in_a_line(error)
                wandb.teardown()  # or it says that the run's id is in use
        if how == "offline":
            self.run = self._init(how)
            written = self.folder.path / "wandb" / Path(self.run.dir).parent.name
            print(
                f"W&B is offline ({why}); once the run is finished, python -m src.report --wandb {self.folder.path} "
                f"sends it; so does, the first time only, wandb sync {written}",
                flush=True,
            )
        self.run.define_metric("iteration")
        self.run.define_metric("*", step_metric="iteration")
        if self.run.resumed:
            self.sent = self.run.summary.get("iteration", 0)
        for row in rows:
            self.log(row)

    def _init(self, mode: str) -> "wandb.Run":
        import wandb

        config = self.folder.config
        choices = config["choices"]
        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=run_id(config),
            name=self.folder.path.name,
            group=choices.get("experiment") or choices["data"],
            job_type="train",
            tags=[self.family, choices["model"], choices["data"]],
            config=flat_config(config, self.family, self.depth),
            dir=self.folder.path,
            mode=mode,
            resume="allow",  # without it rows are added to those of the same id, or replace them: the server decides
            reinit="create_new",  # never the run of another job in this process
            settings=wandb.Settings(
                silent=True,  # our own line says where to look
                console="off",
                disable_code=True,
                disable_git=True,  # a remote's address may hold a password
                x_disable_stats=True,
                init_timeout=START,
                finish_timeout=END,
                finish_timeout_raises=True,
            ),
        )

    def log(self, row: dict[str, float]) -> None:
        """Shows a row of metrics.csv, unless W&B has it already."""
        iteration = int(row["iteration"])
        if self.run is not None and not self.given_up and iteration > self.sent:
            with self._or_give_up():
                self.run.log({**row, "iteration": iteration})
                self.sent = iteration

    def finish(self, exit_code: int) -> None:
        """Closes the run, with its results if it has any; a run that never started shows at least how it ended."""
        self.start()
        if self.run is not None:
            with self._or_give_up():
                results = self.folder.summary or {}
                self.run.summary.update({key: value for key, value in results.items() if value is not None})
                self.run.finish(exit_code=exit_code)

    @contextmanager
    def _or_give_up(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.given_up:
                print(
                    f"W&B failed ({in_a_line(error)}); {self.folder.metrics} has everything, and "
                    f"python -m src.report --wandb {self.folder.path} sends it once the run is finished",
                    flush=True,
                )
            self.given_up = True


def mode() -> tuple[str, str]:
    """How to run W&B, and, if it is to be offline, why. The user's own choice, as in WANDB_MODE, stands."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode == "disabled":
        return "disabled", "as asked for"
    if settings.mode in ("offline", "dryrun"):
        return "offline", "as asked for"
    if not _answers(settings.base_url):
        return "offline", f"{settings.base_url} does not answer"
    try:
        known = wandb.login(prompt=False, verify=False)  # wandb.init would ask at the terminal, and wait
    except Exception as error:
        return "offline", in_a_line(error)
    return ("online", "") if known else ("offline", "no key: wandb login takes one")


@cache
def _answers(url: str) -> bool:
    """Whether a server is there, asked once in a process; wandb itself would try for minutes."""
    try:
        urlopen(url, timeout=ANSWER).close()
    except HTTPError:
        return True  # an answer all the same
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # wandb has its own certificates
    except OSError:
        return False
    return True


def in_a_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
