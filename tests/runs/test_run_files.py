"""Rows of a run's CSV files, and files that are removed while it writes them."""

import pytest

COLUMNS = ["iteration", "lr", "train/loss", "test/error"]


@pytest.fixture
def run_dir(find):
    return find("n=1", "trainer.precision=32-true")


def add_rows(run_dir, *iterations):
    for iteration in iterations:
        row = {"iteration": iteration, "lr": 0.1, "train/loss": 1.5}
        run_dir.append_metrics(COLUMNS, row)


def test_rows_are_appended_and_truncated_before_a_run_resumes(run_dir):
    run_dir.create()
    add_rows(run_dir, 100, 200, 300)
    for iteration in (200, 300):
        rows = [{"iteration": iteration, "layer": name} for name in ("conv1", "fc")]
        rows[0]["response"] = 0.5
        run_dir.append_layers(["iteration", "layer", "response"], rows)
    with open(run_dir.metrics, "a") as file:
        file.write("400,0.1")  # a kill can cut a row short
    assert run_dir.last_iteration == 400

    run_dir.truncate(200)
    assert (
        run_dir.metrics.read_text()
        == "iteration,lr,train/loss,test/error\n100,0.1,1.5,\n200,0.1,1.5,\n"
    )
    assert run_dir.layers.read_text() == "iteration,layer,response\n200,conv1,0.5\n200,fc,\n"
    assert run_dir.rows()[-1] == {"iteration": 200, "lr": 0.1, "train/loss": 1.5}
    assert run_dir.last_iteration == 200
    run_dir.truncate(0)
    assert not run_dir.metrics.exists()
    assert (run_dir.rows(), run_dir.last_iteration) == ([], 0)


@pytest.mark.parametrize(("logged", "wrong"), [([100], 200), ([100, 150, 200], 150), ([], 100)])
def test_rows_that_do_not_match_the_checkpoint_are_refused(run_dir, logged, wrong):
    run_dir.create()
    add_rows(run_dir, 100, 200)
    run_dir.check_rows([100, 200])
    with pytest.raises(ValueError, match=f"does not match its checkpoint .see iteration {wrong}."):
        run_dir.check_rows(logged)


def test_a_directory_or_file_that_was_removed_during_a_run_is_noticed(run_dir):
    with run_dir.locked():
        add_rows(run_dir, 100)
        run_dir.metrics.unlink()
        with pytest.raises(
            FileNotFoundError, match="metrics.csv was removed or moved during the run"
        ):
            add_rows(run_dir, 200)
        run_dir.path.rename(run_dir.path.with_name("moved"))
        with pytest.raises(FileNotFoundError, match=f"{run_dir.path} was removed or moved"):
            run_dir.write_summary({})
    assert not run_dir.path.exists()
