import hashlib
import shutil
import tarfile

import numpy as np
import pytest
from images_on_disk import WNIDS, make_folders
from scipy.io import savemat
from torchvision.datasets import imagenet

from src.data.image_folder import DEVKIT, read_folders


@pytest.fixture
def root(tmp_path):
    return make_folders(tmp_path)


def flatten(root, lines):
    """Photos of val/ laid flat; the list has what `lines` makes of (name, wnid, label)."""
    written = []
    for label, wnid in enumerate(WNIDS):
        for path in sorted((root / "val" / wnid).iterdir()):
            path.rename(root / "val" / path.name)
            written.append(lines(path.name, wnid, label))
        (root / "val" / wnid).rmdir()
    (root / "val.txt").write_text("\n".join(reversed(written)) + "\n")


def test_folders_are_classes_in_order(root):
    (root / "train" / WNIDS[1] / ".hidden").touch()
    train, val = read_folders(root)
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [train.where(i) for i in range(12)] == sorted(map(str, root.glob("train/*/*.JPEG")))
    assert train.read(5).tobytes() == sorted(root.glob("train/*/*.JPEG"))[5].read_bytes()


def test_a_class_of_training_may_be_missing_in_val(root):
    shutil.rmtree(root / "val" / WNIDS[1])
    assert read_folders(root)[1].labels.tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("lines", [lambda name, wnid, _: f"{name} {wnid}", lambda name, _, label: f"{name} {label}"])
def test_a_flat_val_has_a_list(root, lines):
    usual = read_folders(root)[1]
    expected = {usual.where(i).rpartition("/")[2]: label for i, label in enumerate(usual.labels)}
    flatten(root, lines)
    val = read_folders(root)[1]
    assert {val.where(i).rpartition("/")[2]: label for i, label in enumerate(val.labels)} == expected
    assert val.read(0).tobytes() == sorted((root / "val").iterdir())[0].read_bytes()


@pytest.mark.fault_injection("bad input", "a folder, class or list of photos that is missing or does not fit")
def test_a_list_that_does_not_fit_says_what_differs(root, record_property):
    record_property("tried", 7)
    flatten(root, lambda name, wnid, _: f"{name} {wnid}")
    path = root / "val.txt"
    good = path.read_text()
    first = sorted((root / "val").iterdir())[0].name
    for text, message in {
        good + "other.JPEG n01440764\n": r"1 are listed but not in .*/val, other.JPEG first \(6 photos, 7 lines\)",
        good.replace(f"{first} n01440764\n", ""): rf"1 are not listed in it, {first} first \(6 photos, 5 lines\)",
        good.replace(" n03417042", " n99", 1): "line 1 .* does not fit, .* n99'.*3 classes, n01440764 .. n03417042",
        good.replace(" n03417042", " 3", 1): "line 1 .* does not fit",
        "490\n361\n": "line 1 of .*val.txt does not fit, '490': it must have one line for each photo",
        good + good.splitlines()[0]: "line 7 of .* names .* a second time",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_folders(root)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"val has no folders of classes, so put {DEVKIT} .*, or .*val.txt with"
    ):
        read_folders(root)


def make_devkit(root, ground_truth):
    """ImageNet's own archive in small: classes numbered in another order than their wnids', and one of two others."""
    synsets = np.array(
        [(3, WNIDS[0], "tench", "", 0), (1, WNIDS[2], "gong", "", 0), (4, "n00001740", "entity", "", 2),
         (2, WNIDS[1], "ostrich", "", 0)],
        [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "i4")],
    )  # fmt: skip
    folder = root / "ILSVRC2012_devkit_t12"
    (folder / "data").mkdir(parents=True)
    savemat(folder / "data" / "meta.mat", {"synsets": synsets})
    numbers = folder / "data" / "ILSVRC2012_validation_ground_truth.txt"
    numbers.write_text("".join(f"{number}\n" for number in ground_truth))
    with tarfile.open(root / DEVKIT, "w:gz") as archive:
        archive.add(folder, folder.name)
    shutil.rmtree(folder)
    return hashlib.md5((root / DEVKIT).read_bytes()).hexdigest()


def test_a_flat_val_has_the_devkits_ground_truth(root, monkeypatch):
    flatten(root, lambda name, *_: name)
    (root / "val.txt").unlink()
    for i, path in enumerate(sorted((root / "val").iterdir()), 1):
        path.rename(root / "val" / f"ILSVRC2012_val_{i:08}.JPEG")
    md5 = make_devkit(root, [3, 3, 2, 1, 1, 2])
    with pytest.raises(ValueError, match=f"{DEVKIT} is not whole: fetch it again"):
        read_folders(root)
    monkeypatch.setitem(imagenet.ARCHIVE_META, "devkit", (DEVKIT, md5))
    for _ in range(2):  # and from what was kept of it
        _, val = read_folders(root)
        assert val.labels.tolist() == [0, 0, 1, 2, 2, 1]
        assert [val.where(i) for i in range(6)] == sorted(map(str, (root / "val").iterdir()))
    (root / "val" / "ILSVRC2012_val_00000006.JPEG").unlink()
    with pytest.raises(ValueError, match=rf"{DEVKIT} does not fit the photos: 1 are listed but not in .*/val, ILSV"):
        read_folders(root)


@pytest.mark.fault_injection("bad input", "a folder, class or list of photos that is missing or does not fit")
def test_what_is_missing_is_named(root, record_property):
    record_property("tried", 5)
    shutil.rmtree(root / "train" / WNIDS[1])
    with pytest.raises(ValueError, match=r"val has 1 classes that .*train has not \(n01518878"):
        read_folders(root)
    (root / "train" / WNIDS[1]).mkdir()
    with pytest.raises(FileNotFoundError, match="train/n01518878 has no photo in it: unpack the class again"):
        read_folders(root)
    shutil.rmtree(root / "val")
    with pytest.raises(FileNotFoundError, match="there is no folder .*/val: name with data.root="):
        read_folders(root)
    shutil.rmtree(root / "train")
    with pytest.raises(FileNotFoundError, match="there is no folder .*/train: name with data.root="):
        read_folders(root)
    (root / "train").mkdir()
    (root / "val").mkdir()
    with pytest.raises(FileNotFoundError, match="train has no folder in it: it must have one for each class"):
        read_folders(root)
