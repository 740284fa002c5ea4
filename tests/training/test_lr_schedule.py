import pytest
import torch
from conftest import compose_run
from hydra.utils import instantiate

from src.training.lr_schedule import MilestoneSchedule, PlateauSchedule

PAPER = {"iterations": 64000, "lr": 0.1, "milestones": [0.5, 0.75], "gamma": 0.1}
WARM = {"warmup_from_n": 18, "warmup_lr": 0.01, "warmup_error": 80.0}


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [(0, 0.1), (31999, 0.1), (32000, 0.01), (47999, 0.01), (48000, 0.001), (63999, 0.001)],
)
def test_the_papers_rates_at_every_boundary(iteration, rate):
    assert MilestoneSchedule(9, **PAPER, **WARM)(iteration) == rate


def test_a_shorter_run_keeps_the_shape():
    schedule = MilestoneSchedule(9, **PAPER | {"iterations": 8}, **WARM)
    rates = [schedule(i) for i in range(8)]
    assert rates == [0.1] * 4 + [0.01] * 2 + [0.001] * 2


@pytest.mark.parametrize(
    ("n", "from_n", "warms"), [(17, 18, False), (18, 18, True), (200, 18, True), (18, None, False)]
)
def test_which_nets_warm_up(n, from_n, warms):
    schedule = MilestoneSchedule(n, **PAPER, **WARM | {"warmup_from_n": from_n})
    assert schedule(0) == (0.01 if warms else 0.1)


def test_a_net_without_an_n_does_not_warm_up():
    assert MilestoneSchedule(None, **PAPER, **WARM)(0) == 0.1


def test_the_warm_up_lasts_until_the_training_error_is_below_80_and_does_not_come_back():
    schedule = MilestoneSchedule(18, **PAPER, **WARM)
    for error, rate in [(90, 0.01), (80, 0.01), (79.99, 0.1), (95, 0.1)]:
        schedule.on_train_error(error)
        assert schedule(500) == rate
    assert schedule(32000) == 0.01


def test_a_warm_up_that_never_ends_does_not_hold_the_rate_up():
    """A net that does not learn (plain-110) still gets the paper's last rate."""
    schedule = MilestoneSchedule(18, **PAPER, **WARM)
    assert (schedule(31999), schedule(32000), schedule(48000)) == (0.01, 0.01, 0.001)


@pytest.mark.parametrize("error", [90, 50])
def test_the_switch_survives_a_resume(error):
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
    ("errors", "drops"),
    [
        ([90, 80, 70, 60], 0),
        ([90, 90, 90], 1),
        ([90, 89.5, 89.5], 1),  # half a point is not more than the threshold
        ([90, 89.4, 89.4], 0),
        ([90, 91, 80, 81], 0),  # one evaluation without a gain, twice
        ([90, 91, 92, 93, 94], 2),
        ([50, 60, 60, 49.8, 49.7, 40], 2),  # slow progress is none, measured from the best
    ],
)
def test_a_plateau_drops_the_rate_after_its_patience(errors, drops):
    schedule = plateau()
    for error in errors:
        schedule.on_eval_error(error)
    assert schedule(7) == pytest.approx(0.1 / 10**drops)


@pytest.mark.parametrize(
    ("max_reductions", "drops"),
    [(0, [0, 0, 0, 0, 0]), (1, [0, 1, 1, 1, 1]), (3, [0, 1, 2, 3, 3]), (None, [0, 1, 2, 3, 4])],
)
def test_a_plateau_drops_the_rate_at_most_so_often(max_reductions, drops):
    schedule, found = plateau(patience=1, max_reductions=max_reductions), []
    for _ in drops:
        schedule.on_eval_error(90)
        found.append(schedule.reductions)
        assert schedule(7) == pytest.approx(0.1 / 10 ** found[-1])
    assert found == drops


def test_the_vgg_papers_recipe():
    recipe = compose_run("model=vgg16", "data=imagenet", "recipe=vgg").recipe
    assert (recipe.iterations, recipe.batch_size, recipe.schedule.lr) == (370000, 256, 0.01)
    assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.9, 5e-4)
    schedule = instantiate(recipe.schedule, n=None, iterations=recipe.iterations)
    for _ in range(100):
        schedule.on_eval_error(90)
    assert schedule(0) == pytest.approx(1e-5)


@pytest.mark.parametrize("limit", [None, 1])
def test_a_plateau_goes_on_where_it_was(limit):
    whole, first, second = (plateau(max_reductions=limit) for _ in range(3))
    errors = [90, 91, 92, 80, 85, 85, 85]
    for error in errors:
        whole.on_eval_error(error)
    for error in errors[:5]:
        first.on_eval_error(error)
    second.load_state_dict(first.state_dict())
    for error in errors[5:]:
        second.on_eval_error(error)
    assert second.state_dict() == whole.state_dict()
    assert second(0) == whole(0) == pytest.approx(0.01 if limit else 0.001)


def test_a_run_by_the_plateau_is_resumed_to_the_same_bits(tiny, tiny_until, tmp_path):
    every = ["recipe.eval_every=2", "recipe.log_every=2", "recipe.checkpoint_every=5"]
    rule = ["recipe.schedule.patience=1", "recipe.schedule.threshold=50.0"]
    overrides = ["recipe=imagenet", "recipe.iterations=12", *every, *rule]
    whole = tiny(*overrides, f"output_dir={tmp_path}/whole")
    assert [row["lr"] for row in whole.rows()][-1] < 0.01

    tiny_until(7, *overrides)
    resumed = tiny(*overrides)
    assert resumed.metrics.read_text() == whole.metrics.read_text()
    a, b = (
        torch.load(f.last_checkpoint, weights_only=True)["state_dict"] for f in (resumed, whole)
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
