import os
import time

import pytest
import yaml
from interruptible_run import forked
from test_naming import CONFIG, changed

from src.runs.run_dir import COLUMNS, RunDir


def test_one_process_at_a_time_and_only_the_same_config(tmp_path):
    folder = RunDir(tmp_path / "run", CONFIG)
    with folder.locked():
        assert yaml.safe_load((folder.path / "config.yaml").read_text()) == CONFIG
        with pytest.raises(ValueError, match="is being written by process"), RunDir(folder.path, CONFIG).locked():
            pass
    with RunDir(folder.path, changed(trainer__devices=2)).locked():
        pass
    other = RunDir(folder.path, changed(recipe__iterations=5))
    with pytest.raises(ValueError, match="recipe.iterations was 64000, now 5.*move that folder away"), other.locked():
        pass
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == CONFIG


def test_rows_are_logged_and_forgotten(tmp_path):
    folder = RunDir(tmp_path, CONFIG)
    for iteration in (100, 200, 300):
        folder.log({"iteration": iteration, "lr": 0.1, "train/loss": 1.5})
    with open(folder.metrics, "a") as file:
        file.write("400,0.1")  # Cut short by a kill.
    folder.truncate_to(200)
    lines = folder.metrics.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert [line.split(",")[0] for line in lines[1:]] == ["100", "200"]
    assert folder.rows()[-1] == {"iteration": 200, "lr": 0.1, "train/loss": 1.5}
    folder.truncate_to(0)
    assert not folder.metrics.exists()


def test_only_a_summary_makes_a_run_finished(tmp_path):
    folder = RunDir(tmp_path, CONFIG)
    assert folder.summary is None
    folder.finish({"test_error": 8.75})
    assert folder.summary == {"test_error": 8.75}


def lock_with_a_worker(folder, there):
    with folder.locked():
        worker = os.fork()
        if not worker:
            time.sleep(100)
        there.send(worker)
        time.sleep(100)


def test_a_worker_that_outlives_its_run_does_not_keep_the_lock(tmp_path):
    folder, (here, there) = RunDir(tmp_path / "run", CONFIG), forked.Pipe()
    process = forked.Process(target=lock_with_a_worker, args=(folder, there))
    process.start()
    worker = here.recv()
    with pytest.raises(ValueError, match="is being written by process"), folder.locked():
        pass
    process.kill()
    process.join()
    with folder.locked():
        os.kill(worker, 9)  # it is still there
