"""Directories in PASCAL VOC's segmentation layout: what is read, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

NAMES = {"train": ["a", "b", "c"], "val": ["d", "e"]}


def write_mask(path, classes):
    """Write a palette image, as VOC's are."""
    image = Image.fromarray(classes.astype(np.uint8), "P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)


@pytest.fixture
def root(tmp_path):
    """Write five images of 6x8 pixels or more, with masks of the classes 0, 1, 2 and 255."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for split, names in NAMES.items():
        (tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            suffix = ("png", "jpg")[i % 2]
            pixels = rng.integers(0, 256, (6 + i, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "JPEGImages" / f"{name}.{suffix}")
            classes = rng.choice([0, 1, 2, 255], (6 + i, 8))
            write_mask(tmp_path / "SegmentationClass" / f"{name}.png", classes)
    return tmp_path


@pytest.fixture
def read(find, root):
    """Make the data of a directory by the command line's keys."""

    def make(*overrides, **stream):
        options = ["data=nuclei", "task=segmentation", f"data.root={root}", "data.classes=[x,y]"]
        config = find(*options, *overrides).config["data"]
        data = instantiate(config, seed=0, _convert_="all", **stream)
        data.trainer = SimpleNamespace(global_rank=0, world_size=1)
        data.prepare_data()
        data.setup()
        return data

    return make


def test_images_and_masks_are_those_of_the_lists(read, root):
    data = read()
    assert data.sizes == (3, 2)
    image, target = data.example("test", 0)
    expected = np.array(Image.open(root / "JPEGImages" / "d.png"))
    assert np.array_equal(image.movedim(0, -1), expected)
    assert np.array_equal(target["mask"], np.array(Image.open(root / "SegmentationClass/d.png")))
    assert target["mask"].dtype == torch.uint8
    assert len(target["boxes"]) == 0


def test_training_images_are_squares_with_their_masks(read):
    data = read("data.crop=4", batch_size=2, iterations=5)
    for images, targets in data.train_dataloader():
        for image, target in zip(images, targets, strict=True):
            assert image.shape == (3, 4, 4)
            assert target["mask"].shape == (4, 4)
    assert [image.shape[1:] for images, _ in data.test_dataloader() for image in images] == [
        (6, 8),
        (7, 8),
    ]


def test_the_fingerprint_changes_with_one_pixel_of_a_mask(read, root):
    before = read().fingerprint
    assert read().fingerprint == before
    path = root / "SegmentationClass" / "e.png"
    classes = np.array(Image.open(path))
    classes[0, 0] = 1 - min(1, classes[0, 0])
    write_mask(path, classes)
    assert read().fingerprint != before


def shrink(path):
    write_mask(path, np.zeros((5, 8)))


def add_class(path):
    write_mask(path, np.full((7, 8), 3))


def color(path):
    Image.new("RGB", (8, 7)).save(path)


def damage(path):
    path.write_bytes(path.read_bytes()[:60])


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("SegmentationClass/b.png", shrink, r"b\.png and .*b\.jpg differ in size: 8x5 and 8x7"),
        ("SegmentationClass/b.png", add_class, r"b\.png has class 3, but data\.classes has 2"),
        ("SegmentationClass/b.png", color, r"b\.png has colors"),
        ("SegmentationClass/e.png", damage, r"e\.png cannot be decoded"),
        ("SegmentationClass/e.png", remove, r"there is no mask .*e\.png"),
        ("JPEGImages/d.png", damage, r"d\.png cannot be decoded"),
        ("JPEGImages/d.png", remove, r"val\.txt lists d, but there is no .*JPEGImages/d"),
        ("ImageSets/Segmentation/val.txt", remove, r"lacks ImageSets/Segmentation/val\.txt"),
        ("ImageSets/Segmentation/val.txt", lambda path: path.write_text("\n"), "lists no images"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_file(read, root, file, change, message):
    change(root / file)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read()
    assert "\n" not in str(caught.value)


def test_masks_of_0_and_255_teach_nothing_and_are_refused(read, root):
    for name in NAMES["train"]:
        path = root / "SegmentationClass" / f"{name}.png"
        mask = np.array(Image.open(path))
        write_mask(path, np.where(mask == 0, 0, 255))
    with pytest.raises(ValueError, match="no training mask .* has a pixel of a class: 1 stands"):
        read()


def test_an_image_that_moves_from_the_test_to_the_training_set_changes_the_fingerprint(read, root):
    before, lists = read().fingerprint, root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("a\nb\nc\nd")
    (lists / "val.txt").write_text("e")
    assert read().fingerprint != before


def test_missing_data_are_an_error_that_names_the_source(find, tmp_path):
    config = find("data=nuclei", "task=segmentation", f"data.root={tmp_path}/none").config["data"]
    with pytest.raises(FileNotFoundError, match="the source is https://github.com/lopuhin"):
        instantiate(config, seed=0).prepare_data()


def test_the_directory_is_part_of_the_name_of_a_run_unless_it_is_the_default(find):
    nuclei, own = (
        find("data=nuclei", "task=segmentation", *root).path.name
        for root in ([], ["data.root=mine", "data.classes=[cat,dog]"])
    )
    assert "root" not in nuclei
    assert "rootmine" in own
