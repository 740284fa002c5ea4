"""Which run of Weights & Biases (W&B) a run directory belongs to, kept in its wandb.json.

The id is not a function of the run key alone: a run repeated in another directory, or by a
colleague in the same project, must not be appended to the first one's.
"""

import hashlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import yaml

from src.runs.atomic_io import atomic_write
from src.runs.config_files import CONF
from src.runs.run_dir import RunDir


@dataclass(frozen=True)
class WandbIdentity:
    """A run of W&B.

    Attributes:
        entity: the user or the team that owns the project; None until W&B has named the default.
        project: its project.
        id: 12 hexadecimal digits of the run key's hash and 4 random ones, or what an agent's W&B
            sweep assigned.
    """

    entity: str | None
    project: str
    id: str

    @classmethod
    def of(cls, run_dir: RunDir, project: str | None = None, entity: str | None = None) -> Self:
        """Return the run of W&B that a run directory belongs to; the first start creates its id.

        Args:
            run_dir: the directory of the run.
            project: in place of that in wandb.json or in the config.
            entity: in place of that in wandb.json or in the config.
        """
        if is_agent_trial():  # wandb.init ignores what it is passed there
            owner, sweep_project = (os.environ.get(f"WANDB_{k}") for k in ("ENTITY", "PROJECT"))
            return cls(owner, sweep_project or "uncategorized", os.environ["WANDB_RUN_ID"])
        path = _path(run_dir)
        if path.exists():
            stored = cls(**json.loads(path.read_text()))
        else:
            options = wandb_options(run_dir)
            stored = cls(options["entity"], options["project"], new_id(run_dir))
        return replace(stored, project=project or stored.project, entity=entity or stored.entity)

    def write(self, run_dir: RunDir) -> None:
        """Write wandb.json, which a resumed run reads."""
        content = json.dumps(asdict(self), indent=2).encode()
        atomic_write(_path(run_dir), lambda file: file.write(content))


def wandb_options(run_dir: RunDir) -> dict[str, Any]:
    """Return the keys of `logger.wandb`, which a run with another logger has by default."""
    defaults = yaml.safe_load((CONF / "logger" / "wandb.yaml").read_text())["wandb"]
    return defaults | run_dir.config.get("logger", {}).get("wandb", {})


def _path(run_dir: RunDir) -> Path:
    return run_dir.path / "wandb.json"


def new_id(run_dir: RunDir) -> str:
    """Return an id that no other run of W&B has."""
    key = json.dumps(run_dir.key, sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:12] + secrets.token_hex(2)


def is_agent_trial() -> bool:
    """Return whether `wandb agent` started this process as a trial of a W&B sweep."""
    return "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ
