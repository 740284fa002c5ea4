"""Images of a user's own, data=images: layouts, splits, sizes, and what is wrong with them."""

import shutil

import numpy as np
import pytest
import torch
from images_on_disk import encode, random_image
from omegaconf import OmegaConf
from PIL import Image

from src.config import CONF
from src.data.images import central_square, images
from src.runs.run_dir import RunDir

CLASSES = ("cat", "dog", "emu")
BAD_IMAGES = pytest.mark.fault_injection(
    "bad input", "a directory of images with a class or an image that cannot be used"
)


def write_classes(folder, count, classes=CLASSES):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = random_image(10 * label + i, 20 + i, 24)
            (folder / name / f"{i}.png").write_bytes(encode(image, "PNG"))


@pytest.fixture
def flat(tmp_path):
    write_classes(tmp_path / "pets", 5)
    return tmp_path / "pets"


@pytest.fixture
def split(tmp_path):
    for name, count in (("train", 4), ("val", 2)):
        write_classes(tmp_path / "pets" / name, count)
    return tmp_path / "pets"


def set_up(root, **changes):
    options = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "images.yaml"))
    del options["_target_"]
    options |= {"root": str(root), "num_classes": 3, "size": 8, "num_workers": 0}
    data = images(**options | {"seed": 0, "batch_size": 8, "iterations": 3} | changes)
    data.prepare_data()
    data.setup()
    return data


def sizes(data):
    return {name: len(images) for name, (images, _) in data.splits.items()}


def test_train_and_val_are_training_and_test_images(split, capsys):
    data = set_up(split)
    assert sizes(data) == {"train": 12, "test": 6}
    assert data.splits["train"][1].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.image_shape == (3, 8, 8)
    assert capsys.readouterr().out == ""


def test_test_comes_before_val_which_is_reported(split, capsys):
    write_classes(split / "test", 3)
    assert sizes(set_up(split)) == {"train": 12, "test": 9}
    assert capsys.readouterr().out == f"{split}/test has the test images: {split}/val is not used\n"


def test_a_directory_without_a_test_set_is_split_with_a_message(flat, capsys):
    data = set_up(flat, test_fraction=0.4)
    assert sizes(data) == {"train": 9, "test": 6}
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    message = "6 of 15 images, 40% of each class, are the test set (data.split_seed=0)"
    assert message in capsys.readouterr().out
    rows = torch.cat([images.flatten(1) for images, _ in data.splits.values()])
    assert len(rows.unique(dim=0)) == 15  # no image is in both


def test_only_split_seed_changes_the_test_set(flat):
    test = set_up(flat, test_fraction=0.4).splits["test"][0]
    assert torch.equal(set_up(flat, test_fraction=0.4, seed=1).splits["test"][0], test)
    assert not torch.equal(set_up(flat, test_fraction=0.4, split_seed=1).splits["test"][0], test)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_each_class_is_on_both_sides_of_a_split(flat, fraction):
    data = set_up(flat, test_fraction=fraction)
    for _, labels in data.splits.values():
        assert set(labels.tolist()) == {0, 1, 2}


def test_train_alone_is_split_too(split, capsys):
    shutil.rmtree(split / "val")
    assert sizes(set_up(split)) == {"train": 9, "test": 3}
    assert "has no test/ or val/ next to train/" in capsys.readouterr().out


def test_images_in_memory_are_resized_to_their_central_square():
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 8:24] = 200
    (square,) = central_square(torch.from_numpy(pixels).permute(2, 0, 1), 8)
    assert square.shape == (1, 3, 8, 8)
    # Resizing blurs the border of the square by a pixel.
    assert (square[..., 1:-1] == 200).all()
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert torch.equal(central_square(image, 8)[0][0], image)


def test_large_images_go_through_the_pipeline_of_imagenet(split):
    data = set_up(split, size=224)
    images, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert images.shape == (8, 3, 224, 224)
    assert labels.max() <= 2
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.protocols[1] == "10crop"
    assert sorted(path.name for path in split.iterdir()) == ["train", "val"]  # nothing is saved


def test_each_split_of_large_images_has_a_mean_image_of_its_own(flat):
    large = {"size": 224, "normalization": "pixel"}
    first, other, again = (set_up(flat, **large, split_seed=seed).mean for seed in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len([*flat.glob("mean-224-*.npy")]) == 2


def test_gray_and_16_bit_images_have_three_equal_channels(flat):
    gray = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(gray).save(flat / "cat" / "0.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(flat / "cat" / "1.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(flat / "cat" / "2.tif")
    data = set_up(flat)
    images = torch.cat([images for images, _ in data.splits.values()])
    expected = torch.from_numpy(gray)[..., None].expand(8, 8, 3)
    assert sum(torch.equal(image, expected) for image in images) == 3


def remove(*names):
    return lambda root: [shutil.rmtree(root / name) for name in names]


def add_class_to_val(root):
    write_classes(root / "val", 1, ["yak"])


def empty(name):
    return lambda root: [path.unlink() for path in (root / name).iterdir()]


def spoil(root):
    (root / "train" / "dog" / "notes.txt").write_text("not an image")


@BAD_IMAGES
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("train", "val"), "there are no training images in .*/pets: it needs one folder"),
        (remove("train"), "there are no training images in .*/pets: it needs one folder for each"),
        (remove("train/cat", "train/dog"), "train has one class only, emu: a net needs at least"),
        (remove("train/cat"), "has 2 classes, but the net has outputs for 3"),
        (remove("val/cat", "val/dog", "val/emu"), "there are no images in .*/val: it needs a"),
        (empty("train/dog"), "train/dog has no image in it"),
        (empty("val/dog"), "val/dog has no image in it"),
        (add_class_to_val, r"val has 1 classes that .*/train does not have \(yak, ...\)"),
        (spoil, "train/dog/notes.txt is not an image: fix or remove it, or skip such images"),
    ],
)
def test_what_cannot_be_used_is_a_message(split, damage, message, record_property):
    record_property("tried", 1)
    damage(split)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        set_up(split)
    assert len(str(error.value).splitlines()) == 1


def test_a_class_that_the_test_set_lacks_is_reported_and_labels_stay(split, capsys):
    shutil.rmtree(split / "val" / "dog")
    assert set_up(split).test_labels.tolist() == [0, 0, 2, 2]
    assert capsys.readouterr().out == f"{split}/val lacks 1 of 3 classes, such as dog\n"


def test_a_class_with_one_image_cannot_be_split(flat):
    for path in sorted((flat / "dog").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="pets/dog has one image, too few for a training and a"):
        set_up(flat)


def test_an_image_that_cannot_be_decoded_is_skipped_if_asked(split, capsys):
    spoil(split)
    assert sizes(set_up(split, on_bad="skip")) == {"train": 12, "test": 6}
    assert "notes.txt is not an image: skipped, 1 so far" in capsys.readouterr().err
    for path in (split / "val").rglob("*.png"):
        path.write_text("not an image")
    with pytest.raises(ValueError, match="none of the images in .*/val can be read"):
        set_up(split, on_bad="skip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "data.size=0 must be from 1 to 224"),
        ({"size": 225}, "data.size=225 must be from 1 to 224"),
        ({"test_fraction": 1.0}, "data.test_fraction=1.0 must be between 0 and 1"),
        ({"on_bad": "ignore"}, "data.on_bad=ignore is not one of stop, skip"),
    ],
)
def test_impossible_options_are_refused(flat, changes, message):
    with pytest.raises(ValueError, match=message):
        set_up(flat, **changes)


def test_the_net_has_an_output_for_each_class_of_the_directory(flat, tiny):
    run_dir = tiny("data=images", f"data.root={flat}", "data.size=8", "data.num_workers=0")
    config = RunDir.open(run_dir.path).config
    assert config["model"]["num_classes"] == config["data"]["num_classes"] == 3
    weights = torch.load(run_dir.last_checkpoint, weights_only=True)["state_dict"]
    assert weights["net.fc.weight"].shape[0] == 3
    assert run_dir.summary["train_images"] == 12
