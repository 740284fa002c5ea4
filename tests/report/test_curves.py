from itertools import pairwise

import pytest
from matplotlib.lines import Line2D
from run_dirs import make_config, write_run

from src.report.colors import family_color
from src.report.curves import draw_curves
from src.report.figures import error_limit, net_labels, save_figure, styles
from src.report.layer_plots import draw_gradients, draw_responses
from src.report.reading import read_runs


def read(path):
    return read_runs([path])[0]


def test_a_family_has_one_hue_and_a_depth_one_shade_and_marker_for_all_seeds(tmp_path):
    for kind, depth, seed in (
        ("plain", 20, 0),
        ("plain", 56, 0),
        ("resnet", 20, 0),
        ("resnet", 20, 1),
    ):
        write_run(tmp_path, make_config(kind, depth, seed))
    assert [(s.order, s.label, s.color) for s in styles(read(tmp_path))] == [
        (0, "20 layers", family_color("plain", 0)),
        (1, "56 layers", family_color("plain", 1)),
        (0, "20 layers", family_color("residual", 0)),
        (0, "20 layers", family_color("residual", 0)),
    ]
    write_run(tmp_path, make_config("resnet", 20, 2, model__shortcut="B"))
    assert [s.label for s in styles(read(tmp_path))][2:] == [
        "20 layers",
        "20 layers",
        "20 layers, shortcut B",
    ]
    assert len({s.color for s in styles(read(tmp_path))}) == 4
    assert net_labels(read(tmp_path))[-1] == "residual-20, shortcut B"


def test_a_depth_is_one_entry_of_the_legend_with_the_color_of_each_family(tmp_path):
    for kind in ("resnet", "plain"):
        for depth in (20, 56):
            write_run(tmp_path, make_config(kind, depth), [(9, 10)] * 4)
    figure = draw_curves(read(tmp_path))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["20 layers", "56 layers"]
    assert [line.get_color() for line in legend.findobj(Line2D) if len(line.get_xdata()) > 1] == [
        family_color(family, depth) for depth in (0, 1) for family in ("plain", "residual")
    ]


def test_a_figure_is_as_wide_as_its_longest_label(tmp_path):
    long = {"recipe__decay_norm_and_bias": False, "data__normalization": "channel_mean"}
    for seed, changes in enumerate(({}, long)):
        write_run(tmp_path, make_config("resnet", seed=seed, **changes), [(9, 10)] * 4)
    figure = draw_curves(read(tmp_path))
    figure.draw_without_rendering()
    extent, edges = figure.legends[0].get_window_extent(), figure.bbox
    assert figure.legends[0].get_texts()[-1].get_text() == (
        "20 layers, normalization channel_mean, decay_norm_and_bias false"
    )
    assert edges.x0 <= extent.x0 < extent.x1 <= edges.x1


def test_the_axis_fits_the_second_half_of_the_curves(tmp_path):
    write_run(tmp_path, make_config("plain", 20), [(90, 90), (80, 70), (8, 9), (7, 10)])
    assert error_limit(read(tmp_path)) == 1.1 * 10 + 0.5
    write_run(tmp_path, make_config("plain", 110), [(90, 90), (80, 70), (65, 66), (64, 65)])
    assert error_limit(read(tmp_path)) == 100
    for depth in (32, 44):
        write_run(tmp_path, make_config("plain", depth), [(90, 90), (80, 70), (8, 9), (11, 9)])
    assert error_limit(read(tmp_path)) == 1.1 * 11 + 0.5  # cuts off plain-110, as in Fig. 6
    write_run(tmp_path, make_config("resnet", 110), [(90, 90), (64, 65)])
    assert error_limit(read(tmp_path)) == 100


@pytest.mark.parametrize("iterations", [800, 2000, 16_000, 64_000, 600_000])
def test_labels_of_the_iterations_do_not_touch_each_other(tmp_path, iterations):
    for kind in ("plain", "resnet"):
        config = make_config(kind, 20, recipe__iterations=iterations)
        write_run(tmp_path, config, [(9, 10)] * 8)
    figure = draw_curves(read(tmp_path))
    figure.canvas.draw()
    for axis in figure.axes:
        low, high = axis.get_xlim()
        shown = [tick for tick in axis.get_xticklabels() if low <= tick.get_position()[0] <= high]
        boxes = [tick.get_window_extent() for tick in shown]
        assert len(boxes) > 2
        assert all(one.x1 + 5 < other.x0 for one, other in pairwise(boxes))


def contents(figure):
    """The title and the lines of each axes of a figure, and the texts of its legend."""
    (legend,) = figure.legends
    texts = [text.get_text() for text in (*legend.texts, legend.get_title())]
    return *([axes.get_title(), axes.get_lines()] for axes in figure.axes), texts


def test_training_is_dashed_test_bold_single_seeds_thin_and_unfinished_runs_marked(tmp_path):
    write_run(tmp_path, make_config("plain", 20), [(60, 50), (30, 20)])
    write_run(tmp_path, make_config("resnet", 20, 0), [(40, 30), (20, 10)], final=(20, 10))
    write_run(tmp_path, make_config("resnet", 20, 1), [(40, 50), (20, 30)], final=(20, 30))
    write_run(tmp_path, make_config("resnet", 20, 2), [(99, 99)], failure="no")
    write_run(tmp_path, make_config("preactivation", 20))
    plain, residual, legend = contents(draw_curves(read(tmp_path)))
    assert [plain[0], residual[0]] == ["plain nets", "residual nets"]
    training, test, end = plain[1]
    assert [training.get_linestyle(), test.get_linestyle()] == ["--", "-"]
    assert test.get_linewidth() > training.get_linewidth()
    assert list(test.get_xdata()) == [8000, 16000]
    assert [end.get_marker(), *end.get_xydata()[0]] == [">", 16000, 20]
    mean_training, *thin, mean, failed = residual[1]
    assert list(mean_training.get_ydata()) == [40, 20]
    assert [list(line.get_ydata()) for line in thin] == [[30, 10], [50, 30], [99]]
    assert list(mean.get_ydata()) == [40, 20]  # of the finished seeds
    assert all(
        line.get_linewidth() < mean_training.get_linewidth() < mean.get_linewidth() for line in thin
    )
    assert failed.get_marker() == "X"
    assert legend == [
        "20 layers",
        "bold: test, dashed: training, thin: single seeds, ▷ unfinished, ✕ failed",
    ]


def test_figures_are_svg_and_png_files_that_do_not_change(tmp_path):
    write_run(tmp_path, make_config("plain", 20), [(60, 50)], layers=[(1.0, 0.5), (2.0, 0.4)])
    for draw in (draw_curves, draw_responses, draw_gradients):
        for name in ("one", "two"):
            save_figure(draw(read(tmp_path)), tmp_path / name)
        assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "one.svg").read_text() == (tmp_path / "two.svg").read_text()


def test_dollar_signs_in_a_config_are_drawn_and_not_read_as_a_formula(tmp_path):
    write_run(tmp_path, make_config("resnet", 20), [(10, 10)])
    write_run(tmp_path, make_config("resnet", 20, model__init=r"$\foo$"), [(10, 10)], name="other")
    figure = draw_curves(read(tmp_path))
    save_figure(figure, tmp_path / "curves")
    assert r"$\foo$" in (tmp_path / "curves.svg").read_text()


def test_nothing_is_drawn_of_runs_without_measurements(tmp_path):
    write_run(tmp_path, make_config("plain", 20))
    write_run(tmp_path, make_config("preactivation", 20), [(60, 50)], layers=[(1.0, None)])
    plain, preactivation = read(tmp_path)
    assert draw_curves([plain]) is None
    assert draw_gradients([plain]) is None
    assert draw_responses([plain, preactivation]) is None
    assert draw_gradients([plain, preactivation]) is not None


def test_responses_are_in_layer_order_and_sorted_and_averaged_over_seeds(tmp_path):
    nets = [
        (("plain", 20, 0), 8, [(1.0, 1.0), (2.0, 3.0), (3.0, None)]),
        (("plain", 20, 1), 8, [(1.0, 2.0), (4.0, 6.0), (3.0, None)]),
        (("plain", 20, 2), 1, [(9.0, 9.0), (9.0, 9.0), (9.0, None)]),
        (("resnet", 20, 0), 1, [(0.5, 0.2), (0.5, 0.1), (0.5, None)]),
    ]
    for net, evaluations, layers in nets:
        write_run(tmp_path, make_config(*net), [(6, 5)] * evaluations, layers=layers)
    (_, order), (_, by_size), names = contents(draw_responses(read(tmp_path)))
    assert [list(line.get_ydata()) for line in order] == [[1.5, 4.5], [0.2, 0.1]]
    assert [list(line.get_ydata()) for line in by_size] == [[4.5, 1.5], [0.2, 0.1]]
    assert list(order[0].get_xdata()) == [1, 2]
    assert order[0].get_color() != order[1].get_color()
    assert [line.get_linestyle() for line in order] == ["--", "-"]
    assert names[:2] == ["plain-20", "residual-20 at 8,000 of 64,000 iterations"]


def test_gradients_are_scaled_by_the_weights_at_the_first_iteration_and_the_last(tmp_path):
    nets = [("plain", 1.0, 3.0), ("plain", 3.0, 5.0), ("resnet", 0.5, 0.25)]
    for seed, (kind, *gradients) in enumerate(nets):
        layers = [(gradient, None) for gradient in gradients]
        write_run(tmp_path, make_config(kind, 20, seed), [(6, 5)] * 8, layers=layers)
    (first_title, first), (last_title, last), names = contents(draw_gradients(read(tmp_path)))
    assert [first_title, last_title] == [
        "gradients at the first iteration",
        "gradients at the last evaluation",
    ]
    assert [list(line.get_ydata()) for line in first] == [[6, 12], [1.5, 0.75]]
    assert [list(line.get_ydata()) for line in last] == [[4, 8], [1, 0.5]]
    assert names[:2] == ["plain-20", "residual-20"]


def test_a_run_of_an_older_version_has_responses_but_no_scaled_gradients(tmp_path):
    path = write_run(tmp_path, make_config("plain", 20), [(6, 5)])
    (path / "layers.csv").write_text("iteration,layer,gradient,response\n8000,conv1,2.0,0.5\n")
    [run] = read(tmp_path)
    assert run.layers == [{"iteration": 8000, "gradient": 2, "response": 0.5}]
    assert draw_gradients([run]) is None
    assert draw_responses([run]) is not None


def test_responses_of_pre_activation_nets_are_marked_as_those_of_the_convolutions(tmp_path):
    for kind in ("resnet", "preactivation"):
        layers = [(1.0, 2.0), (1.0, 3.0)]
        write_run(tmp_path, make_config(kind, 20), [(6, 5)] * 8, layers=layers)
    (_, order), _, names = contents(draw_responses(read(tmp_path)))
    assert [list(line.get_ydata()) for line in order] == [[2, 3], [2, 3]]
    assert names[:2] == ["residual-20", "preactivation-20, before batch norm"]
