"""A run that waits for its end, for tests of how sweeps end; imports nothing heavy."""

import signal
import subprocess

from tqdm import tqdm

from src.runs.run_dir import RunDir


def wait_with_a_child(run_dir: RunDir) -> None:
    """Open a progress bar and start a process, as runs do; then wait."""
    with tqdm(total=1, disable=False) as bar:
        bar.refresh()
        subprocess.Popen(["sleep", "infinity"])
        (run_dir.path / "waiting").touch()
        signal.pause()
