"""The color of a curve in figures, page and W&B: its hue is the family, its shade the depth."""

import colorsys

# Hues of Okabe and Ito's palette for color-blind readers, in degrees.
HUES = {"plain": 27, "residual": 202, "highway": 164, "preactivation": 327, "vgg": 56}
OTHER_HUE = 265
# The lightness of the shallowest and of the deepest net, both visible on white.
LIGHTEST, DARKEST = 0.68, 0.24
SATURATION = 0.85


def family_color(family: str, depth: float = 0.5) -> str:
    """Return a color as #rrggbb.

    Args:
        family: Gives the hue.
        depth: Gives the shade, from 0 for the shallowest of the nets that are compared to 1 for the
            deepest; by default between both, for what belongs to all depths.
    """
    lightness = LIGHTEST + (DARKEST - LIGHTEST) * depth
    channels = colorsys.hls_to_rgb(HUES.get(family, OTHER_HUE) / 360, lightness, SATURATION)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
