"""Evaluate runs of other tasks than classification on the complete test set of their data."""

from typing import Any

from hydra.utils import instantiate
from pytorch_lightning import Callback

from src.data.object_data import ObjectData
from src.evaluation.evaluator import describe_evaluation, make_title, timed_test
from src.evaluation.image_classifier import load_classifier
from src.runs.config_files import check_targets
from src.runs.environment import silence_lightning
from src.runs.run_dir import RunDir
from src.tasks.base import EXAMPLES
from src.tasks.localization_task import LocalizationTask
from src.tasks.object_task import ObjectTask
from src.training.build import load_module


def evaluate_task_runs(
    run_dirs: list[RunDir],
    trainer_config: dict[str, Any],
    protocol: str,
    *callbacks: Callback,
    show: int = 0,
    classifier: RunDir | None = None,
) -> None:
    """Evaluate a run, or several detectors together, and print the metrics.

    The results of a single run are saved in its run directory: by itself and by the protocol
    `center` what a finished run keeps of its test besides the summary, otherwise the metrics.

    Args:
        run_dirs: Runs with a checkpoint, on the same images.
        trainer_config: Arguments of Lightning's Trainer.
        protocol: `center`, or another name that the task takes.
        callbacks: More callbacks for Lightning's Trainer.
        show: Number of test images to draw into the run directory.
        classifier: A run whose net finds the classes for a localizer.

    Raises:
        ValueError: The protocol or a classifier does not apply to the task, or the runs have other
            images.
    """
    silence_lightning()
    module, data = load_tested(run_dirs, protocol, classifier)
    images = len(data.test_labels)
    trainer, seconds = timed_test(module, data, images, trainer_config, callbacks)
    metrics = module.pop_eval_metrics()
    if not trainer.is_global_zero:
        return

    run_dir = run_dirs[0]
    title = make_title([run.path.name for run in run_dirs], run_dir.config["choices"]["data"])
    suffix = "" if protocol == "center" else f", {protocol}"
    print(f"{title}{suffix}: {module.describe_test(metrics)} ({images:,} test images)", flush=True)
    if len(run_dirs) > 1:
        return
    picture = run_dir.path / ("examples.png" if not suffix else f"examples-{protocol}.png")
    if protocol == "center" and not classifier:
        module.write_artifacts(run_dir, data, show or EXAMPLES)
    else:
        results = {"protocol": protocol, **module.test_results(metrics), "images": images}
        results |= describe_evaluation(trainer, images / seconds)
        run_dir.write_evaluation(results)
        if show:
            module.draw_examples(picture, data, show)
    if show:
        print(f"written: {picture}")


def load_tested(
    run_dirs: list[RunDir], protocol: str, classifier: RunDir | None
) -> tuple[ObjectTask, ObjectData]:
    """Return the module of the first run, ready to be tested as `evaluate_task_runs` is asked to.

    Raises:
        ValueError: As for `evaluate_task_runs`.
    """
    module, data = load_task(run_dirs[0])
    module.test_by(protocol, load_others(run_dirs[1:], data))
    if classifier:
        if not isinstance(module, LocalizationTask):
            raise ValueError("classifier= finds the classes for a run of localization only")
        module.localize_classes_of(load_classifier(classifier, len(data.classes)))
    return module, data


def load_others(run_dirs: list[RunDir], data: ObjectData) -> list[ObjectTask]:
    """Return the modules of further runs, which must have the same images and classes.

    Raises:
        ValueError: One has others.
    """
    modules = []
    for run_dir in run_dirs:
        module, own = load_task(run_dir)
        if own.fingerprint != data.fingerprint:
            raise ValueError(
                f"{run_dir.path} has other images or classes: all detectors of an ensemble must "
                "have the same"
            )
        modules.append(module)
    return modules


def load_task(run_dir: RunDir) -> tuple[ObjectTask, ObjectData]:
    """Return the module of a run with its last weights, and its data, set up."""
    config = run_dir.config
    check_targets(config, run_dir.path / "config.yaml")
    data = instantiate(config["data"], seed=config["seed"], _convert_="all")
    data.prepare_data()
    data.setup("test")
    return load_module(run_dir, data), data
