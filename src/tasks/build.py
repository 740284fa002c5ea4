"""Build the module of a task other than classification, for training and for evaluation."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class

from src.data.object_data import ObjectData
from src.models.weights import load_backbone, read_metadata, read_weights
from src.tasks.base import Task


def build_task(config: dict[str, Any], net: Any, data: ObjectData, **training: Any) -> Task:
    """Build the module that `task=` names around a net.

    Args:
        config: The config of a run. If the run started from `weights`, batch norm is frozen.
        net: The net, with or without its classifier.
        data: The data, set up.
        training: The optimizer and the schedule; none for evaluation.
    """
    frozen = config.get("weights") is not None
    module = get_class(config["task"]["_target_"])
    return module(net, data, config["recipe"], config["seed"], frozen, **training)


def start_from_weights(path: Path, net: Any, data: ObjectData) -> None:
    """Load a file of weights into a net, and normalize images as they were for it.

    A mean image counts by its channel means. A file that does not say how images were normalized
    leaves that to the data.

    Raises:
        ValueError: The weights are of another net, or of one for images as BGR.
    """
    metadata = read_metadata(path)
    if metadata.get("channels", "RGB") != "RGB":
        raise ValueError(f"{path} is of a net for images as BGR, which no other task has")
    load_backbone(net, read_weights(path))
    if "mean" in metadata:
        data.mean, data.std = (
            torch.tensor(metadata[key]).reshape(3, -1).mean(1) for key in ("mean", "std")
        )
