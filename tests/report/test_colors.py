import colorsys

import pytest

from src.report.colors import family_color


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
