"""The figures of loss landscapes."""

from types import SimpleNamespace

import numpy as np
import pytest

from src.evaluation.landscape_points import Measurement, plane_points, profile_points
from src.report.colors import family_color
from src.report.landscape_plots import contour_levels, draw_planes, draw_profile, log_losses

GRID, LIMIT = 5, 1.0


def landscape(name, family, loss):
    """The points of a run whose loss is a function of alpha and beta."""
    points = {*profile_points(GRID, LIMIT), *plane_points(GRID, LIMIT)}
    measured = {point: Measurement(loss(*point), 50 + 30 * point[0]) for point in points}
    return SimpleNamespace(name=name, family=family, measured=measured)


@pytest.fixture
def landscapes():
    return [
        landscape("plain56-s0", "plain", lambda a, b: 10 ** (1 + a * a + b * b)),
        landscape("resnet56-s0", "residual", lambda a, b: 10 ** (-1 + a * a + 0.5 * b)),
    ]


def test_the_profile_has_loss_and_error_of_all_runs_in_the_color_of_their_family(landscapes):
    figure = draw_profile(landscapes, GRID, LIMIT)
    loss, error = figure.axes
    assert loss.get_yscale() == "log"
    for axis in (loss, error):
        assert [line.get_label() for line in axis.get_lines()] == ["plain56-s0", "resnet56-s0"]
        colors = [line.get_color() for line in axis.get_lines()]
        assert colors == [family_color("plain"), family_color("residual")]
    plain = loss.get_lines()[0]
    alphas = np.linspace(-1, 1, 9)
    assert plain.get_xdata() == pytest.approx(alphas)
    assert plain.get_ydata() == pytest.approx(10 ** (1 + alphas**2))
    assert error.get_lines()[1].get_ydata() == pytest.approx(50 + 30 * alphas)


def test_runs_of_one_family_have_different_shades(landscapes):
    [plain, _] = landscapes
    loss, _ = draw_profile([plain, plain, plain], GRID, LIMIT).axes
    assert len({line.get_color() for line in loss.get_lines()}) == 3


def test_contours_and_surfaces_of_all_runs_have_one_scale(landscapes):
    figure = draw_planes(landscapes, GRID, LIMIT)
    contours, surfaces, bar = figure.axes[:2], figure.axes[2:4], figure.axes[4]
    assert [axis.get_title() for axis in contours] == ["plain56-s0", "resnet56-s0"]
    filled = [axis.collections[0] for axis in contours]
    assert filled[0].levels == pytest.approx(filled[1].levels)
    assert filled[0].norm.vmin == filled[1].norm.vmin == pytest.approx(-1.5)
    assert filled[0].norm.vmax == filled[1].norm.vmax == 3
    assert bar.get_ylim() == pytest.approx((-1.5, 3))
    for axis in surfaces:
        assert axis.get_zlim() == pytest.approx((-1.5, 3))
        assert axis.collections[0].get_clim() == pytest.approx((-1.5, 3))
    assert bar.yaxis.get_major_formatter()(2, None) == "$10^{2}$"


def test_a_plane_has_alpha_from_left_to_right_and_beta_from_bottom_to_top(landscapes):
    plane = log_losses(landscapes[1], GRID, LIMIT)
    alphas = betas = np.linspace(-1, 1, GRID)
    assert plane == pytest.approx(-1 + alphas[None] ** 2 + 0.5 * betas[:, None])


def test_losses_that_are_huge_zero_or_not_a_number_stay_on_the_scale():
    losses = {(0.0, 0.0): 0.0, (1.0, 0.0): np.nan, (0.0, 1.0): np.inf, (1.0, 1.0): 1e30}
    net = landscape("net", "vgg", lambda a, b: losses.get((a, b), 1.0))
    plane = log_losses(net, GRID, LIMIT)
    assert plane[2, 2] == -3
    assert plane[2, 4] == plane[4, 2] == plane[4, 4] == 3
    assert (plane == 0).sum() == GRID**2 - 4


def test_a_loss_that_hardly_changes_does_not_fill_the_scale():
    levels = contour_levels([np.full((3, 3), 0.5), np.full((3, 3), 0.50001)])
    assert levels[0] == 0.5
    assert levels[-1] == 1.5
    assert len(levels) > 2
