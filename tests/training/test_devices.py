"""How many devices a run asks for, and which ones a sweep has."""

import math
import os

import pytest
import torch

from src.training.devices import count_devices, find_slots


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (1, 1),
        ("2", 2),
        ([0], 1),
        ([0, 3], 2),
        ("0,3", 2),
        ([3], 1),
        ("3,", 1),
        ("auto", math.inf),
        (-1, math.inf),
        ("-1", math.inf),
    ],
)
def test_devices_are_counted_in_each_of_lightnings_ways_to_write_them(devices, expected):
    assert count_devices(devices) == expected


@pytest.mark.parametrize("devices", [0, "0", [], "abc", "0,x", -2, ""])
def test_devices_that_there_cannot_be_are_refused(devices):
    with pytest.raises(ValueError, match=r"must be a number from 1 on, a list of indices, or auto"):
        count_devices(devices)


def test_the_slots_share_the_cpu_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert find_slots("auto", 1) == (["0", "1", "2", "3"], 4)
    assert find_slots("auto", 3) == (["0", "1", "2", "3"] * 3, 1)
    assert find_slots("cpu", 2) == (["cpu", "cpu"], 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert find_slots("gpu", 1) == (["2", "3"], 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which torch has read
    assert find_slots("gpu", 1) == (["2", "3"], 1)
    with pytest.raises(ValueError, match="sweep.jobs_per_device=0 must be at least 1"):
        find_slots("auto", 0)
