"""Masks drawn on images: a color for each class, gray where none counts."""

import torch

from src.tasks.pictures import SIDE, draw_mask, mask_color


def test_a_mask_has_a_color_for_each_class_and_leaves_the_background_as_it_is():
    image = torch.full((3, 1, 4), 200, dtype=torch.uint8)
    mask = torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8)
    drawn = draw_mask(image, mask)
    assert drawn.shape == (3, SIDE, SIDE)
    pixels = drawn[:, 0, SIDE // 8 :: SIDE // 4].T.tolist()
    assert pixels[0] == [200, 200, 200]
    assert len({tuple(pixel) for pixel in pixels}) == 4
    assert len({*pixels[3]}) == 1  # gray
    assert drawn[:, SIDE // 4 :].max() == 0  # below the image


def test_an_image_without_objects_is_drawn_as_it_is():
    image = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(3, 4, 4)
    drawn = draw_mask(image, torch.zeros(4, 4, dtype=torch.uint8))
    assert torch.equal(drawn[:, :: SIDE // 4, :: SIDE // 4], image)


def test_the_colors_of_21_classes_differ():
    assert len({mask_color(label) for label in range(1, 22)}) == 21
