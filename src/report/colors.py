"""The color of a net in figures, page and W&B: its hue says the family, its shade the depth."""

import colorsys
from collections.abc import Iterable

# Hues of Okabe and Ito's palette for color-blind readers, in degrees.
HUES = {"plain": 27, "residual": 202, "highway": 164, "preactivation": 327, "vgg": 56}
OTHER_HUE = 265
# The lightness of the shallowest and of the deepest net, both visible on white.
LIGHTEST, DARKEST = 0.68, 0.24
SATURATION = 0.85

Net = tuple[str, int]


def net_colors(nets: Iterable[Net]) -> dict[Net, str]:
    """Return a color for each net, as #rrggbb; equal depths have equal shades in all families.

    Args:
        nets: (family, depth) of all nets that are compared with each other.
    """
    nets = set(nets)
    # By rank: by value, 20 and 110 layers would look alike where 1202 are shown.
    depths = sorted({depth for _, depth in nets})
    step = (LIGHTEST - DARKEST) / max(1, len(depths) - 1)
    return {
        (family, depth): _hex(family, LIGHTEST - step * depths.index(depth))
        for family, depth in nets
    }


def _hex(family: str, lightness: float) -> str:
    channels = colorsys.hls_to_rgb(HUES.get(family, OTHER_HUE) / 360, lightness, SATURATION)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
