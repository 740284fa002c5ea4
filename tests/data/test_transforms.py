import numpy as np
import pytest
import torch
from images_on_disk import EIGENVALUES, EIGENVECTORS, SAMPLE, needs_sample, random_image
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize
from torchvision.transforms import RandomResizedCrop as TorchvisionRandomResizedCrop

from src.data.image_reader import decode_image
from src.data.transforms import (
    Box,
    CropParams,
    RandomResizedCrop,
    RandomScaleCrop,
    center_crop,
    crop_and_flip,
    crop_and_resize,
    normalize,
    pca_color_noise,
    random_crop_params,
    scaled_size,
)


def to_tensor(image):
    """The pixels of a Pillow image, uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_array(image):
    """The pixels of a tensor [3, H, W] or of a Pillow image, int [H, W, 3]."""
    array = image.permute(1, 2, 0).numpy() if torch.is_tensor(image) else np.asarray(image)
    return array.astype(int)


def test_every_corner_and_both_flips_are_equally_likely():
    params = random_crop_params(np.random.default_rng(0), 162_000, padding=4, flip=True)
    top, left, flip = (tensor.numpy() for tensor in params)
    counts = np.bincount((top * 9 + left) * 2 + flip, minlength=162)
    assert len(counts) == 162  # 81 corners, two flips
    # A thousand of each are expected; 5 standard deviations of a count are 158.
    assert (abs(counts - 1000) < 160).all()


def test_a_cropped_batch_equals_a_reference_image_by_image_bitwise():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (300, 32, 32, 3)).astype(np.uint8)
    mean = rng.random((32, 32, 3)).astype(np.float32) * 255
    params = random_crop_params(np.random.default_rng(2), 300, padding=4, flip=True)
    normalized = normalize(torch.from_numpy(images), torch.from_numpy(mean), None)
    batch = crop_and_flip(normalized, params, 4).numpy()
    per_image = zip(images, *(tensor.tolist() for tensor in params), batch, strict=True)
    for image, top, left, flip, result in per_image:
        padded = np.zeros((40, 40, 3), np.float32)
        padded[4:36, 4:36] = image.astype(np.float32) - mean
        crop = padded[top : top + 32, left : left + 32]
        assert np.array_equal(crop[:, ::-1] if flip else crop, result)


def test_without_padding_and_flip_images_stay_as_they_are():
    images = torch.rand(50, 8, 8, 3)
    params = random_crop_params(np.random.default_rng(0), 50, padding=0, flip=False)
    assert torch.equal(crop_and_flip(images, params, 0), images)


def test_the_corner_zero_shows_the_padding_above_and_to_the_left():
    images = torch.ones(1, 4, 4, 1)
    zero = torch.zeros(1, dtype=torch.int64)
    params = CropParams(zero, zero + 2, torch.tensor([False]))
    result = crop_and_flip(images, params, 1)[0, :, :, 0]
    expected = [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0.0]]
    assert torch.equal(result, torch.tensor(expected))


def test_normalization_by_channel_subtracts_the_mean_and_divides_by_the_std():
    images = torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8)
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    result = normalize(images, mean, std)
    assert result.dtype == torch.float32
    for channel in range(3):
        expected = images[..., channel].numpy().astype(np.float32) - mean[channel].item()
        expected = expected / std[channel].item()
        np.testing.assert_array_equal(result[..., channel].numpy(), expected)


def test_color_noise_has_alexnets_covariance():
    noise = pca_color_noise(np.random.default_rng(0), 200_000, 0.1).double().numpy()
    expected = 255**2 * EIGENVECTORS @ np.diag((0.1 * EIGENVALUES) ** 2) @ EIGENVECTORS.T
    np.testing.assert_allclose(np.cov(noise.T), expected, rtol=0.03, atol=0.05)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.05)
    alphas = np.random.default_rng(0).normal(0, 0.1, (200_000, 3))
    expected = 255 * np.einsum("nk,k,ck->nc", alphas, EIGENVALUES, EIGENVECTORS)
    np.testing.assert_allclose(noise, expected, atol=1e-4)
    assert not pca_color_noise(np.random.default_rng(0), 5, 0).any()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(375, 500, (256, 341)), (500, 375, (341, 256)), (100, 100, (256, 256)), (3, 1, (768, 256))],
)
def test_the_shorter_side_is_scaled_to_a_length(height, width, expected):
    assert scaled_size(height, width, 256) == expected


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 333), (60, 90), (2000, 300)])
def test_a_center_crop_is_torchvisions(size):
    image = random_image(1, *size)
    expected = Compose([Resize(256), CenterCrop(224)])(image)
    assert abs(to_array(center_crop(to_tensor(image))) - to_array(expected)).max() <= 1


@pytest.mark.parametrize("size", [(500, 375), (480, 480), (60, 90), (1200, 300)])
def test_a_random_crop_is_what_pillow_crops_and_resizes(size):
    image, rng = random_image(2, *size), np.random.default_rng(3)
    pixels = to_tensor(image)
    for crop in (RandomScaleCrop(256, 480), RandomResizedCrop()):
        for i, draws in enumerate(rng.random((6, crop.num_draws))):
            box, flip = crop.box(draws, size[1], size[0]), i % 2 == 1
            right, bottom = box.left + box.width, box.top + box.height
            assert 0 <= box.left < right <= size[0]
            assert 0 <= box.top < bottom <= size[1]
            expected = image.crop((box.left, box.top, right, bottom))
            expected = to_array(expected.resize((224, 224), Image.BILINEAR))
            result = to_array(crop_and_resize(pixels, box, flip))
            assert abs(result - (expected[:, ::-1] if flip else expected)).max() <= 1


@needs_sample
def test_a_box_shows_what_scaling_the_image_and_cropping_it_does():
    rng, crop = np.random.default_rng(4), RandomScaleCrop(256, 480)
    differences, displaced_by_three = [], []
    paths = sorted(SAMPLE.glob("*/*"))
    assert len(paths) == 127
    for path in paths[::5]:
        image = Image.open(path).convert("RGB")
        scale, row, column = draws = rng.random(3)
        shorter, least = 256 + int(225 * scale), min(image.size)
        width, height = (
            shorter if side == least else int(side * shorter / least) for side in image.size
        )
        left, top = int(column * (width - 223)), int(row * (height - 223))
        expected = image.resize((width, height), Image.BILINEAR)
        expected = to_array(expected.crop((left, top, left + 224, top + 224)))
        pixels = decode_image(np.fromfile(path, np.uint8))
        result = to_array(crop_and_resize(pixels, crop.box(draws, *pixels.shape[1:]), False))
        differences.append(abs(result - expected).mean())
        displaced_by_three.append(abs(result[:, 3:] - expected[:, :-3]).mean())
    # Displaced by half a pixel at most, where the image is not enlarged.
    assert np.mean(differences) < 4
    assert np.mean(displaced_by_three) > 3 * np.mean(differences)


def test_scales_and_places_are_uniform_as_the_paper_says():
    crop, draws = RandomScaleCrop(256, 480), np.random.default_rng(5).random((20_000, 3))
    # An image so large that rounding to its pixels loses nothing.
    boxes = np.array([crop.box(numbers, 22400, 44800) for numbers in draws])
    shorter = np.round(224 * 22400 / boxes[:, 2]).astype(int)
    counts = np.bincount(shorter, minlength=481)[256:]
    assert len(counts) == 225
    assert counts.sum() == 20_000
    assert ((counts - 88.9) ** 2 / 88.9).sum() < 300  # chi-squared, 224 degrees of freedom
    assert np.allclose(boxes[:, 2], boxes[:, 3], atol=1)
    for column, side in ((0, 22400), (1, 44800)):
        places = np.round(boxes[:, column] * shorter / 22400).astype(int)
        last = shorter * side // 22400 - 224
        assert (places >= 0).all()
        assert (places <= last).all()
        assert (places == 0).any()
        assert (places == last).any()
        # Uniform on 0 .. last, for each scale: mean 1/2 and std 1/sqrt(12) of the range.
        position = (places + 0.5) / (last + 1)
        assert position.mean() == pytest.approx(0.5, abs=0.01)
        assert position.std() == pytest.approx(12**-0.5, abs=0.01)


def test_random_resized_crops_are_distributed_as_torchvisions():
    crop, draws = RandomResizedCrop(), np.random.default_rng(6).random((4000, 22))
    torch.manual_seed(0)
    blank = torch.empty(1, 375, 500)
    get_params = TorchvisionRandomResizedCrop.get_params
    expected = np.array([get_params(blank, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(4000)])
    boxes = np.array([crop.box(numbers, 375, 500) for numbers in draws])
    for statistic in (
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 2] * box[:, 3],
        lambda box: np.log(box[:, 3] / box[:, 2]),
    ):
        ours, theirs = statistic(boxes), statistic(expected)
        assert ours.mean() == pytest.approx(theirs.mean(), abs=4 * theirs.std() / 2000**0.5)
        assert ours.std() == pytest.approx(theirs.std(), rel=0.05)


@pytest.mark.parametrize("sides", [(10, 1000), (1000, 10), (1, 1), (1, 500)])
def test_a_very_long_image_gets_the_center_that_torchvision_takes(sides):
    get_params = TorchvisionRandomResizedCrop.get_params
    expected = get_params(torch.empty(1, *sides), [1.0, 1.0], [3 / 4, 4 / 3])
    box = RandomResizedCrop(smallest_area=1.0).box(np.full(22, 0.5), *sides)
    assert box == Box(*expected)
