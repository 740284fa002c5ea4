"""ImageNet with boxes: images and XML files next to each other or apart, and what is missing."""

import pytest
from annotated_files import voc_xml
from images_on_disk import encode, random_image

from src.data.imagenet_loc import ImageNetLoc

COMMON = {
    "tasks": ["localization"],
    "min_size": 256,
    "max_size": 512,
    "flip": True,
    "val_images": 0,
    "seed": 0,
}


@pytest.fixture
def write(tmp_path):
    """Write an image, and an XML file that describes it, if it has a box."""

    def write_image(name, *objects, annotations="images"):
        image = tmp_path / "images" / f"{name}.JPEG"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(encode(random_image(len(name), 60, 40), "JPEG"))
        if objects:
            xml = tmp_path / annotations / f"{name}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            xml.write_text(voc_xml(objects))

    return write_image


@pytest.fixture
def read(tmp_path):
    def make(annotations=None, classes=None):
        data = ImageNetLoc(str(tmp_path / "images"), annotations, classes, **COMMON)
        data.setup()
        return data

    return make


def dog(*box):
    return ("n02", *(box or (11, 6, 50, 30)), 0)


def test_classes_are_the_directories_and_images_without_boxes_are_left_out(write, read):
    write("train/n01/a", ("n01", 1, 1, 10, 10, 0))
    write("train/n02/b", dog(), dog(1, 1, 5, 5))
    write("train/n02/c")
    write("val/v1", dog())
    write("val/n01/v2", ("n01", 1, 1, 10, 10, 0))
    data = read()
    assert data.classes == ["n01", "n02"]
    assert data.sizes == (2, 2)
    image, target = data.read("train", 1)
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[10, 5, 50, 30], [0, 0, 5, 5]]
    assert target["labels"].tolist() == [2, 2]
    labels = [data.read("test", i).target["labels"].tolist() for i in range(2)]
    assert labels == [[1], [2]]  # n01/v2 before v1


def test_the_annotations_may_be_in_a_directory_of_their_own(write, read, tmp_path):
    write("train/n02/b", dog(), annotations="boxes")
    write("val/v1", dog(), annotations="boxes")
    data = read(str(tmp_path / "boxes"))
    assert data.read("test", 0).target["boxes"].tolist() == [[10, 5, 50, 30]]
    with pytest.raises(FileNotFoundError, match=r"set data\.annotations=DIRECTORY"):
        read()


def test_a_class_may_be_a_link_and_a_split_without_images_is_named(write, read, tmp_path):
    write("train/n01/a", ("n01", 1, 1, 10, 10, 0))
    write("elsewhere/n02/b", dog())
    (tmp_path / "images/train/n02").symlink_to(tmp_path / "images/elsewhere/n02")
    with pytest.raises(FileNotFoundError, match="there are no images in .*/images/val$"):
        read()
    write("val/v1", dog())
    assert read().images["train"] == ["train/n01/a.JPEG", "train/n02/b.JPEG"]


def test_the_fingerprint_tells_other_images(write, read):
    write("train/n02/b", dog())
    write("val/v1", dog())
    first = read().fingerprint
    assert read().fingerprint == first
    write("train/n02/c", dog())
    assert read().fingerprint != first


def test_every_test_image_has_a_box(write, read):
    write("train/n02/b", dog())
    write("val/v1", dog())
    write("val/v2")
    with pytest.raises(FileNotFoundError, match="1 of 2 images in .*val have no XML file"):
        read()


def test_a_box_without_an_area_or_of_an_unknown_class_is_an_error(write, read):
    write("train/n02/b", dog(5, 5, 5, 9))
    write("val/v1", ("n09", 1, 1, 5, 5, 0))
    with pytest.raises(ValueError, match=r"b\.xml has no box with an area"):
        read()


def test_a_class_that_no_training_image_has_is_an_error(write, read):
    write("train/n02/b", dog())
    write("val/v1", ("n09", 1, 1, 5, 5, 0))
    with pytest.raises(ValueError, match="n09 is not one of"):
        read().read("test", 0)


def test_a_missing_directory_is_named(read):
    with pytest.raises(FileNotFoundError, match="there is no directory .*train: name with"):
        read()
