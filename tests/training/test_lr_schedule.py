"""The paper's learning-rate schedules, at each of their boundaries."""

import pytest
from hydra.utils import instantiate
from run_comparison import assert_same_run, load_checkpoint

from src.config import compose_config
from src.training.lr_schedule import MilestoneSchedule, PlateauSchedule, make_schedule

PAPER = {"iterations": 64000, "lr": 0.1, "milestones": [0.5, 0.75], "gamma": 0.1}
WARM = {"warmup_from_n": 18, "warmup_lr": 0.01, "warmup_error": 80.0}


@pytest.mark.parametrize(
    ("iteration", "lr"),
    [(0, 0.1), (31999, 0.1), (32000, 0.01), (47999, 0.01), (48000, 0.001), (63999, 0.001)],
)
def test_the_papers_learning_rates_at_every_milestone(iteration, lr):
    assert MilestoneSchedule(9, **PAPER, **WARM)(iteration) == lr


def test_milestones_are_fractions_of_the_run():
    schedule = MilestoneSchedule(9, **PAPER | {"iterations": 8}, **WARM)
    lrs = [schedule(i) for i in range(8)]
    assert lrs == [0.1] * 4 + [0.01] * 2 + [0.001] * 2


@pytest.mark.parametrize(
    ("n", "from_n", "warmed_up"),
    [(17, 18, False), (18, 18, True), (200, 18, True), (18, None, False)],
)
def test_nets_from_a_given_n_are_warmed_up(n, from_n, warmed_up):
    schedule = MilestoneSchedule(n, **PAPER, **WARM | {"warmup_from_n": from_n})
    assert schedule(0) == (0.01 if warmed_up else 0.1)


def test_a_net_without_an_n_is_not_warmed_up():
    assert MilestoneSchedule(None, **PAPER, **WARM)(0) == 0.1


def test_the_warm_up_lasts_until_the_training_error_is_below_80_and_does_not_come_back():
    schedule = MilestoneSchedule(18, **PAPER, **WARM)
    for error, lr in [(90, 0.01), (80, 0.01), (79.99, 0.1), (95, 0.1)]:
        schedule.on_train_error(error)
        assert schedule(500) == lr
    assert schedule(32000) == 0.01


def test_the_linear_warm_up_of_detectors_ends_at_its_iteration_and_does_not_delay_milestones():
    schedule = MilestoneSchedule(None, **PAPER | {"iterations": 8}, **WARM, warmup_iterations=5)
    lrs = [schedule(i) for i in range(8)]
    assert lrs == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.01, 0.01, 0.001, 0.001])


def test_a_warm_up_that_never_ends_does_not_raise_the_last_learning_rates():
    """A net that does not learn (plain-110) still gets the paper's last learning rate."""
    schedule = MilestoneSchedule(18, **PAPER, **WARM)
    assert (schedule(31999), schedule(32000), schedule(48000)) == (0.01, 0.01, 0.001)


@pytest.mark.parametrize("error", [90, 50])
def test_whether_the_warm_up_has_ended_is_restored(error):
    schedule, resumed = (
        MilestoneSchedule(18, **PAPER, **WARM),
        MilestoneSchedule(18, **PAPER, **WARM),
    )
    schedule.on_train_error(error)
    resumed.load_state_dict(schedule.state_dict())
    assert [resumed(i) for i in (0, 400, 32000)] == [schedule(i) for i in (0, 400, 32000)]


def plateau(patience=2, threshold=0.5, max_reductions=None):
    return PlateauSchedule(0.1, 0.1, patience, threshold, max_reductions, n=None, iterations=100)


@pytest.mark.parametrize(
    ("errors", "reductions"),
    [
        ([90, 80, 70, 60], 0),
        ([90, 90, 90], 1),
        ([90, 89.5, 89.5], 1),  # half a point is not more than the threshold
        ([90, 89.4, 89.4], 0),
        ([90, 91, 80, 81], 0),  # twice one evaluation without an improvement
        ([90, 91, 92, 93, 94], 2),
        (
            [50, 60, 60, 49.8, 49.7, 40],
            2,
        ),  # compared with the best, slow progress is no improvement
    ],
)
def test_the_learning_rate_is_reduced_after_so_many_evaluations_without_improvement(
    errors, reductions
):
    schedule = plateau()
    for error in errors:
        schedule.on_eval_error(error)
    assert schedule(7) == pytest.approx(0.1 / 10**reductions)


@pytest.mark.parametrize(
    ("max_reductions", "reductions"),
    [(0, [0, 0, 0, 0, 0]), (1, [0, 1, 1, 1, 1]), (3, [0, 1, 2, 3, 3]), (None, [0, 1, 2, 3, 4])],
)
def test_the_learning_rate_is_reduced_at_most_so_often(max_reductions, reductions):
    schedule, found = plateau(patience=1, max_reductions=max_reductions), []
    for _ in reductions:
        schedule.on_eval_error(90)
        found.append(schedule.reductions)
        assert schedule(7) == pytest.approx(0.1 / 10 ** found[-1])
    assert found == reductions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"milestones": [32000, 48000]}, "must be fractions of the run: 0.5 is iteration 32000"),
        ({"milestones": [-0.5]}, "must be fractions"),
        ({"gamma": 0.0}, "recipe.schedule.gamma=0.0 must be above 0"),
    ],
)
def test_milestones_in_iterations_and_a_learning_rate_of_0_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        MilestoneSchedule(9, **PAPER | change, **WARM)


def test_a_plateau_needs_one_evaluation_at_least_and_no_other_arguments():
    with pytest.raises(ValueError, match="recipe.schedule.patience=0 must be at least 1"):
        plateau(patience=0)
    options = {"_target_": "src.training.lr_schedule.PlateauSchedule", "lr": 0.1, "gamma": 0.1}
    for changed in ({}, {"patience": 2, "threshold": 0.1, "max_reduction": 3}):
        with pytest.raises(ValueError, match="argument.*set its arguments with"):
            make_schedule(options | changed, n=None, iterations=100)


@pytest.mark.parametrize(
    ("iteration", "lr"),
    [(149999, 0.1), (150000, 0.01), (300000, 0.001), (449999, 0.001), (450000, 1e-4)],
)
def test_the_imagenet_recipe_divides_the_learning_rate_at_150k_300k_and_450k(iteration, lr):
    schedule = instantiate(compose_config("data=imagenet").recipe.schedule, n=18, iterations=600000)
    assert schedule(0) == 0.1  # no warm-up
    assert schedule(iteration) == lr


def noisy_error(evaluation):
    """A validation error that falls until evaluation 40, but shows it every tenth time only."""
    return 60 - min(evaluation, 40) / 2 + (0 if evaluation % 10 == 0 else 6)


def test_the_plateau_recipe_waits_for_the_plateau_of_a_noisy_error_and_divides_three_times():
    recipe = compose_config("data=imagenet", "recipe=imagenet_plateau").recipe
    schedule = instantiate(recipe.schedule, n=None, iterations=recipe.iterations)
    impatient = instantiate(recipe.schedule, patience=5, n=None, iterations=recipe.iterations)
    falls = {schedule: [], impatient: []}
    for replayed, evaluations in falls.items():
        last = 0
        for evaluation in range(1, 301):
            lr = replayed(0)
            # Each division of the learning rate lets the error fall again, from 20 points lower.
            replayed.on_eval_error(noisy_error(evaluation - last) - 20 * len(evaluations))
            if replayed(0) < lr:
                evaluations.append(evaluation)
                last = evaluation
    # Twelve evaluations after the last improvement, and never a fourth time.
    assert falls[schedule] == [52, 2 * 52, 3 * 52]
    assert falls[impatient][0] < 40  # while the error still falls


def test_the_vgg_papers_recipe():
    recipe = compose_config("model=vgg16", "data=imagenet", "recipe=vgg").recipe
    assert (recipe.iterations, recipe.batch_size, recipe.schedule.lr) == (370000, 256, 0.01)
    assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.9, 5e-4)
    schedule = instantiate(recipe.schedule, n=None, iterations=recipe.iterations)
    for _ in range(100):
        schedule.on_eval_error(90)
    assert schedule(0) == pytest.approx(1e-5)


@pytest.mark.parametrize("limit", [None, 1])
def test_a_plateau_is_restored(limit):
    undisturbed, first, second = (plateau(max_reductions=limit) for _ in range(3))
    errors = [90, 91, 92, 80, 85, 85, 85]
    for error in errors:
        undisturbed.on_eval_error(error)
    for error in errors[:5]:
        first.on_eval_error(error)
    second.load_state_dict(first.state_dict())
    for error in errors[5:]:
        second.on_eval_error(error)
    assert second.state_dict() == undisturbed.state_dict()
    assert second(0) == undisturbed(0) == pytest.approx(0.01 if limit else 0.001)


def test_a_run_with_the_plateau_schedule_is_resumed_bit_exactly(tiny, tiny_until, tmp_path):
    every = [
        "recipe.eval_every=2",
        "recipe.log_every=2",
        "recipe.checkpoint_every=5",
        "checkpoint_seconds=0",
    ]
    schedule = ["recipe.schedule.patience=1", "recipe.schedule.threshold=50.0"]
    small = ["recipe.batch_size=16", "recipe.precise_bn_batches=2"]
    overrides = ["recipe=imagenet_plateau", "recipe.iterations=12", *every, *schedule, *small]
    undisturbed = tiny(*overrides, f"output_dir={tmp_path}/undisturbed")
    assert undisturbed.rows()[-1]["lr"] < 0.01

    tiny_until(7, *overrides)
    assert_same_run(undisturbed, tiny(*overrides), iterations=12)


def test_a_warm_up_ends_during_a_run_and_its_end_is_saved(tiny):
    warm_up = ["recipe.schedule.warmup_from_n=1", "recipe.schedule.warmup_error=200.0"]
    run_dir = tiny(*warm_up, "recipe.schedule.milestones=[]")
    # Each row has the learning rate of its own iteration; the first row ends the warm-up.
    assert [row["lr"] for row in run_dir.rows()] == [0.01, 0.1, 0.1, 0.1, 0.1]
    assert load_checkpoint(run_dir)["training"]["schedule"] == {"warming_up": False}
