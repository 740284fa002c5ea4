import io
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from conftest import ROOT
from images_on_disk import encoded, make_folders, picture
from PIL import Image

from src.data import webdataset
from src.data.image_folder import read_folders
from src.data.photo import decode
from src.data.webdataset import index_path, make_shards, read_shards, shrink


@pytest.fixture
def folders(tmp_path):
    return make_folders(tmp_path / "folders")


@pytest.fixture(autouse=True)
def few_photos_to_a_shard(monkeypatch):
    monkeypatch.setattr(webdataset, "PHOTOS", 5)


def in_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def contents(source):
    return sorted((source.read(i).tobytes(), int(label)) for i, label in enumerate(source.labels))


def test_shards_hold_each_photo_once_with_its_label_and_a_shorter_side_of_480_at_most(folders, tmp_path):
    make_shards(folders, tmp_path / "out", workers=2)
    names = [f"imagenet-train-{i:04d}.tar" for i in range(3)] + ["imagenet-val-0000.tar", "imagenet-val-0001.tar"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == sorted(
        [*names, *(f"{name}.index.npz" for name in names)]
    )
    large = 0
    for files, sharded in zip(read_folders(folders), read_shards(tmp_path / "out"), strict=True):
        number = {os.path.basename(files.where(i)).partition(".")[0]: i for i in range(len(files.labels))}
        assert len(sharded.labels) == len(files.labels) == len(number)
        for i, label in enumerate(sharded.labels):
            own = number.pop(sharded.where(i).rpartition("-")[2].partition(".")[0])
            assert label == files.labels[own]
            before, after = decode(files.read(own)), decode(sharded.read(i))
            if min(before.shape[1:]) <= 480:
                assert sharded.read(i).tobytes() == files.read(own).tobytes()
                continue
            large += 1
            assert after.shape == (3, 480, 600)  # of 640 x 512
            reference = Image.fromarray(before.permute(1, 2, 0).numpy()).resize((600, 480), Image.BILINEAR)
            assert abs(after.permute(1, 2, 0).numpy().astype(int) - np.asarray(reference)).mean() < 2
        assert not number
    assert large > 0


@pytest.mark.parametrize(("size", "after"), [((480, 700), None), ((481, 700), (480, 698)), ((700, 481), (698, 480))])
def test_a_photo_is_made_smaller_from_481_on(size, after):
    file = np.frombuffer(encoded(picture(0, *size)), np.uint8).copy()
    result = shrink(file)
    assert (result is file) == (after is None)
    assert decode(result).shape[1:] == (after or size)[::-1]


def test_an_index_that_is_built_is_the_one_that_was_written(folders, tmp_path):
    make_shards(folders, tmp_path, workers=1)
    written = [contents(source) for source in read_shards(tmp_path)]
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    assert [contents(source) for source in read_shards(tmp_path)] == written
    assert len(list(tmp_path.glob("*.npz"))) == 5


def test_shards_as_others_make_them_are_read(tmp_path):
    photos = [encoded(picture(i, 60 + i, 50)) for i in range(3)]
    in_tar(
        tmp_path / "imagenet1k-train-0000.tar",
        {"n01.x/a.jpg": photos[0], "n01.x/a.cls": b"7", "n01.x/a.json": b"{}", "b.cls": b"12\n", "b.JPEG": photos[1]},
    )
    in_tar(tmp_path / "imagenet1k-validation-00.tar", {"c.png": photos[2], "c.cls": b"999"})
    train, val = read_shards(tmp_path)
    assert [(train.read(i).tobytes(), label) for i, label in enumerate(train.labels.tolist())] == [
        (photos[0], 7),
        (photos[1], 12),
    ]
    assert val.read(0).tobytes() == photos[2] and val.labels.tolist() == [999]
    assert val.where(0) == f"{tmp_path}/imagenet1k-validation-00.tar:c.png"


def test_a_shard_is_indexed_once_and_again_when_its_size_changes(tmp_path, monkeypatch):
    train, val = tmp_path / "train.tar", tmp_path / "val.tar"
    in_tar(train, {"a.jpg": b"one", "a.cls": b"1"})
    in_tar(val, {"a.jpg": b"one", "a.cls": b"1"})
    scanned, scan = [], webdataset.scan
    monkeypatch.setattr(webdataset, "scan", lambda path: scanned.append(path) or scan(path))
    for _ in range(2):
        read_shards(tmp_path)
        assert scanned == [train, val]
    in_tar(train, {f"{i}.{kind}": b"2" for i in range(9) for kind in ("jpg", "cls")})
    assert read_shards(tmp_path)[0].labels.tolist() == [2] * 9
    assert scanned == [train, val, train]


@pytest.mark.fault_injection("bad input", "a shard that is damaged or of other photos")
def test_a_shard_that_is_not_whole_is_named(tmp_path, record_property):
    record_property("tried", 5)
    train, val = tmp_path / "train.tar", tmp_path / "val.tar"
    in_tar(val, {"a.jpg": b"one", "a.cls": b"1"})
    with pytest.raises(FileNotFoundError, match=r"there is no shard .*\*train\*.tar: fetch or make all of them"):
        read_shards(tmp_path)
    for members, problem in {
        (("a.jpg", b"1"), ("b.cls", b"1")): "a has not both a photo and a .cls",
        (("a.txt", b"1"),): "it has no photo in it",
        (("a.jpg", b"1"), ("a.cls", b"cat")): "train.tar is not a whole shard .*'cat'",
    }.items():
        in_tar(train, dict(members))
        with pytest.raises(ValueError, match=problem):
            read_shards(tmp_path)
    in_tar(train, {"a.cls": b"1", "a.jpg": bytes(50_000)})
    os.truncate(train, 30_000)
    with pytest.raises(ValueError, match="train.tar is not a whole shard .*fetch or make it again"):
        read_shards(tmp_path)
    assert not index_path(train).exists()


def test_making_goes_on_where_it_was_stopped(folders, tmp_path, monkeypatch):
    out = tmp_path / "out"
    make_shards(folders, out, workers=1)
    whole = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    (out / "imagenet-train-0001.tar").rename(out / "imagenet-train-0001.tar.part")
    os.truncate(out / "imagenet-train-0001.tar.part", 1000)
    (out / "imagenet-val-0000.tar").unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    make_shards(folders, out, workers=1)
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == whole
    assert not list(out.glob("*.part"))
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.fault_injection("bad input", "a shard that is damaged or of other photos")
def test_shards_of_other_photos_are_not_mixed_in(folders, tmp_path):
    make_shards(folders, tmp_path / "out", workers=1)
    next(folders.glob("train/*/*.JPEG")).unlink()
    with pytest.raises(ValueError, match="imagenet-train-000. *.*was not made of .*: say another folder"):
        make_shards(folders, tmp_path / "out", workers=1)


@pytest.mark.fault_injection("bad input", "a photo that is cut short, no image, or gone")
def test_a_photo_that_cannot_be_read_is_copied_and_told(folders, tmp_path, capsys):
    bad = next(folders.glob("train/*/*.JPEG"))
    bad.write_bytes(b"no photo")
    make_shards(folders, tmp_path / "out", workers=1)
    assert f"{bad} is not an image: copied as it is" in capsys.readouterr().err
    assert b"no photo" in [content for content, _ in contents(read_shards(tmp_path / "out")[0])]


def test_ctrl_c_ends_the_command_with_a_word_and_it_goes_on(tmp_path, monkeypatch):
    folders, out = make_folders(tmp_path / "folders", train=1, val=1), tmp_path / "out"
    photo = encoded(picture(0, 1000, 600))
    for i in range(120):
        (folders / "train" / "n01440764" / f"{i}.JPEG").write_bytes(photo)
    script = "from src.data import shards; from src.cli import entry; webdataset.PHOTOS = 10; entry(webdataset.main)"
    command = [sys.executable, "-c", script, str(folders), str(out), "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "imagenet-train-0000.tar").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "\nstopped; the same command goes on\n"
    assert process.returncode == 130
    assert not (out / "imagenet-train-0012.tar").exists()
    monkeypatch.setattr(webdataset, "PHOTOS", 10)
    make_shards(folders, out, workers=1)
    train, val = read_shards(out)
    assert len(train.labels) == 123 and len(val.labels) == 3
