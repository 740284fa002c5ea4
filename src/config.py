"""What a run folder's config may call: Hydra calls whatever a `_target_` names, and a folder may be a stranger's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from src.cli import CONF


def check_targets(config: dict[str, Any], path: Path) -> None:
    """Raises ValueError if the net or the data of the run in `path` are made by what no file of conf names."""
    known = {name for file in CONF.rglob("*.yaml") for name in targets(yaml.safe_load(file.read_text()))}
    foreign = sorted({str(name) for name in targets([config["model"], config["data"]])} - known)
    if foreign:
        raise ValueError(
            f"{path / 'config.yaml'} calls {foreign[0]}, which is not run: "
            "if it is code of your own, name it in a file of conf/model or conf/data"
        )


def targets(value: Any) -> Iterator[Any]:
    """All values of `_target_` in nested dicts and lists."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from targets(item)
