import colorsys

from src.report.colors import net_colors


def hls(color):
    return colorsys.rgb_to_hls(*(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)))


def test_a_family_has_one_hue_and_a_depth_one_shade():
    nets = [(family, depth) for family in ("plain", "residual") for depth in (20, 56, 1202)]
    colors = {net: hls(color) for net, color in net_colors(nets).items()}
    hues = {family: {round(colors[family, d][0], 1) for d in (20, 56, 1202)} for family, _ in nets}
    assert hues == {"plain": {0.1}, "residual": {0.6}}
    shades = [[colors[family, d][1] for d in (20, 56, 1202)] for family in ("plain", "residual")]
    assert shades[0] == sorted(shades[0], reverse=True)
    assert [round(shade, 2) for shade in shades[0]] == [round(shade, 2) for shade in shades[1]]


def test_a_single_net_of_an_unknown_family_has_a_color():
    (color,) = net_colors([("mlp", 3)]).values()
    assert color.startswith("#")
    assert len(color) == 7
