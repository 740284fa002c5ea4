"""Compare two runs bit by bit: what an interrupted run must share with an undisturbed one."""

from typing import Any

import torch

from src.runs.run_dir import RunDir
from src.tables import read_csv

SIGNALS = ("forward_std", "backward_std")


def load_checkpoint(run_dir: RunDir) -> dict[str, Any]:
    """Return the last checkpoint of a run."""
    return torch.load(run_dir.last_checkpoint, weights_only=True)


def assert_same_run(
    one: RunDir, other: RunDir, iterations: int = 8, compiled: bool = False
) -> None:
    """Assert that two finished runs have the same CSV files, weights and training state.

    With `compiled` one of them was, which leaves the signals of the first iteration empty.
    """
    assert one.metrics.read_bytes() == other.metrics.read_bytes()
    if compiled:
        own, expected = (
            [{k: v for k, v in row.items() if k not in SIGNALS} for row in read_csv(run.layers)]
            for run in (one, other)
        )
        assert own == expected
    else:
        assert one.layers.read_bytes() == other.layers.read_bytes()

    a, b = load_checkpoint(one), load_checkpoint(other)
    assert a["global_step"] == b["global_step"] == iterations
    assert a["training"] == b["training"]
    assert_same_tensors(a["state_dict"], b["state_dict"])
    for state, other_state in zip(a["optimizer_states"], b["optimizer_states"], strict=True):
        assert_same_tensors(momenta(state), momenta(other_state))


def assert_same_tensors(one: dict[Any, torch.Tensor], other: dict[Any, torch.Tensor]) -> None:
    """Assert that two dicts have the same keys and bitwise identical tensors."""
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def momenta(optimizer_state: dict[str, Any]) -> dict[Any, torch.Tensor]:
    """Return the momentum buffers in the state of an SGD optimizer."""
    return {key: value["momentum_buffer"] for key, value in optimizer_state["state"].items()}
