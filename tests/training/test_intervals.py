import pytest

from src.training.intervals import Intervals

INTERVALS = Intervals(
    iterations=10, log_every=2, eval_every=4, checkpoint_every=3, checkpoint_seconds=15
)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (INTERVALS.is_last, [10]),
        (INTERVALS.evaluates, [4, 8, 10]),
        (INTERVALS.logs, [2, 4, 6, 8, 10]),
        (INTERVALS.may_save, [3, 4, 6, 8, 9, 10]),
    ],
)
def test_intervals_are_counted_from_1_and_the_last_iteration_is_logged_and_evaluated(
    question, expected
):
    assert [i for i in range(1, 11) if question(i)] == expected


def test_an_iteration_that_is_evaluated_is_logged_too():
    assert Intervals(10, 100, 3, 1, 0).logs(3)


def test_intervals_are_read_from_a_config():
    recipe = INTERVALS._asdict() | {"batch_size": 128}
    seconds = recipe.pop("checkpoint_seconds")
    config = {"n": 3, "recipe": recipe, "checkpoint_seconds": seconds}
    assert Intervals.of(config) == INTERVALS
