import io
import warnings

import numpy as np
import pytest
import torch
from images_on_disk import encode, random_image
from PIL import Image

from src.data.image_reader import decode_image

IMAGE = random_image(0, 200, 150)


def rotated_exif():
    exif = Image.Exif()
    exif[274] = 6
    return exif


FORMATS = {
    "gray": encode(IMAGE.convert("L")),
    "CMYK": encode(IMAGE.convert("CMYK")),
    "progressive": encode(IMAGE, progressive=True),
    "rotated by its EXIF": encode(IMAGE, exif=rotated_exif()),
    "corrupt EXIF": encode(IMAGE, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    "PNG": encode(IMAGE, "PNG"),
    "PNG with a palette": encode(IMAGE.convert("P"), "PNG", transparency=b"\0\x80"),
    "PNG with alpha": encode(IMAGE.convert("RGBA"), "PNG"),
    "GIF": encode(IMAGE, "GIF"),
    "WebP": encode(IMAGE, "WEBP"),
    "BMP": encode(IMAGE, "BMP"),
}


@pytest.mark.fault_injection(
    "bad input", "an unusual image: CMYK, palette, alpha, rotated or corrupt EXIF"
)
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_decoded_as_pillow_does_without_a_warning(name):
    file = FORMATS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_image(np.frombuffer(file, np.uint8).copy())
    assert image.shape == (3, 150, 200)
    assert image.dtype == torch.uint8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.fault_injection("bad input", "an image that is truncated, no image, or gone")
@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (encode(IMAGE)[:-2], "truncated"),
        (encode(IMAGE)[:1500], "truncated"),
        (encode(IMAGE)[:50], "cannot be decoded"),
        (encode(IMAGE, progressive=True)[:-500], "truncated"),
        (encode(IMAGE, "PNG")[:-2000], "truncated"),
        (b"<html>404 Not Found</html>", "is not an image"),
        (b"", "is not an image"),
    ],
)
def test_an_incomplete_file_is_refused(file, problem):
    with pytest.raises(ValueError, match=problem):
        decode_image(np.frombuffer(file, np.uint8).copy())
