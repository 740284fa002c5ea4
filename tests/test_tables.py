from src.tables import markdown_table, read_csv, write_csv


def test_rows_survive_a_csv_file(tmp_path):
    rows = [
        {"net": "plain20, short", "layers": 20, "error": 30.0, "shortcut": None},
        {"net": "1e5", "layers": 56, "error": 0.125, "added": "later"},
    ]
    write_csv(tmp_path / "rows.csv", rows)
    assert read_csv(tmp_path / "rows.csv") == [
        {"net": "plain20, short", "layers": 20, "error": 30.0, "shortcut": "", "added": ""},
        {"net": "1e5", "layers": 56, "error": 0.125, "shortcut": "", "added": "later"},
    ]


def test_a_markdown_table_is_padded_to_its_longest_cells():
    assert markdown_table(("net", "n"), [("resnet20", "3"), ("plain", "200")]).splitlines() == [
        "| net      | n   |",
        "| -------- | --- |",
        "| resnet20 | 3   |",
        "| plain    | 200 |",
    ]
