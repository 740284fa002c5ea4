"""The commands and the recipes for extensions in the documentation work as they are written."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT

from src.config import compose_config, find_run_dir

PAGES = [
    ROOT / "README.md",
    ROOT / "src" / "data" / "README.md",
    ROOT / "experiments" / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *sorted((ROOT / "conf" / "experiment").glob("*.yaml")),
    *sorted((ROOT / "conf" / "model").glob("*.yaml")),
]
# Any directory with folders in it can be one of images.
PLACEHOLDERS = {"DIRECTORY": str(ROOT / "conf"), "NAME": "fig6", "FILE": "x", "N": "8"}


def commands(page):
    """Yield the arguments of each `python -m src.MODULE ...`, after the module's name."""
    text = page.read_text().replace("\\\n", " ")
    if page.suffix == ".yaml":
        # One wrapped comment; a command ends at a semicolon or at the next word of the header.
        text = re.sub(r"\n#\s*", " ", text)
    for module, arguments in re.findall(r"python\"? -m src\.([\w.]+)([^`\n;#|&]*)", text):
        if page.suffix == ".yaml":
            arguments = re.split(r", then|, and without| Cost:|\. ", arguments)[0]
        yield module, shlex.split(arguments.rstrip(" .,:)"))


COMMANDS = [
    pytest.param(module, arguments, id=f"{page.name}-{module} {' '.join(arguments)}"[:90])
    for page in PAGES
    for module, arguments in commands(page)
]


def test_there_are_commands_in_the_readme():
    assert len(list(commands(ROOT / "README.md"))) >= 12


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_documented_commands_compose(module, arguments, tmp_path):
    assert find_spec(f"src.{module}"), f"there is no src.{module}"
    if module not in ("train", "evaluate"):
        return
    overrides = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or "$" in value or key.startswith("hydra/launcher"):
            continue
        # The first run of a sweep; a list in brackets is one value.
        value = value if value.startswith("[") else value.split(",")[0]
        overrides.append(f"{key}={PLACEHOLDERS.get(value, value)}")
    config = compose_config(*overrides, config_name=module)
    if module == "train":
        assert find_run_dir(config).path.name


def snippets():
    """Return the files that README tells to write, by path, and the experiment."""
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Add a model") : text.index("## Layout")]
    lines = re.findall(r"^    (?!python )(.*)", section, re.MULTILINE)  # without commands
    files, name = {}, None
    for line in lines:
        if re.match(r"# (src|conf)/", line):
            name = line[2:]
        elif line == "# @package _global_":
            name = "experiment.yaml"
        files.setdefault(name, []).append(line)
    return {name: "\n".join(content) + "\n" for name, content in files.items()}


@pytest.mark.slow
def test_a_model_a_dataset_and_an_experiment_are_added_as_the_readme_says(tmp_path):
    """In a copy of the code, with the imports and the arrays that README leaves out."""
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    files = snippets()
    imports = {
        "src/models/wide.py": "from functools import partial\n"
        "from src.models.blocks import BasicBlock\n"
        "from src.models.residual_net import ResidualNet\n",
        "src/data/noise.py": "import numpy as np\nfrom src.data.in_memory import ImagesInMemory\n"
        "rng = np.random.default_rng(0)\n"
        "images = test_images = rng.integers(0, 256, (256, 8, 8, 3), np.uint8)\n"
        "labels = test_labels = np.arange(256) % 10\n",
    }
    for name in [name for name in files if name.startswith(("src/", "conf/"))]:
        (tmp_path / name).write_text(imports.get(name, "") + files[name])
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "two_nets.yaml").write_text(files["experiment.yaml"])

    run = ["model=wide", "data=noise", "recipe.iterations=2", "trainer.precision=32-true"]
    done = subprocess.run(
        [sys.executable, "-m", "src.train", *run], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/noise/wide20-iterations2-s0/summary.json").exists()

    experiment = ["--config-dir", "mine", "experiment=two_nets", "--cfg", "hydra"]
    done = subprocess.run(
        [sys.executable, "-m", "src.train", *experiment],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "mode: MULTIRUN" in done.stdout
    assert "seed: 0,1,2" in done.stdout
