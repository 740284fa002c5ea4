"""Show a run in Weights & Biases (W&B), as a view: every result is taken from the run directory.

The id of a W&B run is derived from the run key, so a run is the same there however often it is
interrupted, resumed or sent. Without a key or a network W&B writes into `wandb` in the run
directory, to be sent later. Lightning's WandbLogger is not used: it takes over an existing run,
reports no exit code and has no fallback.
"""

import hashlib
import json
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from src.runs.config_files import flatten
from src.runs.naming import family
from src.runs.run_dir import RunDir
from src.training.callbacks.base import RunCallback

if TYPE_CHECKING:
    import wandb

    from src.training.callbacks.metrics import Metrics

# Seconds that W&B gets to answer at all, to start a run, and to take in what is left at the end.
ANSWER_TIMEOUT, START_TIMEOUT, FINISH_TIMEOUT = 5, 30, 60


def run_id(run_dir: RunDir) -> str:
    """Return the id of a run in W&B: a hash of its run key, 16 hexadecimal digits."""
    key = json.dumps(run_dir.key, sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def flat_config(config: dict[str, Any], depth: int | None) -> dict[str, Any]:
    """Return a config for W&B's tables: one level, no dots in keys, names to compare runs by.

    `data` and `model` are what was chosen, `n` and `shortcut` the net's own (None where it has
    none).
    """
    names = {key: config["choices"][key] for key in ("model", "data")}
    names |= {key: config["model"].get(key) for key in ("n", "shortcut")}
    flat = {key.replace(".", "_"): value for key, value in flatten(config).items()}
    return flat | names | {"family": family(config), "depth": depth}


class WandbRun(RunCallback):
    """One W&B run for one run directory; a failure of W&B is reported and never ends the training.

    As a context manager it closes the W&B run, with the results and with the exit code of the
    block.

    Args:
        run_dir: the directory of the run.
        metrics: the callback that writes metrics.csv during training; None to send a finished run.
        depth: the depth of the net; by default that of the net being trained.
        project, entity: of W&B; by default those of the run's config.
    """

    def __init__(
        self,
        run_dir: RunDir,
        metrics: "Metrics | None" = None,
        depth: int | None = None,
        project: str | None = None,
        entity: str | None = None,
    ) -> None:
        logger = run_dir.config["logger"]
        self.run_dir, self.metrics, self.depth = run_dir, metrics, depth
        self.project = project or logger.get("project")
        self.entity = entity or logger.get("entity")
        self.run: wandb.Run | None = None
        self.last_sent = 0  # the last iteration that W&B has
        self.failed = False

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Close the W&B run."""
        self.finish(exit_code=0 if kind is None else 1)

    def on_train_start(self, trainer: object, module: Any) -> None:
        """Start the W&B run, now that metrics.csv is truncated to where the run resumes."""
        self.depth = module.net.depth
        self.start()

    def on_train_batch_end(self, *_: object) -> None:
        """Send a row that was just written."""
        self._send_new_row()

    def on_validation_end(self, *_: object) -> None:
        """Send the row of the evaluation."""
        self._send_new_row()

    def _send_new_row(self) -> None:
        if self.metrics and self.metrics.written > self.last_sent:
            self.send(self.metrics.row)

    def start(self) -> None:
        """Start or resume the W&B run, with the rows that metrics.csv has."""
        if self.run is None and not self.failed:
            with self._report_failure():
                self._start()

    def _start(self) -> None:
        mode, reason = choose_mode()
        if mode == "disabled":
            return
        # An earlier attempt's offline files hold a part of what is sent now: sent as well, it would
        # be there twice.
        for part in self.run_dir.path.glob("wandb/offline-run-*"):
            shutil.rmtree(part)
        run: wandb.Run | None = None
        if mode == "online":
            run, reason = self._start_online()
        self.run = run = run or self._start_offline(reason)
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        if run.resumed:
            self.last_sent = run.summary.get("iteration", 0)
        for row in self.run_dir.rows():
            self.send(row)

    def _start_online(self) -> "tuple[wandb.Run | None, str]":
        """Return the run, or None and the reason if the server refuses it, as for its key."""
        import wandb

        try:
            run = self._init("online")
        except Exception as error:
            wandb.teardown()  # otherwise the next init reports that the run's id is in use
            return None, first_line(error)
        print(f"{self.run_dir.path} is shown at {run.url}", flush=True)
        return run, ""

    def _start_offline(self, reason: str) -> "wandb.Run":
        run = self._init("offline")
        files = self.run_dir.path / "wandb" / Path(run.dir).parent.name
        print(
            f"W&B is offline ({reason}); when the run is finished, python -m src.report --wandb "
            f"{self.run_dir.path} sends it, or, for the first time only, wandb sync {files}",
            flush=True,
        )
        return run

    def _init(self, mode: Literal["online", "offline"]) -> "wandb.Run":
        import wandb

        config = self.run_dir.config
        choices = config["choices"]
        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=run_id(self.run_dir),
            name=self.run_dir.path.name,
            group=choices.get("experiment") or choices["data"],
            job_type="train",
            tags=[family(config), choices["model"], choices["data"]],
            config=flat_config(config, self.depth),
            dir=self.run_dir.path,
            mode=mode,
            # Without it rows are added to those of the same id, or replace them: the server
            # decides.
            resume="allow",
            reinit="create_new",  # never the run of another job in this process
            settings=wandb.Settings(
                silent=True,  # our own message says where to look
                console="off",
                disable_code=True,
                disable_git=True,  # a remote's address may contain a password
                x_disable_stats=True,
                init_timeout=START_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
                finish_timeout_raises=True,
            ),
        )

    def send(self, row: dict[str, float]) -> None:
        """Send a row of metrics.csv, unless W&B has it already.

        Not named `log`: Lightning sets that attribute of every callback to the LightningModule's.
        """
        iteration = int(row["iteration"])
        if self.run is not None and not self.failed and iteration > self.last_sent:
            with self._report_failure():
                self.run.log({**row, "iteration": iteration})
                self.last_sent = iteration

    def finish(self, exit_code: int) -> None:
        """Close the W&B run, with the results if there are any."""
        self.start()  # a run that failed before training shows at least how it ended
        if self.run is not None:
            with self._report_failure():
                results = self.run_dir.summary or {}
                known = {key: value for key, value in results.items() if value is not None}
                self.run.summary.update(known)
                self.run.finish(exit_code=exit_code)

    @contextmanager
    def _report_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.failed:
                print(
                    f"W&B failed ({first_line(error)}); {self.run_dir.metrics} has everything, and "
                    "python -m "
                    f"src.report --wandb {self.run_dir.path} sends it when the run is finished",
                    flush=True,
                )
            self.failed = True


def choose_mode() -> tuple[str, str]:
    """Return W&B's mode, and why it is offline; the user's own choice (WANDB_MODE) comes first."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode == "disabled":
        return "disabled", "as requested"
    if settings.mode in ("offline", "dryrun"):
        return "offline", "as requested"
    if not server_answers(settings.base_url):
        return "offline", f"{settings.base_url} does not answer"
    try:
        # wandb.init would ask at the terminal and wait.
        has_key = wandb.login(prompt=False, verify=False)
    except Exception as error:
        return "offline", first_line(error)
    return ("online", "") if has_key else ("offline", "no API key: run wandb login")


@cache
def server_answers(url: str) -> bool:
    """Return whether a server answers, asked once per process; wandb would try for minutes."""
    try:
        urlopen(url, timeout=ANSWER_TIMEOUT).close()
    except HTTPError:
        return True  # an answer all the same
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # wandb has its own certificates
    except OSError:
        return False
    return True


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type."""
    return str(error).strip().split("\n")[0] or type(error).__name__
