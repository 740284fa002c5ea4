"""Directories in PASCAL VOC's layout: boxes, difficult objects, and what is wrong with files."""

from types import SimpleNamespace

import numpy as np
import pytest
from annotated_files import write_voc
from conftest import BCCD_FILES
from hydra.utils import instantiate
from images_on_disk import encode, random_image

PETS = {
    "a": [("cat", 1, 1, 60, 40, 0), ("dog", 11, 6, 20, 25, 0)],
    "b": [("dog", 5, 5, 30, 30, 1), ("cat", 2, 3, 40, 20, 0)],
    "c": [],
    "d": [("cat", 10, 10, 20, 20, 0)],
}
LISTS = {"trainval": ["a", "b", "c"], "test": ["d", "c"]}
BAD_FILES = pytest.mark.fault_injection(
    "bad input", "an annotation or a list of images that is missing or cannot be used"
)


@pytest.fixture
def pets(tmp_path):
    write_voc(tmp_path / "pets", PETS, LISTS)
    return tmp_path / "pets"


@pytest.fixture
def set_up(find):
    def make(root, *overrides):
        own = ["data.classes=[cat,dog]", "data.train=[trainval]", "data.test=[test]"]
        options = ["task=detection", "data=voc", f"data.root={root}", *own, *overrides]
        config = find(*options).config["data"]
        data = instantiate(config, seed=0, batch_size=3, iterations=20, _convert_="all")
        data.trainer = SimpleNamespace(global_rank=0, world_size=1)
        data.setup()
        return data

    return make


def test_boxes_count_pixels_from_0_and_end_after_their_last_one(pets, set_up):
    image, target = set_up(pets).example("train", 0)
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[0, 0, 60, 40], [10, 5, 20, 25]]
    assert target["area"].tolist() == [2400, 200]
    assert target["labels"].tolist() == [1, 2]


def test_an_image_without_objects_has_no_boxes(pets, set_up):
    target = set_up(pets).example("test", 1).target
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)


def test_difficult_objects_are_left_out_of_training_and_kept_for_evaluation(pets, set_up):
    data = set_up(pets, "data.flip=false")
    target = data.example("train", 1).target
    assert target["iscrowd"].tolist() == [1, 0]
    learned = {int(t["image_id"]): t for _, ts in data.train_dataloader() for t in ts}
    assert learned[1]["boxes"].tolist() == [[1, 2, 40, 20]]
    assert learned[1]["labels"].tolist() == [1]
    assert len(learned[0]["boxes"]) == 2


def test_the_years_of_voc_are_put_together(tmp_path, set_up):
    write_voc(tmp_path / "VOC2007", PETS, LISTS)
    write_voc(tmp_path / "VOC2012", {"e": [("dog", 1, 1, 9, 9, 0)]}, {"trainval": ["e"]})
    years = "data.train=[VOC2007/trainval,VOC2012/trainval]"
    data = set_up(tmp_path, years, "data.test=[VOC2007/test]")
    assert data.sizes == (4, 2)
    assert data.example("train", 3).target["labels"].tolist() == [2]
    assert data.example("train", 3).target["image_id"] == 3


def test_the_default_is_voc_2007_and_2012_with_the_11_point_metric(find):
    data = find("task=detection", "data=voc").config["data"]
    assert data["train"] == ["VOC2007/trainval", "VOC2012/trainval"]
    assert data["test"] == ["VOC2007/test"]
    assert (len(data["classes"]), data["metric"]) == (20, "voc07")


def test_boxes_are_clipped_and_those_without_an_area_skipped_with_one_message(
    tmp_path, set_up, capsys
):
    boxes = {
        "a": [("cat", -3, 0, 90, 70, 0), ("cat", 30, 20, 30, 20, 0), ("dog", 9, 9, 4, 4, 0)],
        "b": [("dog", 100, 100, 120, 120, 0), ("dog", 1, 1, 9, 9, 0)],
    }
    write_voc(tmp_path / "pets", boxes, {"trainval": ["a", "b"], "test": ["b"]})
    data = set_up(tmp_path / "pets")
    assert data.example("train", 0).target["boxes"].tolist() == [[0, 0, 60, 40]]
    assert data.example("train", 1).target["boxes"].tolist() == [[0, 0, 9, 9]]
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "skipped boxes without an area (4), in a.jpg, a.jpg, b.jpg, b.jpg" in out


def test_images_of_other_formats_and_lists_with_a_second_column_are_read(pets, set_up):
    (pets / "JPEGImages/d.jpg").unlink()
    expected = random_image(9, 60, 40)
    (pets / "JPEGImages/d.png").write_bytes(encode(expected, "PNG"))
    (pets / "ImageSets/Main/test.txt").write_text("d  1\nc -1\n\n")
    data = set_up(pets)
    assert data.sizes == (3, 2)
    assert np.array_equal(data.example("test", 0).image.movedim(0, -1), expected)


@BAD_FILES
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Annotations/b.xml", None, "there is no file .*b.xml: it is to describe .*b.jpg"),
        ("Annotations/b.xml", "<annotation><obj", "b.xml is not an annotation in VOC's format"),
        (
            "Annotations/b.xml",
            "<annotation><object><name>cat</name></object></annotation>",
            "b.xml is not an annotation in VOC's format .*missing",
        ),
        (
            "Annotations/b.xml",
            "<annotation><object><name>emu</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
            "<xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>",
            r"b.xml: emu is not one of data.classes=\[cat,dog\]",
        ),
        ("JPEGImages/b.jpg", None, "there is no image .*b.jpg"),
        ("JPEGImages/b.jpg", "not an image", "b.jpg is not an image"),
        ("ImageSets/Main/test.txt", None, "there is no file .*test.txt: set data.train and"),
        ("ImageSets/Main/test.txt", "\n", "test.txt names no image"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(pets, set_up, file, content, message):
    if content is None:
        (pets / file).unlink()
    else:
        (pets / file).write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        set_up(pets)


@BAD_FILES
def test_a_truncated_image_is_named_when_it_is_read(pets, set_up):
    path = pets / "JPEGImages/d.jpg"
    path.write_bytes(path.read_bytes()[:700])
    data = set_up(pets)
    with pytest.raises(ValueError, match=r"d\.jpg cannot be decoded"):
        data.example("test", 0)


@BAD_FILES
@pytest.mark.parametrize(
    ("name", "source"), [("bccd", "Shenggan/BCCD_Dataset"), ("voc", "pascal/VOC")]
)
def test_a_missing_directory_is_named_with_the_source_of_the_data(find, tmp_path, name, source):
    config = find("task=detection", f"data={name}", f"data.root={tmp_path}/none").config["data"]
    with pytest.raises(FileNotFoundError, match=rf"none: get the data from .*{source}"):
        instantiate(config, seed=0, _convert_="all").setup()


def test_the_fingerprint_changes_with_the_annotations(pets, set_up):
    before = set_up(pets).fingerprint
    assert set_up(pets).fingerprint == before
    xml = pets / "Annotations/a.xml"
    xml.write_text(xml.read_text().replace("<xmin>11<", "<xmin>12<"))
    assert set_up(pets).fingerprint != before


def test_the_directory_is_part_of_the_name_of_a_run_however_it_is_written(find, tmp_path):
    options = ["task=detection", "data=voc"]
    paths = [find(*options, f"data.root={root}").path for root in ("pets", "./pets/", "zoo")]
    assert paths[0] == paths[1] != paths[2]
    assert find(*options).path not in paths


@pytest.mark.bccd
def test_bccd_has_its_classes_and_one_box_without_an_area(find, capsys):
    config = find("task=detection", "data=bccd").config["data"]
    data = instantiate(config | {"root": str(BCCD_FILES)}, seed=0, _convert_="all")
    assert data.sizes == (205, 72)
    assert "(1), in BloodImage_00343.jpg" in capsys.readouterr().out
    labels = np.concatenate([a.labels for split in data.annotations for a in split])
    assert {*labels} == {1, 2, 3}
