import numpy as np
import torch

from src.data.transforms import CropParams, crop_and_flip, draw, normalize


def test_every_corner_and_both_flips_occur_about_equally_often():
    draws = draw(np.random.default_rng(0), 162_000, padding=4, flip=True)
    top, left, flip = (x.numpy() for x in draws)
    seen = np.bincount((top * 9 + left) * 2 + flip, minlength=162)
    assert len(seen) == 162  # 81 corners, two flips
    # A thousand of each are expected; 5 standard deviations of a count are 158.
    assert (abs(seen - 1000) < 160).all()


def test_a_batch_equals_a_per_image_reference_bit_for_bit():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (300, 32, 32, 3)).astype(np.uint8)
    mean = rng.random((32, 32, 3)).astype(np.float32) * 255
    draws = draw(np.random.default_rng(2), 300, padding=4, flip=True)
    batch = crop_and_flip(normalize(torch.from_numpy(images), torch.from_numpy(mean), None), draws, 4).numpy()
    for image, top, left, flip, result in zip(images, *(x.tolist() for x in draws), batch, strict=True):
        padded = np.zeros((40, 40, 3), np.float32)
        padded[4:36, 4:36] = image.astype(np.float32) - mean
        crop = padded[top : top + 32, left : left + 32]
        assert np.array_equal(crop[:, ::-1] if flip else crop, result)


def test_no_flip_and_no_padding_leave_images_as_they_are():
    images = torch.rand(50, 8, 8, 3)
    draws = draw(np.random.default_rng(0), 50, padding=0, flip=False)
    assert torch.equal(crop_and_flip(images, draws, 0), images)


def test_the_corner_zero_shows_the_padding_above_and_to_the_left():
    images = torch.ones(1, 4, 4, 1)
    zero = torch.zeros(1, dtype=torch.int64)
    batch = crop_and_flip(images, CropParams(zero, zero + 2, torch.tensor([False])), 1)[0, :, :, 0]
    assert torch.equal(batch, torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0.0]]))


def test_normalization_by_channel():
    images = torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8)
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    result = normalize(images, mean, std)
    assert result.dtype == torch.float32
    for channel in range(3):
        expected = (images[..., channel].numpy().astype(np.float32) - mean[channel].item()) / std[channel].item()
        np.testing.assert_array_equal(result[..., channel].numpy(), expected)
