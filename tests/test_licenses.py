"""Sources and licenses in experiments/README.md are those of all data, figures and weights."""

import re
import subprocess
from fnmatch import fnmatch

import pytest
from conftest import ROOT

SECTION = (ROOT / "experiments" / "README.md").read_text().partition("## Sources and licenses")[2]
# The first two lines are the titles and the rule below them.
LINES = [line for line in SECTION.partition("\n## ")[0].splitlines() if line.startswith("|")][2:]
NAMES = [name for line in LINES for name in re.findall(r"`([^`]+)`", line.split("|")[1])]
SUFFIXES = "svg png jpg jpeg gif pdf safetensors pt pth onnx npy npz parquet tar gz xz".split()


@pytest.mark.parametrize("data", sorted(path.stem for path in ROOT.glob("conf/data/*.yaml")))
def test_every_data_set_has_a_source_and_a_license(data):
    assert f"data={data}" in NAMES


def test_every_tracked_figure_and_file_of_weights_or_data_has_a_source_and_a_license():
    patterns = [f"*.{suffix}" for suffix in SUFFIXES]
    command = ["git", "ls-files", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git checkout: which files are tracked is not known")
    files = done.stdout.split()
    assert "experiments/full_length/resnet20.safetensors" in files
    assert [file for file in files if not any(fnmatch(file, name) for name in NAMES)] == []


def test_every_line_has_a_source_and_a_license_and_stands_for_something():
    for line in LINES:
        what, source, license_of_it = (cell.strip() for cell in line.split("|")[1:-1])
        assert what
        assert source
        assert license_of_it
    names = [name for name in NAMES if name.startswith("experiments/")]
    assert all(any(ROOT.glob(name)) for name in names)
    of_data = {name.partition("=")[2] for name in NAMES if name.startswith("data=")}
    assert of_data == {path.stem for path in ROOT.glob("conf/data/*.yaml")}
