import pytest

from src.runs.csv_rows import append_rows, read_rows, truncate_rows


def test_a_new_csv_file_gets_a_header_and_an_old_one_none(tmp_path):
    path = tmp_path / "rows.csv"
    append_rows(path, ["iteration", "a", "b"], [{"iteration": 1, "a": 2}])
    append_rows(path, ["iteration", "a", "b"], [{"iteration": 3, "b": 0.5}])
    assert path.read_text() == "iteration,a,b\n1,2,\n3,,0.5\n"
    assert read_rows(path) == [{"iteration": 1, "a": 2}, {"iteration": 3, "b": 0.5}]


def test_a_csv_file_of_an_older_version_keeps_its_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("iteration,b\n1,2\n")
    append_rows(path, ["iteration", "a", "b"], [{"iteration": 3, "a": 4, "b": 5}])
    assert path.read_text() == "iteration,b\n1,2\n3,5\n"


@pytest.mark.parametrize(
    ("iteration", "remaining"), [(30, "1,x\n20,y\n"), (20, "1,x\n20,y\n"), (19, "1,x\n"), (0, None)]
)
def test_rows_after_an_iteration_and_an_incomplete_last_row_are_dropped(
    tmp_path, iteration, remaining
):
    path = tmp_path / "rows.csv"
    path.write_text("iteration,a\n1,x\n20,y\n25")
    assert truncate_rows(path, iteration) == bool(remaining)
    if remaining:
        assert path.read_text() == f"iteration,a\n{remaining}"
    else:
        assert not path.exists()
