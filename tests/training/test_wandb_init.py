import pytest
from fake_wandb_server import OfflineRun

from src.runs.wandb_identity import WandbIdentity
from src.training import wandb_init
from src.training.wandb_init import flat_config, init_run


def test_a_config_for_wandb_has_one_level(find):
    flat = flat_config(find("model=resnet20", "data=cifar10"), 20)
    names = ("n", "depth", "data", "model")
    assert [flat[name] for name in names] == [3, 20, "cifar10", "resnet20"]
    assert not [key for key, value in flat.items() if isinstance(value, dict) or "." in key]
    assert flat_config(find("model=plain20"), 20)["shortcut"] is None


@pytest.mark.usefixtures("wandb_user")
def test_names_that_the_server_would_refuse_are_cut(find, monkeypatch):
    run_dir = find("n=1")
    run_dir.path = run_dir.path.with_name("r" * 200)
    run_dir.config["choices"]["experiment"] = "e" * 100
    run_dir.create()
    monkeypatch.setattr(wandb_init, "curve_name", lambda _: "c" * 200)
    init_run(run_dir, WandbIdentity(None, "deep", "1"), 8, "offline", measure=False).finish()
    run = OfflineRun(run_dir.path)
    assert (run.run.display_name, run.run.run_group) == ("r" * 128, "c" * 128)
    assert run.run.tags[0] == "e" * 64
    assert run.config["curve"] == "c" * 200  # the workspace groups by it
