import subprocess

from src.runs.environment import git_commit


def test_the_commit_comes_from_git_or_from_a_variable_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None
    monkeypatch.setenv("GIT_COMMIT", "0123abc")
    assert git_commit() == "0123abc"


def test_the_commit_is_that_of_the_checkout_and_says_whether_files_differ(monkeypatch):
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    commands = []

    def git(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "0123abc-dirty\n", "")

    monkeypatch.setattr(subprocess, "run", git)
    assert git_commit() == "0123abc-dirty"
    (command,) = commands
    assert {"--always", "--dirty", "--abbrev=40", "--exclude=*"} <= {*command}
