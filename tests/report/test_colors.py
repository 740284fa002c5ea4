import colorsys

import pytest
from matplotlib.colors import to_hex
from run_dirs import make_config, write_run

from src.report.colors import HUES, family_color
from src.report.convergence_plot import draw_convergence
from src.report.curves import draw_curves
from src.report.layer_plots import draw_gradients, draw_responses
from src.report.reading import read_runs
from src.report.signal_plots import draw_signals


def hue_and_lightness(color):
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return colorsys.rgb_to_hls(*channels)[:2]


@pytest.mark.parametrize("family", ["plain", "residual", "a family of the user's own"])
def test_a_family_has_one_hue_and_deeper_nets_are_darker(family):
    colors = [hue_and_lightness(family_color(family, depth)) for depth in (0, 0.5, 1)]
    hues, lightness = zip(*colors, strict=True)
    assert max(hues) - min(hues) < 0.01
    assert lightness == pytest.approx((0.68, 0.46, 0.24), abs=0.005)


def test_plain_and_residual_nets_differ_in_hue():
    plain, residual = (hue_and_lightness(family_color(f)) for f in ("plain", "residual"))
    assert abs(plain[0] - residual[0]) > 0.3
    assert plain[1] == pytest.approx(residual[1], abs=0.005)


@pytest.mark.parametrize(
    "draw", [draw_convergence, draw_curves, draw_gradients, draw_responses, draw_signals]
)
def test_the_lines_of_a_net_have_the_hue_of_its_family_in_every_figure(tmp_path, draw):
    for kind in ("plain", "resnet"):
        for depth in (20, 56):
            write_run(
                tmp_path, make_config(kind, depth), [(40, 40)] * 3, final=(1, 1),
                layers=[(1.0, 0.5)], signals=[(1.0, 1.0)],
            )  # fmt: skip
    figure = draw(read_runs([tmp_path])[0])
    colors = {to_hex(line.get_color()) for axis in figure.axes for line in axis.get_lines()}
    hues = {round(360 * hue_and_lightness(color)[0]) for color in colors}
    assert hues == {HUES["plain"], HUES["residual"]}
