import hashlib
import json

import pytest

from src.runs.wandb_identity import WandbIdentity, new_id


@pytest.fixture
def run_dir(find):
    run_dir = find("n=1", "logger=wandb", "logger.wandb.project=deep")
    run_dir.create()
    return run_dir


def test_an_id_is_the_hash_of_the_run_key_and_random_digits(run_dir, monkeypatch):
    random = iter([b"\x00\x01", b"\xff\x02"])
    monkeypatch.setattr("secrets.token_bytes", lambda count: next(random)[:count])
    key = json.dumps(run_dir.key, sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    assert [new_id(run_dir) for _ in range(2)] == [f"{digest}0001", f"{digest}ff02"]


def test_a_run_directory_remains_one_run_of_wandb_wherever_it_is_sent_from(run_dir, find):
    first = WandbIdentity.of(run_dir)
    first.write(run_dir)
    resumed = find("n=1", "logger=wandb", "logger.wandb.project=other")
    assert WandbIdentity.of(resumed) == first
    assert (first.entity, first.project) == (None, "deep")


def test_a_project_or_entity_that_is_passed_replaces_the_stored_one(run_dir):
    first = WandbIdentity.of(run_dir, entity="us")
    first.write(run_dir)
    assert WandbIdentity.of(run_dir, project="p") == WandbIdentity("us", "p", first.id)
    assert WandbIdentity.of(run_dir, entity="team") == WandbIdentity("team", "deep", first.id)


def test_a_run_that_was_trained_without_wandb_has_the_default_project(find):
    identity = WandbIdentity.of(find("n=1", "logger=csv"))
    assert (identity.entity, identity.project) == (None, "deep-residual-learning")


def test_under_an_agent_a_run_directory_is_the_run_that_wandb_assigned(run_dir, monkeypatch):
    WandbIdentity.of(run_dir).write(run_dir)
    values = {"SWEEP_ID": "sweep", "RUN_ID": "assigned", "ENTITY": "team", "PROJECT": "theirs"}
    for name, value in values.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert WandbIdentity.of(run_dir) == WandbIdentity("team", "theirs", "assigned")
