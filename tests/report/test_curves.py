from run_dirs import make_config, write_run

from src.report import curves, layer_plots
from src.report.results import read_runs
from src.report.style import COLORS, error_limit, nets, styles


def read(place):
    return read_runs([place])[0]


def test_a_depth_has_one_color_in_all_families_and_seeds(tmp_path):
    for kind, depth, seed in (
        ("plain", 20, 0),
        ("plain", 56, 0),
        ("resnet", 20, 0),
        ("resnet", 20, 1),
    ):
        write_run(tmp_path, make_config(kind, depth, seed))
    assert [(s.label, s.color) for s in styles(read(tmp_path))] == [
        ("20 layers", COLORS[0]),
        ("56 layers", COLORS[1]),
        ("20 layers", COLORS[0]),
        ("20 layers", COLORS[0]),
    ]
    write_run(tmp_path, make_config("resnet", 20, 2, model__shortcut="B"))
    assert [s.label for s in styles(read(tmp_path))][2:] == [
        "20 layers",
        "20 layers",
        "20 layers, shortcut B",
    ]
    assert len({s.color for s in styles(read(tmp_path))}) == 3
    assert nets(read(tmp_path))[-1] == "residual-20, shortcut B"


def test_the_axis_fits_the_second_half_of_the_curves(tmp_path):
    write_run(tmp_path, make_config("plain", 20), [(90, 90), (80, 70), (8, 9), (7, 10)])
    assert error_limit(read(tmp_path)) == 1.1 * 10 + 0.5
    write_run(tmp_path, make_config("plain", 110), [(90, 90), (80, 70), (65, 66), (64, 65)])
    assert error_limit(read(tmp_path)) == 100
    for depth in (32, 44):
        write_run(tmp_path, make_config("plain", depth), [(90, 90), (80, 70), (8, 9), (11, 9)])
    assert error_limit(read(tmp_path)) == 1.1 * 11 + 0.5  # and plain-110 is not shown, as in Fig. 6
    write_run(tmp_path, make_config("resnet", 110), [(90, 90), (64, 65)])
    assert error_limit(read(tmp_path)) == 100


def lines_of(monkeypatch, module, draw, place):
    """What a figure draws: for each of its axes a list of lines."""
    found = []

    def save(figure, path):
        found.extend([axis.get_title(), axis.get_lines()] for axis in figure.axes)
        found.append(
            [text.get_text() for text in (*figure.legends[0].texts, figure.legends[0].get_title())]
        )

    monkeypatch.setattr(module, "save", save)
    assert draw(read(place), place / "figure")
    return found


def test_training_is_dashed_tests_are_bold_seeds_thin_and_unfinished_runs_marked(
    tmp_path, monkeypatch
):
    write_run(tmp_path, make_config("plain", 20), [(60, 50), (30, 20)])
    write_run(tmp_path, make_config("resnet", 20, 0), [(40, 30), (20, 10)], final=(20, 10))
    write_run(tmp_path, make_config("resnet", 20, 1), [(40, 50), (20, 30)], final=(20, 30))
    write_run(tmp_path, make_config("resnet", 20, 2), [(99, 99)], failure="no")
    write_run(tmp_path, make_config("preactivation", 20))
    plain, residual, legend = lines_of(monkeypatch, curves, curves.draw_curves, tmp_path)
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


def test_figures_are_files_of_both_kinds_the_same_each_time(tmp_path):
    write_run(tmp_path, make_config("plain", 20), [(60, 50)], layers=[(1.0, 0.5), (2.0, 0.4)])
    for draw in (curves.draw_curves, layer_plots.draw_responses, layer_plots.draw_gradients):
        assert draw(read(tmp_path), tmp_path / "one")
        assert draw(read(tmp_path), tmp_path / "two")
        assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "one.svg").read_text() == (tmp_path / "two.svg").read_text()


def test_nothing_is_drawn_where_nothing_was_measured(tmp_path):
    write_run(tmp_path, make_config("plain", 20))
    write_run(tmp_path, make_config("preactivation", 20), [(60, 50)], layers=[(1.0, None)])
    assert not curves.draw_curves(read(tmp_path)[:1], tmp_path / "x")
    assert not layer_plots.draw_gradients(read(tmp_path)[:1], tmp_path / "x")
    assert not layer_plots.draw_responses(read(tmp_path), tmp_path / "x")
    assert layer_plots.draw_gradients(read(tmp_path), tmp_path / "x")


def test_responses_are_in_layer_order_and_sorted_and_averaged_over_seeds(tmp_path, monkeypatch):
    write_run(
        tmp_path,
        make_config("plain", 20, 0),
        [(6, 5)] * 8,
        (6, 5),
        layers=[(1.0, 1.0), (2.0, 3.0), (3.0, None)],
    )
    write_run(
        tmp_path,
        make_config("plain", 20, 1),
        [(6, 5)] * 8,
        (6, 5),
        layers=[(1.0, 2.0), (4.0, 6.0), (3.0, None)],
    )
    write_run(
        tmp_path,
        make_config("plain", 20, 2),
        [(6, 5)],
        layers=[(9.0, 9.0), (9.0, 9.0), (9.0, None)],
    )
    write_run(
        tmp_path,
        make_config("resnet", 20, 0),
        [(6, 5)],
        layers=[(0.5, 0.2), (0.5, 0.1), (0.5, None)],
    )
    (_, order), (_, by_size), names = lines_of(
        monkeypatch, layer_plots, layer_plots.draw_responses, tmp_path
    )
    assert [list(line.get_ydata()) for line in order] == [[1.5, 4.5], [0.2, 0.1]]
    assert [list(line.get_ydata()) for line in by_size] == [[4.5, 1.5], [0.2, 0.1]]
    assert list(order[0].get_xdata()) == [1, 2]
    assert order[0].get_color() != order[1].get_color()
    assert [line.get_linestyle() for line in order] == ["--", "-"]
    assert names[:2] == ["plain-20", "residual-20 at 8,000 of 64,000 iterations"]
    (_, norms), _ = lines_of(monkeypatch, layer_plots, layer_plots.draw_gradients, tmp_path)
    assert [list(line.get_ydata()) for line in norms] == [[1, 3, 3], [0.5, 0.5, 0.5]]
