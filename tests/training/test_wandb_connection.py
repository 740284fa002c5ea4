"""Whether W&B is reached; nobody is ever asked at the terminal."""

import os
import pty
import socket
import subprocess
import sys

import pytest
import wandb
from conftest import ROOT

from src.training import wandb_connection
from src.training.wandb_connection import choose_mode, default_entity

pytestmark = pytest.mark.usefixtures("wandb_user")


@pytest.mark.slow
def test_without_a_key_nobody_is_asked_for_one(server, monkeypatch):
    """In a process with a terminal, at which wandb would ask; wandb is imported when needed."""
    monkeypatch.delenv("WANDB_API_KEY")
    ours, theirs = pty.openpty()
    code = (
        "import sys, src.training.trainer; from src.training.wandb_connection import choose_mode;"
        "print('wandb' in sys.modules, *choose_mode())"
    )
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=100, **terminal)
    output = os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(theirs)
    assert result.returncode == 0
    assert output.strip() == "False offline no API key: run wandb login"


def test_a_key_of_the_wrong_form_is_reported(server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    mode, reason = choose_mode()
    assert mode == "offline"
    assert "WANDB_API_KEY" in reason


@pytest.mark.parametrize("listens", [False, True])
def test_a_server_that_does_not_answer_makes_the_run_offline(monkeypatch, listens):
    monkeypatch.setattr(wandb_connection, "ANSWER_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_MODE", "online")
        assert choose_mode() == ("offline", f"{os.environ['WANDB_BASE_URL']} does not answer")


def test_a_user_without_a_default_entity_learns_which_key_names_the_team(server, monkeypatch):
    assert default_entity() == "us"
    server.default_entity = None
    with pytest.raises(ValueError, match="set logger.wandb.entity=TEAM"):
        default_entity()
    monkeypatch.setenv("WANDB_ENTITY", "team")
    wandb.teardown()
    assert default_entity() == "team"
