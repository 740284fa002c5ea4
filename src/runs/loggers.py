"""The loggers that a config asks for in addition to metrics.csv."""

from importlib.util import find_spec
from typing import Any

# What the loggers of conf/logger/ import and install, by their names.
PACKAGES = ("wandb", "tensorboard", "mlflow")


def is_shown_in_wandb(config: dict[str, Any]) -> bool:
    """Return whether a run is shown in Weights & Biases while it trains."""
    return "wandb" in config["logger"]


def check_loggers(loggers: dict[str, Any]) -> None:
    """Check the node `logger` of a config.

    Raises:
        ValueError: a value that is not a logger, or a logger whose package is not installed.
    """
    for name, options in loggers.items():
        if not isinstance(options, dict) or (name != "wandb" and "_target_" not in options):
            raise ValueError(
                f"logger.{name} is not a logger: set +logger.{name}._target_=CLASS to a logger of "
                f"Lightning's, and its arguments with +logger.{name}."
            )
        if name in PACKAGES and find_spec(name) is None:
            raise ValueError(f"logger={name} needs the package {name}: pip install {name}")
