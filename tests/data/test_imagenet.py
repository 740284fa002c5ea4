import numpy as np
import pytest
import torch
from images_on_disk import SAMPLE, make_folders, needs_sample
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning import Trainer

from src.cli import CONF
from src.data import imagenet
from src.data.imagenet import MEAN, STD, ImageNet
from src.data.loader import color_shifts
from src.data.webdataset import make_shards
from src.tasks.classification import Classifier

CONFIG = OmegaConf.load(CONF / "data" / "imagenet.yaml")
# As fb.resnet.torch prints them, the vectors in columns.
VALUES = np.array([0.2175, 0.0188, 0.0045])
VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def sample_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample")
    for split in ("train", "val"):
        (root / split).symlink_to(SAMPLE)
    return root


def photos(root, **changes):
    """data=imagenet as its config has it, but with the well-known means and no worker processes."""
    options = OmegaConf.to_container(CONFIG) | {"root": root, "normalization": "channel_mean", "num_workers": 0}
    del options["_target_"]
    data = ImageNet(**options | {"seed": 0, "batch_size": 8, "iterations": 6} | changes)
    data.prepare_data()
    data.setup()
    return data


def same(one, other):
    return all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


class Rank:
    """What is asked of a trainer, as process `rank` of `world`."""

    num_devices = 1
    strategy = type("Strategy", (), {"root_device": torch.device("cpu")})

    def __init__(self, rank, world):
        self.global_rank, self.world_size = rank, world


def of_rank(data, rank, world):
    data.trainer = Rank(rank, world)
    return data


def test_the_config_is_the_papers():
    augmentation = CONFIG.crop, CONFIG.scales, CONFIG.color, CONFIG.normalization
    assert augmentation == ("scale", [256, 480], 0.1, "pixel")
    assert (CONFIG.val_images, CONFIG.on_bad) == (0, "stop")


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_change_nothing(root, workers):
    assert same(photos(root, num_workers=workers).train_dataloader(), photos(root).train_dataloader())
    assert same(photos(root, num_workers=workers).test_dataloader(), photos(root).test_dataloader())


def test_a_batch_depends_on_the_seed_and_the_iteration_alone(root):
    batches = list(photos(root).train_dataloader())
    np.random.seed(3)
    state = torch.manual_seed(3).get_state()
    assert same(photos(root).train_dataloader(), batches)
    list(photos(root, num_workers=2).test_dataloader())
    assert torch.equal(torch.get_rng_state(), state)  # nor does reading move the random numbers of the net
    other = list(photos(root, seed=1).train_dataloader())
    assert not torch.equal(batches[0][1], other[0][1])
    assert not torch.equal(batches[0][2], other[0][2])


@pytest.mark.parametrize("at", [0, 1, 4, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_where_it_was(root, at, workers):
    # 12 photos in batches of 8: iterations 1 and 4 straddle two passes.
    whole = list(photos(root).train_dataloader())
    first, second = (photos(root, num_workers=workers).train_dataloader() for _ in range(2))
    batches = iter(first)
    for _ in range(at):
        next(batches)
    assert first.state_dict() == {"iteration": at}
    second.load_state_dict(first.state_dict())
    assert same(second, whole[at:])
    assert len(whole) == len(first) == 6
    assert np.bincount(torch.cat([labels for _, labels, _ in whole])).tolist() == [16, 16, 16]  # four passes


def test_two_ranks_share_each_batch_and_all_test_photos(root):
    whole = list(photos(root).train_dataloader())
    halves = [list(of_rank(photos(root, num_workers=rank), rank, 2).train_dataloader()) for rank in range(2)]
    assert same([tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*halves, strict=True)], whole)
    tested = [of_rank(photos(root), rank, 2) for rank in range(2)]
    (one, _), (two, _) = (next(iter(data.test_dataloader())) for data in tested)
    ((all_of_them, labels),) = photos(root).test_dataloader()
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(all_of_them[0::2], one) and torch.equal(all_of_them[1::2], two)
    data = photos(root)
    data.photos = {}
    with pytest.raises(ValueError, match="recipe.batch_size=8 .* must be a multiple of 3"):
        of_rank(data, 0, 3).setup()


def test_test_photos_come_once_in_batches(root, monkeypatch):
    monkeypatch.setattr(imagenet, "TEST_BATCH", 4)
    data = photos(root)
    batches = list(data.test_dataloader())
    assert [labels.tolist() for _, labels in batches] == [[0, 0, 1, 1], [2, 2]] and len(data.test_dataloader()) == 2
    assert same(data.val_dataloader(), batches)


def test_held_out_photos_are_for_validation(root):
    data = photos(root, val_images=5)
    train, val = data.photos["train"].indices, data.photos["val"].indices
    assert len(val) == 5 and sorted([*train, *val]) == list(range(12))
    ((_, labels),) = data.val_dataloader()
    assert labels.tolist() == (val // 4).tolist()
    with pytest.raises(ValueError, match="data.val_images=12 must be from 0 to 11"):
        photos(root, val_images=12)


def test_shards_give_the_batches_of_their_photos(root, tmp_path, monkeypatch):
    make_shards(root, tmp_path, workers=1)
    folders, shards = photos(root), photos(tmp_path)
    # Photos in the folders' order, so that the same stream gives the same batches; none is as large as 480.
    for split, names in (("train", folders.sources[0]), ("test", folders.sources[1])):
        of = shards.photos[split].source
        number = {of.where(i).rpartition("-")[2].partition(".")[0]: i for i in range(len(of.labels))}
        order = [number[names.where(i).rpartition("/")[2].partition(".")[0]] for i in range(len(names.labels))]
        assert sorted(order) == list(range(len(names.labels))) and order != sorted(order)
        shards.photos[split].indices = np.array(order)
    for one, other in zip(shards.train_dataloader(), folders.train_dataloader(), strict=True):
        assert torch.equal(one[1], other[1]) and torch.equal(one[2], other[2])
        unlike = (one[0] != other[0]).flatten(1).any(1)
        assert unlike.sum() <= 3  # those of 640x512, which were made smaller
    assert shards.fingerprint != folders.fingerprint


@pytest.mark.fault_injection("bad input", "a photo that is cut short, no image, or gone")
def test_a_bad_photo_stops_the_run_with_its_path_or_is_skipped(tmp_path, capsys, record_property):
    record_property("tried", 6)
    root = make_folders(tmp_path)
    paths = sorted(root.glob("train/*/*"))
    paths[5].write_bytes(paths[5].read_bytes()[:900])
    bad_val = sorted(root.glob("val/*/*"))[3]
    bad_val.write_bytes(b"text")
    for workers in (0, 2):
        data = photos(root, num_workers=workers)
        with pytest.raises(ValueError, match=f"^{paths[5]} cannot be decoded .*truncated.*data.on_bad=skip"):
            list(data.train_dataloader())
        with pytest.raises(ValueError, match=f"^{bad_val} is not an image: mend or remove it, or pass over"):
            list(data.test_dataloader())
    capsys.readouterr()

    data = photos(root, on_bad="skip", num_workers=2)
    batches = list(data.train_dataloader())
    ((images, labels),) = data.test_dataloader()
    assert len(images) == 5 and labels.tolist() == [0, 0, 1, 2, 2]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2  # once each, though training met it four times
    assert told[0].startswith(f"{paths[5]} cannot be decoded") and told[0].endswith(": skipped, 1 so far")
    assert told[1] == f"{bad_val} is not an image: skipped, 2 so far"
    # The next photo stands in for it, cut as it would have been.
    paths[5].write_bytes(paths[6].read_bytes())
    assert same(photos(root).train_dataloader(), batches)


@pytest.mark.fault_injection("bad input", "a photo that is cut short, no image, or gone")
def test_when_none_can_be_read_skipping_stops(tmp_path, record_property):
    record_property("tried", 3)
    root = make_folders(tmp_path)
    for path in root.glob("*/*/*"):
        path.write_bytes(b"text")
    with pytest.raises(ValueError, match="none of the 12 training photos can be read: .* is not an image"):
        list(photos(root, on_bad="skip").train_dataloader())
    with pytest.raises(ValueError, match=f"none of the photos in {root} can be read"):
        photos(root, on_bad="skip", normalization="pixel")
    assert not (root / "mean-224.npy").exists()
    assert list(photos(root, on_bad="skip").test_dataloader()) == []


@pytest.mark.fault_injection("bad input", "a photo that is cut short, no image, or gone")
def test_a_photo_that_vanished_is_named_also_by_a_worker(tmp_path):
    root = make_folders(tmp_path)
    data = photos(root, num_workers=1, on_bad="skip")
    gone = next(root.glob("val/*/*"))
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=str(gone)):
        list(data.test_dataloader())


@pytest.mark.fault_injection("bad input", "a mistyped word or an impossible value on the command line")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "random"}, "data.crop=random is not one of scale, area"),
        ({"normalization": "none"}, "data.normalization=none is not one of pixel, channel_mean, channel"),
        ({"on_bad": "ignore"}, "data.on_bad=ignore is not one of stop, skip"),
        ({"mean": "a.npy"}, "data.mean=a.npy is a mean image, which data.normalization=channel_mean does not use"),
        ({"scales": [480, 256]}, r"data.scales=\[480, 256\] must be \[smallest, largest\], from 224 up"),
        ({"scales": [200, 256]}, r"data.scales=\[200, 256\] must be"),
        ({"root": "nowhere"}, "there is no folder .*/nowhere/train: name with data.root="),
    ],
)
def test_what_cannot_be_is_refused(root, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        photos(**{"root": root, **changes})


def test_the_mean_image_is_of_the_centers_and_computed_once(root, capsys):
    path = root / "mean-224.npy"
    data = photos(root, normalization="pixel", num_workers=2)
    assert f"the mean image of 12 photos is computed once and kept in {path}" in capsys.readouterr().out
    reference = []
    for file in root.glob("train/*/*"):
        image = Image.open(file)
        width, height = (256 * side // min(image.size) for side in image.size)
        left, top = round((width - 224) / 2), round((height - 224) / 2)
        image = image.resize((width, height), Image.BILINEAR).crop((left, top, left + 224, top + 224))
        reference.append(np.asarray(image, np.float64))
    assert abs(data.mean.numpy() - np.mean(reference, 0)).max() <= 0.5  # of levels, where one photo in two is one off
    written = path.stat().st_mtime_ns
    photos(root, normalization="pixel")
    assert path.stat().st_mtime_ns == written and not capsys.readouterr().out
    path.unlink()


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("normalization", ["pixel", "channel_mean", "channel"])
def test_a_batch_on_the_device_is_a_per_photo_sum_in_float64(root, normalization, bgr):
    data, order = photos(root, normalization=normalization, bgr=bgr), -1 if bgr else 1
    images, labels, shifts = batch = data.train_dataloader().stream.batch(0)[0]
    assert images.dtype == torch.uint8 and images.shape == (8, 224, 224, 3) and shifts.shape == (8, 3)
    before = images.clone()
    out, same_labels = data.on_after_batch_transfer(batch, 0)
    assert out.dtype == torch.float32 and out.shape == (8, 3, 224, 224) and torch.equal(labels, same_labels)
    assert out.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, before)
    mean = np.load(root / "mean-224.npy") if normalization == "pixel" else 255 * np.array(MEAN)
    std = 255 * np.array(STD) if normalization == "channel" else 1
    for photo, shift, result in zip(images.numpy(), shifts.numpy(), out.numpy(), strict=True):
        expected = (photo.astype(float) + shift - mean) / std
        np.testing.assert_allclose(result.transpose(1, 2, 0), expected[..., ::order], atol=1e-3)
    tested = next(iter(data.test_dataloader()))
    expected = (tested[0].numpy().astype(float) - mean) / std
    result = data.on_after_batch_transfer(tested, 0)[0].permute(0, 2, 3, 1)
    np.testing.assert_allclose(result.numpy(), expected[..., ::order], atol=1e-3)


@pytest.mark.parametrize("bgr", [False, True])
def test_a_given_mean_is_in_the_order_of_the_nets_channels(tmp_path, bgr):
    root, given = make_folders(tmp_path / "photos"), np.random.default_rng(0).uniform(0, 255, (224, 224, 3))
    np.save(tmp_path / "given.npy", given)
    data = photos(root, normalization="pixel", mean=str(tmp_path / "given.npy"), bgr=bgr)
    assert {path.name for path in root.iterdir()} == {"train", "val"}  # no other is computed
    batch = images, _, shifts = data.train_dataloader().stream.batch(0)[0]
    colors = (images.numpy().astype(float) + shifts.numpy()[:, None, None])[..., :: -1 if bgr else 1]
    found = data.on_after_batch_transfer(batch, 0)[0].permute(0, 2, 3, 1)
    np.testing.assert_allclose(found.numpy(), colors - given, atol=1e-3)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.save(path, np.zeros((3, 224, 224))), r"is of shape \[3, 224, 224\]: a mean image is \[224"),
        (lambda path: np.save(path, np.zeros(3)), r"is of shape \[3\]: a mean image is \[224, 224, 3\]"),
        (lambda path: np.save(path, np.array(["blue"])), "holds no numbers, as np.save writes them"),
        (lambda path: path.write_bytes(b"garbage"), "holds no numbers, as np.save writes them"),
        (lambda path: path.write_bytes(b""), "holds no numbers, as np.save writes them"),
        (lambda path: None, "there is no file data.mean="),
    ],
)
def test_a_mean_that_is_none_is_refused_in_a_line(root, tmp_path, write, message):
    path = tmp_path / "given.npy"
    write(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        photos(root, normalization="pixel", mean=str(path))
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_color_noise_has_the_covariance_of_alexnets():
    shifts = color_shifts(np.random.default_rng(0), 200_000, 0.1).double().numpy()
    expected = 255**2 * VECTORS @ np.diag((0.1 * VALUES) ** 2) @ VECTORS.T
    np.testing.assert_allclose(np.cov(shifts.T), expected, rtol=0.03, atol=0.05)
    np.testing.assert_allclose(shifts.mean(0), 0, atol=0.05)
    alphas = np.random.default_rng(0).normal(0, 0.1, (200_000, 3))
    np.testing.assert_allclose(shifts, 255 * np.einsum("nk,k,ck->nc", alphas, VALUES, VECTORS), atol=1e-4)
    assert not color_shifts(np.random.default_rng(0), 5, 0).any()


def test_without_crop_and_flip_a_batch_is_the_photos(tmp_path):
    """Photos of one color each: what comes out is that color, noise added."""
    colors = np.random.default_rng(1).integers(40, 216, (6, 3))
    for split in ("train", "val"):
        for label, color in enumerate(colors):
            (tmp_path / split / f"n{label}").mkdir(parents=True)
            Image.new("RGB", (300, 260), tuple(map(int, color))).save(tmp_path / split / f"n{label}" / "a.png")
    data = photos(tmp_path, batch_size=60, iterations=10)
    found = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    images, labels = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    assert np.ptp(images[:, :, ::20, ::20], axis=(2, 3)).max() < 1e-3
    noise = images[:, :, 0, 0] - (colors[labels] - 255 * np.array(MEAN))
    alphas = noise / 255 @ np.linalg.inv(VECTORS.T) / VALUES
    assert alphas.std(0) == pytest.approx([0.1, 0.1, 0.1], rel=0.12)  # of 600; four deviations
    assert alphas.mean(0) == pytest.approx([0, 0, 0], abs=0.02)
    assert abs(np.corrcoef(alphas.T) - np.eye(3)).max() < 0.2
    assert len(np.unique(noise[:, 0])) > 590  # once for each photo


def expected_moments(image):
    """Mean and mean square of a pixel, [3] each, over the paper's scales, places and flips of one photo."""
    moments = []
    for shorter in range(256, 481, 56):
        width, height = (shorter * side // min(image.size) for side in image.size)
        pixels = np.asarray(image.resize((width, height), Image.BILINEAR), float)
        rows, columns = (
            np.convolve(np.ones(side - 223), np.ones(224)) / (side - 223) / 224 for side in (height, width)
        )  # how often a crop holds it
        moments.append([columns @ np.tensordot(rows, pixels**power, 1) for power in (1, 2)])
    return np.mean(moments, 0)


@needs_sample
def test_mean_and_deviation_of_a_large_augmented_sample_are_what_the_recipe_implies(sample_root):
    files = sorted(SAMPLE.glob("*/*"))
    first, second = np.mean([expected_moments(Image.open(file).convert("RGB")) for file in files], 0)
    noise = np.diag(255**2 * VECTORS @ np.diag((0.1 * VALUES) ** 2) @ VECTORS.T)
    data = photos(sample_root, batch_size=127, iterations=6)
    means, squares = [], []
    for batch in data.train_dataloader():
        images = data.on_after_batch_transfer(batch, 0)[0].permute(0, 2, 3, 1).reshape(-1, 224 * 3)
        images += 255 * torch.tensor(MEAN).repeat(224)
        means.append(images.double().mean(0).view(224, 3).mean(0).numpy())
        squares.append(images.double().square_().mean(0).view(224, 3).mean(0).numpy())
    mean = np.mean(means, 0)
    std = np.sqrt(np.mean(squares, 0) - mean**2)
    # Crops of a photo differ in their mean by some 20 levels: 0.7 in the mean of 762.
    assert mean == pytest.approx(first, abs=1.5)
    assert std == pytest.approx(np.sqrt(second - first**2 + noise), abs=1.5)


@needs_sample
def test_the_sample_photos_come_as_pil_and_numpy_make_them(sample_root):
    data = photos(sample_root, batch_size=127, iterations=1)
    stream = data.train_dataloader().stream
    (batch, skipped), indices = stream.batch(0), stream.indices(0)
    assert not skipped and sorted(indices) == list(range(127)) and batch[1].tolist() == indices.tolist()
    files, rng = sorted(SAMPLE.glob("*/*")), np.random.default_rng([0, 2, 0])
    draws, alphas = rng.random((127, 4)), rng.normal(0, 0.1, (127, 3))
    out = data.on_after_batch_transfer(batch, 0)[0].numpy()
    for index, (flip, scale, down, across), alpha, ours in zip(indices, draws, alphas, out, strict=True):
        image = Image.open(files[index]).convert("RGB")
        shorter = np.floor(256 + 225 * scale)
        width, height = np.floor(np.multiply(image.size, shorter) / min(image.size))
        x, y = np.floor(across * (width - 223)), np.floor(down * (height - 223))
        # In pixels of the photo, each side's first and length to the nearest whole one.
        w, h = np.round(224 * image.width / width), np.round(224 * image.height / height)
        x, y = (
            min(np.round(a), b)
            for a, b in ((x * image.width / width, image.width - w), (y * image.height / height, image.height - h))
        )
        crop = image.crop((x, y, x + w, y + h)).resize((224, 224), Image.BILINEAR)
        if flip < 0.5:
            crop = crop.transpose(Image.FLIP_LEFT_RIGHT)
        color = 255 * sum(alpha[k] * VALUES[k] * VECTORS[:, k] for k in range(3))
        expected = np.asarray(crop, float) + color - 255 * np.array(MEAN)
        # Both round to a level after the rows and after the columns.
        off = abs(ours.transpose(1, 2, 0) - expected)
        assert off.max() < 2.01 and off.mean() < 0.1, files[index]


def test_lightning_tests_on_each_photo(root):
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    classifier = Classifier(net)
    trainer.test(classifier, datamodule=photos(root, num_workers=1), verbose=False)
    assert classifier.tested.images.item() == 6
