from run_dirs import make_config, write_run

from src.report.reading import read_runs
from src.report.wandb_study import lines_by_depth


def test_a_family_is_a_line_of_the_means_over_its_seeds(tmp_path):
    for kind, error in (("plain", 40.0), ("resnet", 10.0)):
        for depth in (56, 20):
            for seed in (0, 1):
                config = make_config(kind, depth, seed)
                write_run(tmp_path, config, final=(error + depth + 2 * seed, 5.0))
    runs = read_runs([tmp_path])[0]
    assert lines_by_depth(runs, "train_error") == {
        "cifar10, plain": [(20, 61.0), (56, 97.0)],
        "cifar10, residual": [(20, 31.0), (56, 67.0)],
    }


def test_runs_trained_in_other_ways_have_lines_of_their_own(tmp_path):
    for iterations in (64000, 2000):
        config = make_config(recipe__iterations=iterations)
        write_run(tmp_path, config, final=(5.0, 8.0), name=f"{iterations}")
    runs = read_runs([tmp_path])[0]
    assert sorted(lines_by_depth(runs, "test_error")) == [
        "cifar10, residual",
        "cifar10, residual, iterations 2000",
    ]
