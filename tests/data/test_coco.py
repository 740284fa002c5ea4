"""Directories in COCO's format: category ids, crowds, areas, and what is wrong with files."""

import json
from types import SimpleNamespace

import pytest
from annotated_files import write_coco
from hydra.utils import instantiate

CATEGORIES = {18: "dog", 3: "car", 90: "toothbrush"}  # ids with gaps, in no order
TRAIN = {
    9: [
        {"bbox": [0.5, 2, 10, 20.25], "category_id": 90, "iscrowd": 0, "area": 55.5},
        {"bbox": [5, 5, 30, 30], "category_id": 3, "iscrowd": 1, "area": 700},
    ],
    25: [],
    30: [{"bbox": [1, 1, 4, 5], "category_id": 18}],
}
TEST = {42: [{"bbox": [0, 0, 9, 9], "category_id": 18, "iscrowd": 0, "area": 81}], 7: []}


@pytest.fixture
def coco(tmp_path):
    write_coco(tmp_path / "coco", "train2017", TRAIN, CATEGORIES)
    write_coco(tmp_path / "coco", "val2017", TEST, CATEGORIES)
    return tmp_path / "coco"


@pytest.fixture
def set_up(find):
    def make(root, *overrides):
        options = ["task=detection", "data=coco", f"data.root={root}", "data.flip=false"]
        config = find(*options, *overrides).config["data"]
        data = instantiate(config, seed=0, batch_size=3, iterations=3, _convert_="all")
        data.trainer = SimpleNamespace(global_rank=0, world_size=1)
        data.setup()
        return data

    return make


def test_labels_are_the_categories_in_the_order_of_their_ids(coco, set_up):
    data = set_up(coco)
    assert data.classes == ["car", "dog", "toothbrush"]
    assert data.category_ids == [3, 18, 90]
    assert data.example("train", 0).target["labels"].tolist() == [3, 1]
    assert data.example("train", 2).target["labels"].tolist() == [2]


def test_boxes_ids_and_areas_are_those_of_the_file(coco, set_up):
    data = set_up(coco)
    image, target = data.example("train", 0)
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[0.5, 2, 10.5, 22.25], [5, 5, 35, 35]]
    assert target["area"].tolist() == [55.5, 700]
    assert [int(data.example("test", i).target["image_id"]) for i in (0, 1)] == [42, 7]
    # An annotation of one's own may lack everything but box and category.
    assert data.example("train", 2).target["area"].tolist() == [20]


def test_crowds_are_left_out_of_training_and_kept_for_evaluation(coco, set_up):
    data = set_up(coco)
    assert data.example("train", 0).target["iscrowd"].tolist() == [0, 1]
    batches = [targets for _, targets in data.train_dataloader()]
    learned = {int(target["image_id"]): target for targets in batches for target in targets}
    assert learned[9]["labels"].tolist() == [3]
    assert learned[9]["boxes"].tolist() == [[0.5, 2, 10.5, 22.25]]


def test_an_image_without_annotation_has_no_boxes(coco, set_up):
    assert set_up(coco).example("train", 1).target["boxes"].shape == (0, 4)


def test_boxes_are_clipped_and_those_without_an_area_skipped_with_one_message(
    tmp_path, set_up, capsys
):
    boxes = [[50, 30, 20, 20], [5, 5, 0, 3], [5, 5, 3, -1], [70, 5, 3, 3]]
    objects = {5: [{"bbox": box, "category_id": 3} for box in boxes]}
    for split in ("train2017", "val2017"):
        write_coco(tmp_path / "coco", split, objects, CATEGORIES)
    data = set_up(tmp_path / "coco")
    assert data.example("train", 0).target["boxes"].tolist() == [[50, 30, 60, 40]]
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "skipped boxes without an area (6), in 000000000005.jpg" in out


def test_the_papers_split_is_that_of_2014(find):
    config = find("experiment=table8", "model=resnet101").config
    assert config["data"]["train"] == ["annotations/instances_train2014.json", "train2014"]
    assert config["data"]["test"] == ["annotations/instances_val2014.json", "val2014"]
    assert config["weights"] == "weights/resnet101.safetensors"


def edit(coco, change):
    path = coco / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.fault_injection("bad input", "a JSON file of COCO that cannot be used")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), r"val2017.json is not in COCO's format \(KeyError\('images'\)"),
        (lambda c: c["annotations"][0].pop("bbox"), "val2017.json is not in COCO's format"),
        (
            lambda c: c["annotations"][0].update(category_id=4),
            "val2017.json: image 42 has an object of category 4, which is not one of its categ",
        ),
        (
            lambda c: c["categories"].append({"id": 91, "name": "hair brush"}),
            "val2017.json has other categories than the training images",
        ),
        (
            lambda c: c["images"][0].update(file_name="gone.jpg"),
            r"there is no file .*val2017/gone.jpg: .*val2017.json names it",
        ),
    ],
)
def test_a_json_file_that_cannot_be_used_is_named(coco, set_up, change, message):
    edit(coco, change)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        set_up(coco)


@pytest.mark.fault_injection("bad input", "a JSON file of COCO that cannot be used")
def test_a_json_file_that_is_none_or_missing_is_named(coco, set_up):
    path = coco / "annotations" / "instances_val2017.json"
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"val2017.json is not in COCO's format"):
        set_up(coco)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"set data.train and data.test to \[JSON FILE"):
        set_up(coco)
    with pytest.raises(ValueError, match=r"data.train and data.test must be \[JSON FILE"):
        set_up(coco, "data.train=[annotations]")


@pytest.mark.fault_injection("bad input", "an image that is not of the size of its annotation")
def test_an_image_of_another_size_than_its_annotation_is_named(coco, set_up):
    edit(coco, lambda c: c["images"][0].update(width=40, height=60))
    data = set_up(coco)
    with pytest.raises(ValueError, match=r"042.jpg has 60x40 pixels, but .* image of 40x60"):
        data.example("test", 0)
