"""The views of a localizer, and their boxes in pixels of the image."""

import pytest
import torch

from src.tasks.localization_views import make_views, parse_protocol


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("center", (True, (256,))),
        ("dense", (False, (256,))),
        ("multiscale", (False, (224, 256, 384, 480, 640))),  # Sec. 3.4
        ("scales100-300", (False, (100, 300))),
    ],
)
def test_the_names_of_protocols(name, expected):
    assert parse_protocol(name, 256) == expected


@pytest.mark.parametrize("name", ["refine", "10crop", "scales", "scales0"])
def test_other_names_are_errors_that_list_the_protocols(name):
    with pytest.raises(ValueError, match="set protocol=center, dense, multiscale"):
        parse_protocol(name, 256)


def marked_image():
    """Return an image of 40 x 60 pixels with a white square, and its box."""
    image = torch.zeros((3, 40, 60), dtype=torch.uint8)
    image[:, 12:24, 20:40] = 255
    return image, torch.tensor([[20.0, 12, 40, 24]])


def white_box(image):
    rows, columns = (image[0] > 127).nonzero(as_tuple=True)
    x1, y1, x2, y2 = (int(x) for x in (columns.min(), rows.min(), columns.max(), rows.max()))
    return torch.tensor([[x1, y1, x2 + 1, y2 + 1]], dtype=torch.float32)


@pytest.mark.parametrize("name", ["center", "dense", "scales40", "scales60-80"])
def test_a_box_in_a_view_is_that_of_the_same_pixels_in_the_image(name):
    image, box = marked_image()
    views = make_views(image, parse_protocol(name, 80), crop=64)
    assert len(views) == (2 if name == "scales60-80" else 1)
    for view in views:
        # Up to the half pixel by which interpolation moves an edge.
        torch.testing.assert_close(view.in_image(white_box(view.image)), box, atol=0.5, rtol=0)


def test_a_dense_view_at_the_size_of_the_image_is_the_image():
    image, _ = marked_image()
    (view,) = make_views(image, parse_protocol("dense", 40), crop=32)
    assert torch.equal(view.image, image)


def test_the_central_crop_is_of_the_resized_image():
    image, _ = marked_image()
    (view,) = make_views(image, parse_protocol("center", 80), crop=64)
    assert view.image.shape == (3, 64, 64)
    assert view.corner == (28, 8)  # of 120 x 80
    (whole,) = make_views(image, parse_protocol("center", 80), crop=0)
    assert whole.image.shape == (3, 80, 120)


def test_a_crop_larger_than_an_image_is_all_of_it():
    image, box = marked_image()
    (view,) = make_views(image, parse_protocol("center", 40), crop=50)
    assert view.image.shape == (3, 40, 50)
    assert torch.equal(view.in_image(white_box(view.image)), box)
