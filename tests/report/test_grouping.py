from src.report.grouping import group_by, group_seeds


def test_groups_keep_the_order_of_unsorted_items():
    assert group_by([3, 1, 5, 2], lambda i: i % 2) == {1: [3, 1, 5], 0: [2]}


def test_seeds_of_one_run_by_one_protocol_with_equal_batches_of_batch_norm_are_a_group():
    base = {"config": "c1", "protocol": "center", "batch_norm_images": 128}
    other = [{"config": "c2"}, {"protocol": "10crop"}, {"batch_norm_images": 64}]
    rows = [base | {"seed": 0}, *(base | {"seed": 0} | change for change in other)]
    rows.append(base | {"seed": 1})
    assert group_seeds(rows) == [[rows[0], rows[4]], [rows[1]], [rows[2]], [rows[3]]]
