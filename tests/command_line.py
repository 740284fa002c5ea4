"""Call entry points as a user does: in a process of their own, or in this one, which is faster."""

import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ROOT
from hydra.core.global_hydra import GlobalHydra

from src.cli import run_entry_point


def call(*arguments: str, module: str = "src.train") -> subprocess.CompletedProcess:
    """Run `python -m MODULE` in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def call_here(
    capsys: pytest.CaptureFixture[str], *arguments: str, module: str = "src.train"
) -> subprocess.CompletedProcess:
    """Do what `python -m MODULE` does in this process."""
    main, hydra = import_module(module).main, GlobalHydra.instance().hydra
    returncode, message = 0, ""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{module.replace('.', '/')}.py", *arguments])
        patch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards: the entry point changes it
        GlobalHydra.instance().clear()  # that of the tests: the entry point initializes its own
        try:
            run_entry_point(main)
        except SystemExit as end:
            returncode = end.code if isinstance(end.code, int | None) else 1
            message = end.code if isinstance(end.code, str) else ""
        finally:
            GlobalHydra.instance().hydra = hydra
    out, err = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, returncode or 0, out, err + message)
