"""Results of detectors and segmenters have tables, a figure and a part of the page of their own."""

import json
import re

import pytest
import yaml
from run_dirs import make_config, write_run

from src.report.detection import detection_table
from src.report.detection_plot import draw_metric, draw_precision
from src.report.reading import read_runs
from src.report.report_dir import write_report
from src.tables import read_csv, write_csv

CLASSES = {"cat": 60.0, "dog": 40.0}


def write_detector(root, kind, seed, ap, finished=True, depth=20):
    """Write the run directory of a detector with an average precision after two evaluations."""
    config = make_config(kind, depth, seed, data="scenes")
    config["choices"]["task"] = "detection"
    path = write_run(root, config, final=(0, 0) if finished else None)
    rows = [{"iteration": i, "train/loss": 1.0, "test/ap": ap * i / 400} for i in (200, 400)]
    write_csv(path / "metrics.csv", rows)
    if finished:
        summary = json.loads((path / "summary.json").read_text())
        for key in ("train_error", "val_error", "test_error", "test_error_top5", "macs"):
            del summary[key]
        aps = {"test_ap": ap, "test_ap50": ap + 20, "test_ap75": ap - 10, "test_ap_small": ap}
        none = {"test_ap_medium": None, "test_ap_large": None}
        per_class = {name: value + seed for name, value in CLASSES.items()}
        summary |= aps | none | {"task": "detection", "test_ap_per_class": per_class}
        (path / "summary.json").write_text(json.dumps(summary))
        write_csv(
            path / "precision_recall.csv",
            [{"recall": i, "cat": 100.0 - i, "dog": 50.0 - i / 2} for i in range(101)],
        )
        (path / "examples.png").write_bytes(b"a picture")
    return path


@pytest.fixture
def detectors(tmp_path):
    """Two seeds of a plain and of a residual detector."""
    for seed in (0, 1):
        write_detector(tmp_path, "plain", seed, 12.0 + seed)
        write_detector(tmp_path, "resnet", seed, 60.0 + seed)
    runs, skipped = read_runs([tmp_path])
    assert not skipped
    return runs


def cells(table):
    """Return the cells of a Markdown table by line."""
    return [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()]


def test_the_table_has_means_over_the_seeds_and_no_number_for_sizes_without_objects(detectors):
    means, classes = detection_table([run.row for run in detectors]).split("\n\n")
    head, _, plain, residual = cells(means)
    assert head[3:9] == ["AP", "AP50", "AP75", "AP small", "AP medium", "AP large"]
    assert plain[3] == "12.50 ± 0.71"
    assert residual[3:6] == ["60.50 ± 0.71", "80.50 ± 0.71", "50.50 ± 0.71"]
    assert residual[7:9] == ["-", "-"]
    head, _, plain, residual = cells(classes)
    assert head[1:] == ["cat", "dog"]
    assert residual[1:] == ["60.50 ± 0.71", "40.50 ± 0.71"]


def test_data_with_the_metric_of_voc_have_it_in_both_tables(tmp_path):
    for seed in (0, 1):
        path = write_detector(tmp_path, "resnet", seed, 60.0)
        summary = json.loads((path / "summary.json").read_text())
        summary |= {"test_voc_ap": 70.0 + seed, "test_voc_ap_per_class": {"cat": 75.0, "dog": 65.0}}
        (path / "summary.json").write_text(json.dumps(summary))
    rows = [run.row for run in read_runs([tmp_path])[0]]
    write_csv(tmp_path / "rows.csv", rows)
    means, classes = detection_table(read_csv(tmp_path / "rows.csv")).split("\n\n")
    head, _, residual = cells(means)
    assert residual[head.index("VOC AP")] == "70.50 ± 0.71"
    assert residual[head.index("AP")] == "60.00 ± 0.00"
    assert cells(classes)[0] == ["VOC AP of the classes", "cat", "dog"]
    assert cells(classes)[2][1:] == ["75.00 ± 0.00", "65.00 ± 0.00"]


def test_detectors_with_and_without_the_metric_of_voc_are_in_one_table(tmp_path):
    path = write_detector(tmp_path, "resnet", 0, 60.0)
    summary = json.loads((path / "summary.json").read_text())
    summary |= {"test_voc_ap": 70.0, "test_voc_ap_per_class": {"cat": 75.0, "dog": 65.0}}
    (path / "summary.json").write_text(json.dumps(summary))
    write_detector(tmp_path, "plain", 0, 50.0)
    rows = [run.row for run in read_runs([tmp_path])[0]]
    head, _, plain, residual = cells(detection_table(rows).split("\n\n")[0])
    assert (plain[head.index("AP")], residual[head.index("AP")]) == ("50.00", "60.00")
    assert (plain[head.index("VOC AP")], residual[head.index("VOC AP")]) == ("-", "70.00")


def test_a_table_from_a_csv_file_equals_that_of_the_runs(detectors, tmp_path):
    rows = [run.row for run in detectors]
    write_csv(tmp_path / "rows.csv", rows)
    assert "ap of cat" in rows[0]
    assert detection_table(read_csv(tmp_path / "rows.csv")) == detection_table(rows)


def test_the_figure_has_a_line_for_each_net_over_iterations_and_recall(detectors):
    figure = draw_precision(detectors)
    by_iteration, by_recall = figure.axes
    curves = [list(line.get_ydata()) for line in by_iteration.lines]
    assert curves == [[6.25, 12.5], [30.25, 60.5]]
    assert len(by_recall.lines) == 2
    # The mean over both classes, which is 75 at a recall of 0.
    assert list(by_recall.lines[0].get_ydata()[[0, 100]]) == [75, 0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["plain-20", "residual-20"]


def test_runs_without_an_evaluation_have_no_figure(tmp_path):
    path = write_detector(tmp_path, "plain", 0, 12.0, finished=False)
    (path / "metrics.csv").unlink()
    runs, _ = read_runs([tmp_path])
    assert draw_precision(runs) is None


def test_a_report_of_classifiers_and_detectors_has_separate_tables(detectors, tmp_path):
    write_run(tmp_path, make_config("resnet", 20, data="digits"), errors=[(50, 60)], final=(1, 2))
    write_detector(tmp_path, "resnet", 2, 61.0, finished=False)
    runs, _ = read_runs([tmp_path])
    out = tmp_path / "report"
    text = "\n".join(write_report(runs, [], out))
    assert {path.name for path in out.glob("*.csv")} >= {"digits.csv", "scenes-detection.csv"}
    assert len(read_csv(out / "scenes-detection.csv")) == 4
    assert "resnet20 minus plain20: AP50 +48.00 points" in text
    page = (out / "index.html").read_text()
    assert page.count('<article data-name="') == 2
    assert page.count("data:image/png;base64,YSBwaWN0dXJl") == 2  # one for each net
    assert "unfinished" in page


def write_segmenter(root, kind, seed, iou, finished=True):
    """Write the run directory of a segmenter with a mean IoU after two evaluations."""
    config = make_config(kind, 20, seed, data="scenes")
    config["choices"]["task"] = "segmentation"
    path = write_run(root, config, final=(0, 0) if finished else None)
    rows = [{"iteration": i, "train/loss": 1.0, "test/iou": iou * i / 400} for i in (200, 400)]
    write_csv(path / "metrics.csv", rows)
    if finished:
        summary = json.loads((path / "summary.json").read_text())
        for key in ("train_error", "val_error", "test_error", "test_error_top5", "macs"):
            del summary[key]
        # A class that is neither in the masks nor predicted has no IoU.
        per_class = {"background": 99.0, "cat": iou} | ({"dog": 1.0} if kind == "resnet" else {})
        summary |= {"test_iou": iou, "test_accuracy": iou + 30, "test_iou_per_class": per_class}
        (path / "summary.json").write_text(json.dumps(summary | {"task": "segmentation"}))
        (path / "examples.png").write_bytes(b"a picture")
    return path


@pytest.fixture
def segmenters(tmp_path):
    """Two seeds of a plain and of a residual segmenter."""
    for seed in (0, 1):
        write_segmenter(tmp_path, "plain", seed, 40.0 + seed)
        write_segmenter(tmp_path, "resnet", seed, 60.0 + seed)
    runs, skipped = read_runs([tmp_path])
    assert not skipped
    return runs


def test_the_table_of_segmenters_has_mean_iou_accuracy_and_iou_of_each_class(segmenters, tmp_path):
    rows = [run.row for run in segmenters]
    means, classes = detection_table(rows).split("\n\n")
    head, _, plain, residual = cells(means)
    assert head[3:5] == ["mean IoU", "pixel accuracy"]
    assert plain[3:5] == ["40.50 ± 0.71", "70.50 ± 0.71"]
    assert residual[3:5] == ["60.50 ± 0.71", "90.50 ± 0.71"]
    head, _, plain, residual = cells(classes)
    assert head == ["IoU of the classes", "background", "cat", "dog"]
    assert plain[1:] == ["99.00 ± 0.00", "40.50 ± 0.71", "-"]
    write_csv(tmp_path / "rows.csv", rows)
    assert detection_table(read_csv(tmp_path / "rows.csv")) == detection_table(rows)


def test_the_figure_of_segmenters_has_mean_iou_over_iterations(segmenters):
    (axes,) = draw_metric(segmenters, "iou", "mean IoU").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[20.25, 40.5], [30.25, 60.5]]
    assert draw_metric([], "iou", "mean IoU") is None


def test_detectors_and_segmenters_of_one_data_set_are_apart_in_the_report(segmenters, tmp_path):
    write_detector(tmp_path / "detectors", "resnet", 0, 60.0)
    write_segmenter(tmp_path, "resnet", 2, 61.0, finished=False)
    runs, _ = read_runs([tmp_path])
    out = tmp_path / "report"
    text = "\n".join(write_report(runs, [], out))
    assert len(read_csv(out / "scenes-detection.csv")) == 1
    assert len(read_csv(out / "scenes-segmentation.csv")) == 4
    assert (out / "scenes-segmentation-iou.svg").exists()
    assert "mean IoU +20.00 points" in text
    page = (out / "index.html").read_text()
    assert page.count('<article data-name="') == 2
    assert "the true classes above the predicted ones" in page


def test_each_protocol_of_a_detector_has_a_row_with_its_gain(tmp_path):
    for seed, ap in enumerate((60.0, 61.0, 62.0)):
        path = write_detector(tmp_path, "resnet", seed, ap)
        results = {"protocol": "refine", "test_ap": ap + 1 + seed, "test_ap50": 80.0}
        per_class = {"test_ap_per_class": {"cat": 70.0, "dog": 30.0}}
        (path / "refine.json").write_text(json.dumps(results | per_class))
    runs, _ = read_runs([tmp_path])
    write_csv(tmp_path / "rows.csv", [row for run in runs for row in run.evaluations])
    means, classes = detection_table(read_csv(tmp_path / "rows.csv")).split("\n\n")
    head, _, center, refined = cells(means)
    gain = head.index("AP minus baseline")
    assert (center[0], refined[0]) == ("resnet20", "resnet20, refine")
    assert refined[3] == "63.00 ± 2.00"
    assert (center[gain], refined[gain].partition(" ")[0]) == ("-", "+2.00")
    assert cells(classes)[3] == ["resnet20, refine", "70.00 ± 0.00", "30.00 ± 0.00"]


def test_what_a_classifier_adds_to_the_center_of_a_localizer_is_in_its_row(tmp_path):
    path = write_detector(tmp_path, "resnet", 0, 60.0)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["choices"]["task"] = "localization"
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    summary = json.loads((path / "summary.json").read_text())
    of_class = {"test_localization_error_per_class": {"cat": 20.0, "dog": 40.0}}
    summary |= {"task": "localization", "test_localization_error": 30.0} | of_class
    (path / "summary.json").write_text(json.dumps(summary))
    for protocol, error in (("center", 30.0), ("dense", 20.0)):
        errors = {"test_localization_error": error, "test_localization_error_top5": error + 5}
        (path / f"{protocol}.json").write_text(json.dumps({"protocol": protocol} | errors))
    (run,), _ = read_runs([tmp_path])
    means, classes = detection_table(run.evaluations).split("\n\n")
    head, _, center, dense = cells(means)
    title = "localization error (%)"
    assert head[3:6] == [f"{title}, class given", f"top-1 {title}", f"top-5 {title}"]
    assert center[3:6] == ["30.00", "-", "35.00"]
    assert dense[3:6] == ["20.00", "-", "25.00"]
    assert cells(classes)[2][1:] == ["20.00", "40.00"]
