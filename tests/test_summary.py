import csv
import re
import runpy
import sys

import pytest
import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.utils import instantiate

from src.config import CONF
from src.models.complexity import count_multiply_adds, count_parameters
from src.summary import (
    IMAGE_SIZE,
    PAPER_COMPLEXITY,
    compare_kernel_sizes,
    main,
    measure_nets,
    nets_table,
    own_nets,
    rounds_to,
)

NAMES = [path.stem for path in (CONF / "model").glob("*.yaml")]


@pytest.fixture(scope="module")
def rows():
    names = ["vgg16", "resnet110", "plain18", "resnet50", "resnet", "resnet20"]
    return {row["net"]: row for row in measure_nets(names)}


@pytest.mark.slow
def test_counts_round_to_what_the_papers_print_or_have_a_reason():
    with open(PAPER_COMPLEXITY, newline="") as file:
        paper = {row["net"]: row for row in csv.DictReader(file)}
    assert len(paper) > 20
    assert {*paper} <= {*NAMES}
    differing, explained = [], [name for name, row in paper.items() if row["why"]]
    for name, row in paper.items():
        config = compose("train", [f"model={name}"]).model
        with torch.device("meta"):
            net = instantiate(config, _convert_="all")
        parameters, multiply_adds = row["parameters_printed"], row["multiply_adds_printed"]
        assert row["where"]
        assert parameters or multiply_adds
        fits = rounds_to(count_parameters(net) / 1e6, parameters)
        if multiply_adds:
            size = IMAGE_SIZE[config.num_classes]
            fits &= rounds_to(count_multiply_adds(net, (3, size, size)) / 1e9, multiply_adds)
        if not fits:
            differing.append(name)
    assert sorted(differing) == sorted(explained) == ["preactivation1001", "resnet50", "vgg16"]


def test_image_size_of_every_config_is_known():
    text = "".join((CONF / "model" / f"{name}.yaml").read_text() for name in NAMES)
    classes = {int(number) for number in re.findall(r"num_classes: (\d+)", text)}
    assert classes == IMAGE_SIZE.keys()


def test_row_has_the_counts_and_what_the_paper_prints(rows):
    assert [*rows] == ["resnet n=3", "resnet20", "resnet110", "plain18", "resnet50", "vgg16"]
    assert {**rows["resnet n=3"], "net": "resnet20"} == rows["resnet20"]
    assert rows["resnet50"] == {
        "net": "resnet50",
        "image": 224,
        "layers": 50,
        "parameters": 25557032,
        "multiply_adds": 3857973248,
        "activations_mb": 81.695,
        "receptive_field": 483,
        "parameters_printed": "",
        "multiply_adds_printed": "3.8",
        "where": "Table 1",
        "differs": "multiply-adds: cut off, not rounded; "
        "with the stride in the 3x3 layers it would be 4.1",
    }
    assert rows["vgg16"]["differs"] == "multiply-adds: the convolutions alone"
    assert rows["plain18"]["differs"] == rows["resnet110"]["differs"] == ""


@pytest.mark.parametrize(
    ("value", "printed", "fits"),
    [
        (3.857, "3.8", False),
        (3.857, "3.9", True),
        (3.849, "3.8", True),
        (132.86, "133", True),
        (25.03, "25.0", True),
        (25.06, "25.0", False),
        (1.0, "", True),
    ],
)
def test_value_rounds_to_as_many_decimals_as_are_printed(value, printed, fits):
    assert rounds_to(value, printed) == fits


def test_table_shows_each_net_next_to_what_the_paper_prints(rows):
    head, _, *lines = nets_table(list(rows.values())).splitlines()
    assert len(lines) == len(rows)
    assert "parameters" in head
    assert "receptive field" in head
    line = next(line for line in lines if line.startswith("| resnet50 "))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:5] == ["resnet50", "224", "50", "25,557,032", "3,857,973,248 (3.8)"]
    assert cells[6:8] == ["483", "Table 1"]


def test_three_3x3_layers_see_as_much_as_one_7x7_layer_with_fewer_weights():
    text = compare_kernel_sizes(channels=10)
    assert "10 channels see 7x7 pixels with 2,700 weights; " in text
    assert "one 7x7 layer sees 7x7 with 4,900, 81% more" in text


@pytest.fixture
def uninitialized_hydra():
    backup = get_gh_backup()
    GlobalHydra.instance().clear()
    yield
    restore_gh_from_backup(backup)


@pytest.mark.usefixtures("uninitialized_hydra")
def test_command_prints_and_writes_the_table(tmp_path, monkeypatch, capsys):
    command = ["src.summary", "resnet20", "vgg11", "-o", f"{tmp_path}/nets.csv"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    output = capsys.readouterr().out
    assert re.search(r"\| resnet20 +\| 32 +\| 20 ", output)
    assert "Three 3x3 layers" in output
    with open(tmp_path / "nets.csv", newline="") as file:
        assert [line["net"] for line in csv.DictReader(file)] == ["resnet20", "vgg11"]


def test_old_command_names_the_new_one(capsys):
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_module("src.nets", run_name="__main__")
    assert exit_info.value.code == 2
    assert "is now python -m src.summary" in capsys.readouterr().err


def test_all_nets_with_a_file_are_measured_by_default():
    assert sorted([*own_nets(), "custom"]) == sorted(NAMES)
    with pytest.raises(ValueError, match="name a file of conf/model"):
        measure_nets(["custom"])
