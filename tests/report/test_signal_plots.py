"""The figure of the first signals."""

from run_dirs import make_config, write_run

from src.report.reading import read_runs
from src.report.signal_plots import draw_signals

LAYERS = [(1.0, 0.5), (1.0, 0.5), (1.0, None)]


def write(root, kind, signals, name, seed=0, **overrides):
    config = make_config(kind, 20, seed, **overrides)
    errors = [(80, 70), (60, 50)]
    write_run(root, config, errors, layers=LAYERS, signals=signals, name=name)


def drawn(root):
    """The lines of each column of axes, from top to bottom, by title; and the legend's texts."""
    figure = draw_signals(read_runs([root])[0])
    columns = len(figure.axes) // 3
    by_title = {
        figure.axes[i].get_title(): [
            [list(line.get_ydata()) for line in axis.get_lines()]
            for axis in figure.axes[i::columns]
        ]
        for i in range(columns)
    }
    return by_title, [text.get_text() for text in figure.legends[0].texts]


def test_each_family_and_norm_has_a_column_of_signals_and_training_errors(tmp_path):
    write(tmp_path, "plain", [(1.0, 4.0), (2.0, 5.0)], "a", model__norm="none")
    write(tmp_path, "plain", [(3.0, 6.0), (4.0, 7.0)], "b", seed=1, model__norm="none")
    write(tmp_path, "plain", [(1.0, 1.0), (1.0, 1.0)], "c", model__init="lecun")
    write(tmp_path, "resnet", [(8.0, 9.0), (8.0, 9.0)], "d")
    write(tmp_path, "resnet", [], "e", model__init="xavier")  # of an older version
    columns, legend = drawn(tmp_path)
    assert columns == {
        "plain nets, no norm": [[[2, 3]], [[5, 6]], [[80, 60]]],  # the mean over the seeds
        "plain nets, batch norm": [[[1, 1]], [[1, 1]], [[80, 60]]],
        "residual nets, batch norm": [[[8, 8]], [[9, 9]], [[80, 60]]],
    }
    assert legend == ["20 layers", "20 layers, init lecun"]


def test_equal_signals_do_not_fill_their_axes_with_rounding(tmp_path):
    write(tmp_path, "plain", [(1.0, 0.5), (1.00001, 0.5)], "a")
    figure = draw_signals(read_runs([tmp_path])[0])
    for axis in figure.axes[:2]:
        low, high = axis.get_ylim()
        assert high / low >= 9.99


def test_nothing_is_drawn_of_runs_without_first_signals(tmp_path):
    write(tmp_path, "plain", [], "a")
    assert draw_signals(read_runs([tmp_path])[0]) is None
