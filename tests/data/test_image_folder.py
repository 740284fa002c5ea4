import hashlib
import shutil
import tarfile

import numpy as np
import pytest
from images_on_disk import WNIDS, make_folders
from scipy.io import savemat
from torchvision.datasets import imagenet

from src.data.image_folder import DEVKIT, read_folders

BAD_FOLDERS = pytest.mark.fault_injection(
    "bad input", "a folder, class or list of images that is missing or does not match"
)


@pytest.fixture
def root(tmp_path):
    return make_folders(tmp_path)


def flatten_val(root, make_line):
    """Move the images of val/ out of their folders, and list them in val.txt."""
    lines = []
    for label, wnid in enumerate(WNIDS):
        for path in sorted((root / "val" / wnid).iterdir()):
            path.rename(root / "val" / path.name)
            lines.append(make_line(path.name, wnid, label))
        (root / "val" / wnid).rmdir()
    (root / "val.txt").write_text("\n".join(reversed(lines)) + "\n")


def labels_by_name(files):
    names = [files.location(i).rpartition("/")[2] for i in range(len(files.labels))]
    return dict(zip(names, files.labels.tolist(), strict=True))


def test_classes_are_the_sorted_folders(root):
    (root / "train" / WNIDS[1] / ".hidden").touch()
    train, val = read_folders(root)
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    paths = sorted(root.glob("train/*/*.JPEG"))
    assert [train.location(i) for i in range(12)] == list(map(str, paths))
    assert train.read(5).tobytes() == paths[5].read_bytes()


def test_a_training_class_may_be_missing_in_val(root):
    shutil.rmtree(root / "val" / WNIDS[1])
    assert read_folders(root)[1].labels.tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize(
    "make_line",
    [lambda name, wnid, _: f"{name} {wnid}", lambda name, _, label: f"{name} {label}"],
    ids=["wnid", "label"],
)
def test_a_flat_val_takes_its_classes_from_a_list(root, make_line):
    expected = labels_by_name(read_folders(root)[1])
    flatten_val(root, make_line)
    val = read_folders(root)[1]
    assert labels_by_name(val) == expected
    assert val.read(0).tobytes() == sorted((root / "val").iterdir())[0].read_bytes()


def test_the_name_of_a_folder_is_not_taken_for_a_label(root):
    """Sorted, the folders 1, 10 and 2 have the labels 0, 1 and 2."""
    names = dict(zip(WNIDS, ("1", "10", "2"), strict=True))
    for split in ("train", "val"):
        for wnid, name in names.items():
            (root / split / wnid).rename(root / split / name)
    expected = labels_by_name(read_folders(root)[1])
    lines = [f"{path.name} {path.parent.name}" for path in sorted(root.glob("val/*/*"))]
    for path in sorted(root.glob("val/*/*")):
        path.rename(root / "val" / path.name)
    for name in names.values():
        (root / "val" / name).rmdir()
    (root / "val.txt").write_text("\n".join(lines) + "\n")
    assert labels_by_name(read_folders(root)[1]) == expected


@BAD_FOLDERS
def test_a_list_that_does_not_match_the_images_is_refused(root, record_property):
    record_property("tried", 7)
    flatten_val(root, lambda name, wnid, _: f"{name} {wnid}")
    path = root / "val.txt"
    good = path.read_text()
    first = sorted((root / "val").iterdir())[0].name
    extra = r"the images \(6 images, 7 lines\): other.JPEG is listed but not in .*/val"
    unlisted = rf"the images \(6 images, 5 lines\): {first} is not listed in it"
    for text, message in {
        good + "other.JPEG n01440764\n": extra,
        good.replace(f"{first} n01440764\n", ""): unlisted,
        good.replace(" n03417042", " n99", 1): "line 1 .*n99'.*3 classes, n01440764 .. n03417042",
        good.replace(" n03417042", " 3", 1): "line 1 of .* is .* 3': expected one line",
        "490\n361\n": "line 1 of .*val.txt is '490': expected one line for each image",
        good + good.splitlines()[0]: "line 7 of .* lists .* a second time",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_folders(root)
    path.unlink()
    message = rf"val has no folders of classes: put {DEVKIT} next to it, or .*val.txt with"
    with pytest.raises(FileNotFoundError, match=message):
        read_folders(root)


def make_devkit(root, ground_truth):
    """Write a small devkit, whose classes are not in the order of the wnids; return its MD5."""
    synsets = np.array(
        [
            (3, WNIDS[0], "tench", "", 0),
            (1, WNIDS[2], "gong", "", 0),
            (4, "n00001740", "entity", "", 2),
            (2, WNIDS[1], "ostrich", "", 0),
        ],
        [
            ("ILSVRC2012_ID", "i4"),
            ("WNID", "O"),
            ("words", "O"),
            ("gloss", "O"),
            ("num_children", "i4"),
        ],
    )
    folder = root / "ILSVRC2012_devkit_t12"
    (folder / "data").mkdir(parents=True)
    savemat(folder / "data" / "meta.mat", {"synsets": synsets})
    numbers = folder / "data" / "ILSVRC2012_validation_ground_truth.txt"
    numbers.write_text("".join(f"{number}\n" for number in ground_truth))
    with tarfile.open(root / DEVKIT, "w:gz") as archive:
        archive.add(folder, folder.name)
    shutil.rmtree(folder)
    return hashlib.md5((root / DEVKIT).read_bytes()).hexdigest()


def test_a_flat_val_takes_its_classes_from_the_devkit(root, monkeypatch):
    flatten_val(root, lambda name, *_: name)
    (root / "val.txt").unlink()
    for i, path in enumerate(sorted((root / "val").iterdir()), 1):
        path.rename(root / "val" / f"ILSVRC2012_val_{i:08}.JPEG")
    md5 = make_devkit(root, [3, 3, 2, 1, 1, 2])
    with pytest.raises(ValueError, match=f"{DEVKIT} is incomplete: download it again"):
        read_folders(root)
    monkeypatch.setitem(imagenet.ARCHIVE_META, "devkit", (DEVKIT, md5))
    for _ in range(2):  # the second time from what torchvision saved
        _, val = read_folders(root)
        assert val.labels.tolist() == [0, 0, 1, 2, 2, 1]
        paths = sorted((root / "val").iterdir())
        assert [val.location(i) for i in range(6)] == list(map(str, paths))
    (root / "val" / "ILSVRC2012_val_00000006.JPEG").unlink()
    message = (
        rf"{DEVKIT} does not match .* ILSVRC2012_val_00000006.JPEG is listed but not in .*/val"
    )
    with pytest.raises(ValueError, match=message):
        read_folders(root)


@BAD_FOLDERS
def test_missing_folders_are_named(root, record_property):
    record_property("tried", 5)
    shutil.rmtree(root / "train" / WNIDS[1])
    message = r"val has 1 classes that .*train does not have \(n01518878"
    with pytest.raises(ValueError, match=message):
        read_folders(root)
    (root / "train" / WNIDS[1]).mkdir()
    message = "train/n01518878 has no image in it: unpack the class again"
    with pytest.raises(FileNotFoundError, match=message):
        read_folders(root)
    for split in ("val", "train"):
        shutil.rmtree(root / split)
        message = f"there is no folder .*/{split}: name with data.root="
        with pytest.raises(FileNotFoundError, match=message):
            read_folders(root)
    (root / "train").mkdir()
    (root / "val").mkdir()
    message = "train has no folder in it: it needs one for each class"
    with pytest.raises(FileNotFoundError, match=message):
        read_folders(root)
