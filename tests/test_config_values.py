"""Keys that nothing reads and values that no run can have are refused."""

import pytest

from src.config import compose_config, find_run_dir


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.schedule.lr=fast", "recipe.schedule.lr=fast must be a number, such as 0.1"),
        ("recipe.schedule.milestones=0.5", "recipe.schedule.milestones=0.5 must be a list"),
        ("data.flip=1", "data.flip=1 must be true or false, such as False"),
        ("seed=true", "seed=True must be an integer, such as 0"),
        ("output_dir=5", "output_dir=5 must be a string, such as runs"),
        ("recipe.iterations=1.5", "recipe.iterations=1.5 must be an integer"),
        ("+more=1", "there is no key more; --help lists all keys"),
        ("seed=4294967296", r"seed=4294967296 must be from 0 to 2\*\*32 - 1"),
        ("recipe.log_every=0", "recipe.log_every=0 must be at least 1"),
        ("recipe.precise_bn_batches=-1", "recipe.precise_bn_batches=-1 must be at least 0"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused(override, message):
    config = compose_config(override)
    with pytest.raises(ValueError, match=message):
        find_run_dir(config)


@pytest.mark.parametrize(
    "override",
    ["recipe.schedule.lr=1", "recipe.schedule.warmup_from_n=null", "trainer.devices=[0,1]"],
)
def test_a_value_that_some_run_can_have_is_accepted(override):
    find_run_dir(compose_config(override))


@pytest.mark.parametrize(
    "override",
    ["+recipe.momentum=0.8", "+recipe.optimizer.lr=0.5", "+sweep.jobs=3", "+recipe.detector.nms=1"],
)
def test_a_key_that_nothing_reads_is_refused(find, override):
    key = override[1:].partition("=")[0]
    with pytest.raises(ValueError, match=f"^there is no key {key}; --help lists all keys$"):
        find(override)
