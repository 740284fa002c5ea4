from importlib.util import find_spec

import numpy as np
import pytest
import torch
from images_on_disk import encode, random_image
from PIL import Image

from src.data import jpeg


def exif_of(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


FILES = {
    "RGB": encode(random_image(0, 64, 48)),
    "gray": encode(random_image(1, 33, 17).convert("L")),
    "progressive": encode(random_image(2, 50, 40), progressive=True),
    **{
        f"orientation {orientation}": encode(random_image(3, 64, 48), exif=exif_of(orientation))
        for orientation in range(1, 9)
    },
}


def as_array(file):
    return np.frombuffer(file, np.uint8).copy()


def test_torchcodec_is_used_where_it_is_installed():
    assert (find_spec("torchcodec") is not None) == jpeg.HAS_TORCHCODEC


@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
@pytest.mark.parametrize("name", FILES)
def test_both_decoders_return_the_pixels_as_they_are_stored(name, monkeypatch):
    file = as_array(FILES[name])
    image = jpeg.decode_rgb(file)
    monkeypatch.setattr(jpeg, "HAS_TORCHCODEC", False)
    assert image.equal(jpeg.decode_rgb(file))
    assert bytes(file) == FILES[name]  # the caller's file is not changed


@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
def test_both_encoders_write_the_same_file(monkeypatch):
    image = jpeg.decode_rgb(as_array(FILES["RGB"]))
    file = jpeg.encode_rgb(image, 90)
    assert len(file) > len(jpeg.encode_rgb(image, 30))
    monkeypatch.setattr(jpeg, "HAS_TORCHCODEC", False)
    assert np.array_equal(file, jpeg.encode_rgb(image, 90))
    assert (jpeg.decode_rgb(file).int() - image.int()).abs().float().mean() < 8


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\xff",
        b"\xff\xd8\xff",
        b"no image at all",
        FILES["RGB"][:-2],
        FILES["RGB"][:20],
        b"\xff\xd8\xff\xe1\0\0" * 3,  # segments of no length
    ],
)
def test_what_is_not_a_complete_jpeg_file_is_refused(file):
    with pytest.raises(RuntimeError):
        jpeg.decode_rgb(as_array(file))


def test_a_later_exif_segment_does_not_rotate_either():
    plain, rotated = FILES["RGB"], FILES["orientation 6"]
    exif = rotated[rotated.index(b"\xff\xe1") :][: 2 + 0x22]
    end_of_jfif = 20
    between = plain[:end_of_jfif] + b"\xff\xfe\0\x04hi" + exif + plain[end_of_jfif:]
    expected = jpeg.decode_rgb(as_array(plain))
    assert torch.equal(jpeg.decode_rgb(as_array(between)), expected)
