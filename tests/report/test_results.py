import csv

from conftest import ROOT

from src.report.results import BY_DEPTH, CURVES
from src.tasks.classification import Classifier
from src.training.callbacks.metrics import metric_columns


def test_what_is_drawn_is_what_a_run_writes():
    assert set(CURVES) <= set(metric_columns(Classifier))
    with open(ROOT / "experiments" / "demo" / "results.csv", newline="") as file:
        assert set(BY_DEPTH) <= set(next(csv.reader(file)))
