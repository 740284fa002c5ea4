import csv
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import ROOT
from hydra import compose
from hydra.utils import instantiate
from torch import nn

from src.cli import CONF
from src.models.complexity import activation_bytes, multiply_adds, parameters, receptive_field
from src.models.highway import highway
from src.models.preact_resnet import preactivation
from src.models.resnet import BasicBlock, Bottleneck, ResidualNet, plain, plain_imagenet, resnet, resnet_imagenet
from src.models.vgg import VGG, vgg
from src.summary import IMAGE, PRINTED, measure_nets, nets_table, rounds_to, three_against_one

NAMES = [path.stem for path in (CONF / "model").glob("*.yaml")]
SIZE = {10: (3, 32, 32), 1000: (3, 224, 224)}


@pytest.fixture(scope="module")
def rows():
    return {
        row["net"]: row for row in measure_nets(["vgg16", "resnet110", "plain18", "resnet50", "resnet", "resnet20"])
    }


def test_what_the_papers_print_is_counted_or_it_is_said_why_not():
    with open(PRINTED, newline="") as file:
        printed = {line["net"]: line for line in csv.DictReader(file)}
    assert len(printed) > 20 and {*printed} <= {*NAMES}
    differ, explained = [], [name for name, line in printed.items() if line["why"]]
    for name, line in printed.items():
        config = compose("train", [f"model={name}"]).model
        with torch.device("meta"):
            net = instantiate(config, _convert_="all")
        assert line["where"] and (line["parameters_printed"] or line["multiply_adds_printed"])
        fits = rounds_to(parameters(net) / 1e6, line["parameters_printed"])
        if line["multiply_adds_printed"]:
            fits &= rounds_to(multiply_adds(net, SIZE[config.num_classes]) / 1e9, line["multiply_adds_printed"])
        if not fits:
            differ.append(name)
    assert sorted(differ) == sorted(explained) == ["preactivation1001", "resnet50", "vgg16"]


def test_every_config_is_of_known_images():
    text = "".join((CONF / "model" / f"{name}.yaml").read_text() for name in NAMES)
    classes = {int(number) for number in re.findall(r"num_classes: (\d+)", text)}
    assert classes == IMAGE.keys()


def test_a_row_has_what_is_counted_and_what_is_printed(rows):
    assert [*rows] == ["resnet n=3", "resnet20", "resnet110", "plain18", "resnet50", "vgg16"]
    assert {**rows["resnet n=3"], "net": "resnet20"} == rows["resnet20"]
    assert rows["resnet50"] == {
        "net": "resnet50",
        "image": 224,
        "layers": 50,
        "parameters": 25557032,
        "multiply_adds": 3857973248,
        "activations_mb": 81.695,
        "last_map_sees": 483,
        "parameters_printed": "",
        "multiply_adds_printed": "3.8",
        "where": "Table 1",
        "differs": "multiply-adds: cut off, not rounded; with the stride in the 3x3 layers it would be 4.1",
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
def test_rounding(value, printed, fits):
    assert rounds_to(value, printed) == fits


def test_the_table_shows_each_net_beside_what_is_printed(rows):
    head, _, *lines = nets_table(list(rows.values())).splitlines()
    assert len(lines) == len(rows)
    assert "parameters" in head and "last map sees" in head
    line = next(line for line in lines if line.startswith("| resnet50 "))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:5] == ["resnet50", "224", "50", "25,557,032", "3,857,973,248 (3.8)"]
    assert cells[6:8] == ["483", "Table 1"]


def test_activations_by_hand():
    """In a plain net: the image, each layer before its batch norm and after its ReLU, the averages."""
    maps = 3 * 16 * 32 * 32 + 2 * 32 * 16 * 16 + 2 * 64 * 8 * 8
    floats = 3 * 32 * 32 + 2 * maps + 64
    image = (3, 32, 32)
    assert activation_bytes(plain(1, 10, "fan_in"), image) == 4 * floats
    # Shortcut A keeps nothing more; the two projections of B have a map before their batch norm.
    assert activation_bytes(resnet(1, "A", 10, "fan_in"), image) == 4 * floats
    assert activation_bytes(resnet(1, "B", 10, "fan_in"), image) == 4 * (floats + 32 * 16 * 16 + 64 * 8 * 8)


def test_activations_of_a_pooled_net_by_hand():
    """Of each stage the map and the pooled map, and which pixel won (8 bytes); then the window, two fc layers."""
    net = VGG([[3], [3]], (4, 6), 8, False, 0.0, 5, "glorot")
    floats = 3 * 28 * 28 + 4 * 28 * 28 + 4 * 14 * 14 + 6 * 14 * 14 + 6 * 7 * 7 + 8 + 8
    kept = activation_bytes(net, (3, 28, 28))
    assert kept == 4 * floats + 8 * (4 * 14 * 14 + 6 * 7 * 7)


def test_activations_are_those_of_real_memory():
    """What three images more keep on a CPU, by addresses."""
    net = resnet_imagenet(18, "B", True, 1, 64, [False] * 4, False, 10, "fan_in").train()
    sizes = []
    for images in (2, 5):
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            net(torch.zeros(images, 3, 64, 64))
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in kept.values()))
    assert sizes[1] - sizes[0] == 3 * activation_bytes(net, (3, 64, 64))


RESNET = partial(resnet_imagenet, dilate=[False] * 4, zero_init_residual=False, num_classes=10, init="fan_in")
KNOWN = [  # Araujo et al. 2019, Computing Receptive Fields of Convolutional Neural Networks, has the first four
    (212, lambda: vgg(16, False, False, 0.5, 10, "glorot")),
    (483, lambda: RESNET(50, "B", True, 1, 64)),
    (1027, lambda: RESNET(101, "B", True, 1, 64)),
    (1507, lambda: RESNET(152, "B", True, 1, 64)),
    (427, lambda: RESNET(50, "B", False, 1, 64)),  # the 3x3 layer of three blocks sees half as far
    (899, lambda: plain_imagenet(34, 10, "fan_in")),
    (5, lambda: nn.Conv2d(3, 3, 3, dilation=2)),
]


@pytest.mark.parametrize(("pixels", "make"), KNOWN, ids=[str(pixels) for pixels, _ in KNOWN])
def test_known_receptive_fields(pixels, make):
    with torch.device("meta"):
        assert receptive_field(make()) == pixels


def imagenet_like(block, dilate=()):
    return ResidualNet(block, (2, 2, 2), (1, 2, 1), 3, "fan_in", imagenet_stem=True, dilate=dilate)


V1, V15 = (
    partial(Bottleneck, shortcut="C", stride_in_1x1=in_1x1, groups=1, width_per_group=64) for in_1x1 in (True, False)
)
SMALL = {
    "plain": lambda: plain(1, 3, "fan_in"),
    "resnet": lambda: resnet(2, "A", 3, "fan_in"),
    "highway": lambda: highway(1, "B", -1.0, 3, "fan_in"),
    "preactivation": lambda: preactivation(1, "B", 3, "fan_in"),
    "stem": lambda: imagenet_like(partial(BasicBlock, shortcut="B")),
    "v1": lambda: imagenet_like(V1),
    "v1.5": lambda: imagenet_like(V15),
    "dilated": lambda: imagenet_like(V15, [False, True, True]),
    "vgg": lambda: VGG([[3, 3], [3, 1]], (2, 3), 4, False, 0.0, 3, "glorot"),
}


@pytest.mark.parametrize("name", SMALL)
def test_receptive_fields_by_gradients(name):
    """Pixels on which the middle of the last map depends, all weights being positive and every pool an average."""
    net = SMALL[name]().double().eval()
    expected = receptive_field(net)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    seen = []
    if isinstance(net, VGG):
        for i in net.ends[1:]:
            net.features[i - 1] = nn.AvgPool2d(2, 2)
        net.features.register_forward_hook(lambda _, __, x: seen.append(x))
        run = net.features
    else:
        if isinstance(net.maxpool, nn.MaxPool2d):
            net.maxpool = nn.AvgPool2d(3, 2, 1)
        net.final.register_forward_hook(lambda _, __, x: seen.append(x))
        run = net
    image = torch.ones(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    run(image)
    rows, columns = seen[0].shape[2:]
    (gradient,) = torch.autograd.grad(seen[0][0, :, rows // 2, columns // 2].sum(), image)
    down, right = gradient[0].abs().sum(0).nonzero().T
    assert [len(range(x.min(), x.max() + 1)) for x in (down, right)] == [expected] * 2
    assert down.min() > 0 and down.max() < 255


def test_three_small_layers_see_what_a_large_one_sees_with_fewer_weights():
    line = three_against_one(channels=10)
    assert "10 channels see 7x7 pixels with 2,700 weights; one 7x7 layer sees 7x7 with 4,900, 81% more" in line


def test_the_command_prints_and_writes_the_table(tmp_path):
    command = [sys.executable, "-m", "src.summary", "resnet20", "vgg11", "-o", f"{tmp_path}/nets.csv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"\| resnet20 +\| 32 +\| 20 ", done.stdout)
    assert "Three 3x3 layers" in done.stdout
    with open(tmp_path / "nets.csv", newline="") as file:
        assert [line["net"] for line in csv.DictReader(file)] == ["resnet20", "vgg11"]
