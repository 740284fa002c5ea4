"""What is done to an image is done to its objects as well."""

import numpy as np
import pytest
import torch

from src.data.examples import Example, cropped, make_target, mirror, resized, to_learn


def dots(*places, height=6, width=8):
    """Return a black image with an object of one white pixel at each place, row and column."""
    image = torch.zeros((3, height, width), dtype=torch.uint8)
    for row, column in places:
        image[:, row, column] = 255
    boxes = [[column, row, column + 1, row + 1] for row, column in places]
    return Example(image, make_target(0, boxes, [1] * len(boxes)))


def assert_boxes_are_white(example):
    for x1, y1, x2, y2 in example.target["boxes"].long().tolist():
        assert (example.image[:, y1:y2, x1:x2] == 255).all()


def masked():
    mask = torch.arange(48, dtype=torch.uint8).reshape(6, 8)
    return Example(mask.expand(3, 6, 8), make_target(0, [], [], mask=mask))


def test_a_mirrored_box_has_the_same_pixels():
    example = dots((2, 0), (2, 1), (5, 6))
    mirrored = mirror(example)
    assert_boxes_are_white(mirrored)
    assert torch.equal(mirror(mirrored).target["boxes"], example.target["boxes"])


def test_a_mask_is_mirrored_with_its_image():
    image, target = mirror(masked())
    assert torch.equal(image[0], target["mask"])
    assert target["mask"][0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("corner", [(0.0, 0.0), (0.99, 0.99), (0.5, 0.2)])
@pytest.mark.parametrize("side", [4, 7])
def test_a_mask_is_cropped_with_its_image(corner, side):
    image, target = cropped(masked(), side, np.array(corner))
    assert torch.equal(image[0], target["mask"])
    assert image.shape == (3, min(6, side), side)
    first = target["mask"][0, 0].item()
    assert divmod(first, 8) == tuple(
        int(c * max(1, n - side + 1)) for c, n in zip(corner, (6, 8), strict=True)
    )


def test_boxes_are_cropped_with_their_image():
    example = cropped(dots((2, 2), (5, 7), (3, 4)), 4, np.array([0.34, 0.21]))  # from (1, 1)
    assert_boxes_are_white(example)
    assert example.target["boxes"].tolist() == [[1, 1, 2, 2], [4, 4, 4, 4], [3, 2, 4, 3]]
    assert (example.image == 255).sum() == 3 * 2


def test_a_box_that_reaches_out_of_the_crop_ends_at_its_edge():
    image = torch.zeros((3, 6, 8), dtype=torch.uint8)
    example = Example(image, make_target(0, [[0, 0, 8, 3]], [1]))
    (box,) = cropped(example, 4, np.array([0.99, 0.5])).target["boxes"].tolist()  # from (2, 2)
    assert box == [0, 0, 4, 1]


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 6)])
def test_a_resized_image_has_its_boxes_where_they_were(height, width):
    example = resized(dots((2, 3), (5, 0), height=height, width=width), 24)
    assert example.image.shape == (3, 4 * height, 4 * width)
    first, _ = example.target["boxes"].tolist()
    assert first == [12, 8, 16, 12]
    # Interpolation blurs a pixel over its neighbors.
    assert (example.image[:, 9:11, 13:15] > 150).all()


def test_an_image_of_the_right_size_is_not_resized():
    example = dots((2, 3))
    assert resized(example, 6) is example


def test_a_mask_is_resized_without_new_classes():
    image, target = resized(masked(), 9)
    assert image.shape[1:] == target["mask"].shape == (9, 12)
    assert {*target["mask"].flatten().tolist()} <= {*range(48)}
    assert target["mask"].dtype == torch.uint8


def test_ignored_objects_are_not_learned():
    example = dots((1, 1), (2, 2), (3, 3))
    example.target["iscrowd"][1] = 1
    learned = to_learn(example).target
    assert learned["boxes"].tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
    assert len(learned["labels"]) == len(learned["area"]) == 2


def test_an_image_without_objects_has_boxes_and_labels_all_the_same():
    target = dots().target
    assert (target["boxes"].shape, target["boxes"].dtype) == ((0, 4), torch.float32)
    assert (target["labels"].shape, target["labels"].dtype) == ((0,), torch.int64)
