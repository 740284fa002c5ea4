import pytest

from src.recipe import Schedule, step_rate

PAPER = {"iterations": 64000, "lr": 0.1, "drops": [0.5, 0.75], "divisor": 10.0}
WARM = {"warmup_from_n": 18, "warmup_lr": 0.01, "warmup_error": 80.0}


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [(0, 0.1), (31999, 0.1), (32000, 0.01), (47999, 0.01), (48000, 0.001), (63999, 0.001)],
)
def test_the_papers_rates_at_every_boundary(iteration, rate):
    assert step_rate(iteration, **PAPER) == rate
    assert Schedule(9, **PAPER, **WARM)(iteration) == rate


def test_a_shorter_run_keeps_the_shape():
    rates = [step_rate(i, 8, 0.1, [0.5, 0.75], 10.0) for i in range(8)]
    assert rates == [0.1] * 4 + [0.01] * 2 + [0.001] * 2


@pytest.mark.parametrize(
    ("n", "from_n", "warms"), [(17, 18, False), (18, 18, True), (200, 18, True), (18, None, False)]
)
def test_which_nets_warm_up(n, from_n, warms):
    schedule = Schedule(n, **PAPER, **WARM | {"warmup_from_n": from_n})
    assert schedule(0) == (0.01 if warms else 0.1)


def test_a_net_without_an_n_does_not_warm_up():
    assert Schedule(None, **PAPER, **WARM)(0) == 0.1


def test_the_warm_up_lasts_until_the_training_error_is_below_80_and_does_not_come_back():
    schedule = Schedule(18, **PAPER, **WARM)
    for error, rate in [(90, 0.01), (80, 0.01), (79.99, 0.1), (95, 0.1)]:
        schedule.observe(error)
        assert schedule(500) == rate
    assert schedule(32000) == 0.01


def test_a_warm_up_that_never_ends_does_not_hold_the_rate_up():
    """A net that does not learn (plain-110) still gets the paper's last rate."""
    schedule = Schedule(18, **PAPER, **WARM)
    assert (schedule(31999), schedule(32000), schedule(48000)) == (0.01, 0.01, 0.001)


@pytest.mark.parametrize("error", [90, 50])
def test_the_switch_survives_a_resume(error):
    schedule, resumed = Schedule(18, **PAPER, **WARM), Schedule(18, **PAPER, **WARM)
    schedule.observe(error)
    resumed.load_state_dict(schedule.state_dict())
    assert [resumed(i) for i in (0, 400, 32000)] == [schedule(i) for i in (0, 400, 32000)]
