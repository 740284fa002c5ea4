"""Say what a finished run has reached."""

from typing import Any

from src.runs.run_dir import RunDir

# Of detection and segmentation, in percent, by key of summary.json.
TEST_MEANS = {
    "test_ap": "AP",
    "test_ap50": "AP50",
    "test_iou": "mean IoU",
    "test_accuracy": "pixel accuracy",
    "test_localization_error": "localization error",
    "test_localization_error_top5": "top-5 localization error",
}


def describe_results(run_dir: RunDir) -> str:
    """Return the results and the speed of a finished run in a sentence."""
    summary, protocol = run_dir.summary, run_dir.config["protocol"]
    assert summary is not None, run_dir.path
    classifies = run_dir.task == "classification"
    results = [f"training error {summary['train_error']:.2f}%"] if classifies else []
    # `center` has no file of its own: its results are the summary's.
    for name, test in (("test", summary), (protocol, run_dir.evaluation(protocol))):
        if test:
            results.append(f"{name} {_errors(test) if classifies else _means(test)}")
    return ", ".join([*results, f"{summary['images_per_second']:,.0f} images/s"])


def _errors(test: dict[str, Any]) -> str:
    return f"top-1 error {test['test_error']:.2f}% (top-5 {test['test_error_top5']:.2f}%)"


def _means(test: dict[str, Any]) -> str:
    means = {name: test.get(key) for key, name in TEST_MEANS.items()}
    return ", ".join(f"{name} {mean:.1f}" for name, mean in means.items() if mean is not None)
