import io
import warnings

import numpy as np
import pytest
import torch
from images_on_disk import SAMPLE, encoded, needs_sample, picture
from PIL import Image
from torchvision import transforms

from src.data.photo import Box, RandomArea, RandomScale, center, cut, decode, scaled

COLORS = picture(0, 200, 150)


def array(file):
    return np.frombuffer(file, np.uint8).copy()


def pixels(image):
    return np.asarray(image.convert("RGB")).astype(int)


def hwc(photo):
    return photo.permute(1, 2, 0).numpy().astype(int)


def turned(tag):
    exif = Image.Exif()
    exif[274] = tag
    return exif


KINDS = {
    "grey": encoded(COLORS.convert("L")),
    "CMYK": encoded(COLORS.convert("CMYK")),
    "progressive": encoded(COLORS, progressive=True),
    "turned by its EXIF": encoded(COLORS, exif=turned(6)),
    "odd EXIF": encoded(COLORS, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    "PNG": encoded(COLORS, "PNG"),
    "PNG with a palette": encoded(COLORS.convert("P"), "PNG", transparency=b"\0\x80"),
    "PNG with alpha": encoded(COLORS.convert("RGBA"), "PNG"),
    "GIF": encoded(COLORS, "GIF"),
    "WebP": encoded(COLORS, "WEBP"),
    "BMP": encoded(COLORS, "BMP"),
}


@pytest.mark.fault_injection("bad input", "a photo of an odd kind: CMYK, palette, alpha, turned or broken EXIF")
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_is_read_as_pil_reads_it_without_a_word(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo = decode(array(KINDS[kind]))
    assert photo.shape == (3, 150, 200) and photo.dtype == torch.uint8
    assert np.array_equal(hwc(photo), pixels(Image.open(io.BytesIO(KINDS[kind]))))


@pytest.mark.fault_injection("bad input", "a photo that is cut short, no image, or gone")
@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (encoded(COLORS)[:-2], "truncated"),
        (encoded(COLORS)[:1500], "truncated"),
        (encoded(COLORS)[:50], "cannot be decoded"),
        (encoded(COLORS, progressive=True)[:-500], "truncated"),
        (encoded(COLORS, "PNG")[:-2000], "truncated"),
        (b"<html>404 Not Found</html>", "is not an image"),
        (b"", "is not an image"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(file, problem):
    with pytest.raises(ValueError, match=problem):
        decode(array(file))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 333), (60, 90), (2000, 300)])
def test_the_center_is_torchvisions(size):
    image = picture(1, *size)
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)
    ours = center(decode(array(encoded(image, "PNG"))))
    assert abs(hwc(ours) - pixels(theirs)).max() <= 1


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (480, 480), (60, 90), (2000, 300)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_cut_is_what_pil_crops_and_resizes(size, flip):
    image, rng = picture(2, *size), np.random.default_rng(3)
    photo = decode(array(encoded(image, "PNG")))
    for crop in (RandomScale(256, 480), RandomArea()):
        for draws in rng.random((10, crop.draws)):
            box = crop.box(draws, size[1], size[0])
            assert box.top >= 0 and box.left >= 0
            assert box.top + box.height <= size[1] and box.left + box.width <= size[0]
            corners = (box.left, box.top, box.left + box.width, box.top + box.height)
            reference = pixels(image.crop(corners).resize((224, 224), Image.BILINEAR))
            ours = hwc(cut(photo, box, flip))
            assert abs(ours - (reference[:, ::-1] if flip else reference)).max() <= 1


@needs_sample
def test_the_box_of_a_random_scale_shows_what_scaling_the_photo_and_cropping_it_does():
    rng, crop, off, off_by_three = np.random.default_rng(4), RandomScale(256, 480), [], []
    paths = sorted(SAMPLE.glob("*/*"))
    assert len(paths) == 127
    for path in paths:
        image = Image.open(path).convert("RGB")
        scale, down, across = draws = rng.random(3)
        shorter, least = 256 + int(225 * scale), min(image.size)
        width, height = (shorter if side == least else int(side * shorter / least) for side in image.size)
        left, top = int(across * (width - 223)), int(down * (height - 223))
        reference = pixels(image.resize((width, height), Image.BILINEAR).crop((left, top, left + 224, top + 224)))
        photo = decode(np.fromfile(path, np.uint8))
        ours = hwc(cut(photo, crop.box(draws, *photo.shape[1:]), False))
        off.append(abs(ours - reference).mean())
        off_by_three.append(abs(ours[:, 3:] - reference[:, :-3]).mean())
    # Half a pixel's displacement at most, where the photo is not enlarged.
    assert np.mean(off) < 4 and np.mean(off_by_three) > 3 * np.mean(off)


def test_scales_and_places_are_as_likely_as_the_paper_says():
    crop, draws = RandomScale(256, 480), np.random.default_rng(5).random((20_000, 3))
    boxes = np.array([crop.box(d, 22400, 44800) for d in draws])  # so large that nothing is lost by rounding
    shorter = np.round(224 * 22400 / boxes[:, 2]).astype(int)
    counts = np.bincount(shorter, minlength=481)[256:]
    assert len(counts) == 225 and counts.sum() == 20_000
    assert ((counts - 88.9) ** 2 / 88.9).sum() < 300  # chi-squared, 224 degrees of freedom
    assert np.allclose(boxes[:, 2], boxes[:, 3], atol=1)
    for column, side in ((0, 22400), (1, 44800)):
        places = np.round(boxes[:, column] * shorter / 22400).astype(int)
        last = shorter * side // 22400 - 224
        assert (places >= 0).all() and (places <= last).all()
        assert (places == 0).any() and (places == last).any()
        # Uniform on 0 .. last, for each scale: mean 1/2 and deviation of 1/sqrt(12) of the way.
        way = (places + 0.5) / (last + 1)
        assert way.mean() == pytest.approx(0.5, abs=0.01) and way.std() == pytest.approx(12**-0.5, abs=0.01)


def test_areas_and_shapes_are_as_torchvision_draws_them():
    crop, draws = RandomArea(), np.random.default_rng(6).random((4000, 22))
    torch.manual_seed(0)
    blank = torch.empty(1, 375, 500)
    parameters = transforms.RandomResizedCrop.get_params
    theirs = np.array([parameters(blank, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = np.array([crop.box(d, 375, 500) for d in draws])
    for of in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2] * b[:, 3], lambda b: np.log(b[:, 3] / b[:, 2])):
        a, b = of(ours), of(theirs)
        assert a.mean() == pytest.approx(b.mean(), abs=4 * b.std() / 2000**0.5)
        assert a.std() == pytest.approx(b.std(), rel=0.05)


@pytest.mark.parametrize("sides", [(10, 1000), (1000, 10), (1, 1), (1, 500)])
def test_a_long_photo_gets_its_middle_as_from_torchvision(sides):
    theirs = transforms.RandomResizedCrop.get_params(torch.empty(1, *sides), [1.0, 1.0], [3 / 4, 4 / 3])
    assert RandomArea(1.0).box(np.full(22, 0.5), *sides) in (Box(*theirs), Box(0, 0, 1, 1))


def test_the_shorter_side_is_brought_to_a_length():
    assert [scaled(*sides, 256) for sides in ((375, 500), (500, 375), (100, 100), (3, 1))] == [
        (256, 341),
        (341, 256),
        (256, 256),
        (768, 256),
    ]
