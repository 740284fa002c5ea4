import numpy as np
import pytest
from images_on_disk import imagenet, make_folders
from PIL import Image


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("imagenet"))


def test_the_mean_image_is_of_center_crops_and_computed_once(tmp_path, capsys):
    root = make_folders(tmp_path, train=2, val=1)
    path = root / "mean-224.npy"
    data = imagenet(root, normalization="pixel", num_workers=2)
    message = f"computing the mean image of 6 images, once: {path}"
    assert message in capsys.readouterr().out
    crops = []
    for file in root.glob("train/*/*"):
        image = Image.open(file)
        width, height = (256 * side // min(image.size) for side in image.size)
        left, top = round((width - 224) / 2), round((height - 224) / 2)
        image = image.resize((width, height), Image.BILINEAR)
        crops.append(np.asarray(image.crop((left, top, left + 224, top + 224)), np.float64))
    # torch and Pillow round some pixels differently, by one level.
    difference = abs(data.mean.numpy() - np.mean(crops, 0))
    assert difference.max() < 0.51
    assert difference.mean() < 0.1

    written = path.stat().st_mtime_ns
    imagenet(root, normalization="pixel")
    assert path.stat().st_mtime_ns == written
    assert not capsys.readouterr().out


@pytest.mark.parametrize("bgr", [False, True])
def test_a_given_mean_image_has_its_channels_in_the_nets_order(tmp_path, bgr):
    root = make_folders(tmp_path / "images", train=1, val=1)
    given = np.random.default_rng(0).uniform(0, 255, (224, 224, 3))
    np.save(tmp_path / "given.npy", given)
    path = str(tmp_path / "given.npy")
    data = imagenet(root, normalization="pixel", mean=path, bgr=bgr)
    assert {path.name for path in root.iterdir()} == {"train", "val"}  # none was computed
    batch = images, _, noise = next(iter(data.train_dataloader()))
    images = images.numpy().astype(float) + noise.numpy()[:, None, None]
    expected = images[..., :: -1 if bgr else 1] - given
    result = data.on_after_batch_transfer(batch, 0)[0].permute(0, 2, 3, 1)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.save(path, np.zeros((3, 224, 224))), r"has shape \[3, 224, 224\]: a mean"),
        (lambda path: np.save(path, np.zeros(3)), r"has shape \[3\]: .* has \[224, 224, 3\]"),
        (lambda path: np.save(path, np.array(["blue"])), "holds no array of numbers"),
        (lambda path: path.write_bytes(b"garbage"), "holds no array of numbers"),
        (lambda path: path.write_bytes(b""), "holds no array of numbers"),
        (lambda path: None, "there is no file data.mean="),
    ],
)
def test_a_file_that_is_no_mean_image_is_refused_with_one_line(root, tmp_path, write, message):
    path = tmp_path / "given.npy"
    write(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        imagenet(root, normalization="pixel", mean=str(path))
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
