import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from images_on_disk import encode, make_folders, random_image
from interruptible_run import FORK_SERVER
from PIL import Image

from src.cli import run_entry_point
from src.data import webdataset
from src.data.image_folder import read_folders
from src.data.image_reader import decode_image
from src.data.shard_index import SHORTER_SIDE_HEADER, index_path, read_index
from src.data.webdataset import make_shards, read_shards, shrink

CORRUPT_SHARD = pytest.mark.fault_injection(
    "bad input", "a shard that is damaged or made from other images"
)


@pytest.fixture
def folders(tmp_path):
    return make_folders(tmp_path / "folders")


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def contents(source):
    return sorted((source.read(i).tobytes(), int(label)) for i, label in enumerate(source.labels))


def test_shards_hold_each_image_once_and_training_images_with_a_shorter_side_of_at_most_512(
    folders, tmp_path
):
    (folders / "val" / "n01518878" / "large.JPEG").write_bytes(encode(random_image(7, 650, 520)))
    make_shards(folders, tmp_path / "out", workers=2, images_per_shard=5)
    names = [f"imagenet-train-{i:04d}.tar" for i in range(3)]
    names += ["imagenet-val-0000.tar", "imagenet-val-0001.tar"]
    expected = sorted([*names, *(f"{name}.index.npz" for name in names)])
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == expected
    reduced = [0, 0]
    splits = zip(read_folders(folders), read_shards(tmp_path / "out"), strict=True)
    for split, (files, shards) in enumerate(splits):
        assert set(shards.reduced.values()) == ({512} if split == 0 else set())
        stems = [os.path.basename(files.location(i)) for i in range(len(files.labels))]
        index = {stem.partition(".")[0]: i for i, stem in enumerate(stems)}
        assert len(shards.labels) == len(files.labels) == len(index)
        for i, label in enumerate(shards.labels):
            original = index.pop(shards.location(i).rpartition("-")[2].partition(".")[0])
            assert label == files.labels[original]
            before, after = decode_image(files.read(original)), decode_image(shards.read(i))
            if split == 1 or min(before.shape[1:]) <= 512:
                reduced[1] += min(before.shape[1:]) > 512
                assert shards.read(i).tobytes() == files.read(original).tobytes()
                continue
            reduced[0] += 1
            assert after.shape == (3, 512, 640)  # of 650 x 520
            image = Image.fromarray(before.permute(1, 2, 0).numpy())
            image = np.asarray(image.resize((640, 512), Image.BILINEAR))
            assert abs(after.permute(1, 2, 0).numpy().astype(int) - image).mean() < 2
        assert not index
    assert min(reduced) > 0  # each split has a large image


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 700), None), ((513, 700), (512, 698)), ((700, 513), (698, 512))]
)
def test_an_image_is_reduced_from_one_pixel_above_the_shorter_side(size, expected):
    file = np.frombuffer(encode(random_image(0, *size)), np.uint8).copy()
    result = shrink(file, 512)
    assert (result is file) == (expected is None)
    assert decode_image(result).shape[1:] == (expected or size)[::-1]


def test_an_index_built_by_reading_equals_the_one_written_with_the_shard(folders, tmp_path):
    make_shards(folders, tmp_path, workers=1, images_per_shard=5)
    written = {path: path.read_bytes() for path in tmp_path.glob("*.npz")}
    for path in written:
        path.unlink()
    read_shards(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.npz")} == written
    assert len(written) == 5


def make_earlier_shards(folders, out):
    """Make shards as before their index said what they were reduced to."""
    make_shards(folders, out, workers=1)
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert tar.getmembers()
            assert SHORTER_SIDE_HEADER in tar.pax_headers
            write_tar(path.with_suffix(".part"), {m.name: tar.extractfile(m).read() for m in tar})
        path.with_suffix(".part").replace(path)
        index = read_index(path) or webdataset.write_index(path, path)
        names, entries = index.names, index.entries
        np.savez(index_path(path), names=names, entries=entries, size=path.stat().st_size)


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_of_an_earlier_version_are_recognized_with_their_index_or_without(
    folders, tmp_path, indexed
):
    make_earlier_shards(folders, tmp_path)
    if not indexed:
        for path in tmp_path.glob("*.npz"):
            path.unlink()
    for shards in read_shards(tmp_path):
        assert shards.reduced == dict.fromkeys(shards.paths, 480)
    (tmp_path / "imagenet-train-0000.tar").unlink()
    message = "imagenet-val-0000.tar was made by an earlier version, .* to 480 pixels: choose"
    with pytest.raises(ValueError, match=message):
        make_shards(folders, tmp_path, workers=1)


def test_shards_made_by_others_are_read(tmp_path):
    images = [encode(random_image(i, 60 + i, 50)) for i in range(3)]
    members = {"n01.x/a.jpg": images[0], "n01.x/a.cls": b"7", "n01.x/a.json": b"{}"}
    members |= {"b.cls": b"12\n", "b.JPEG": images[1]}
    write_tar(tmp_path / "imagenet1k-train-0000.tar", members)
    members = {"c.png": images[2], "c.cls": b"999"}
    write_tar(tmp_path / "imagenet1k-validation-00.tar", members)
    train, val = read_shards(tmp_path)
    assert [train.read(i).tobytes() for i in range(2)] == images[:2]
    assert train.labels.tolist() == [7, 12]
    assert val.read(0).tobytes() == images[2]
    assert val.labels.tolist() == [999]
    assert val.location(0) == f"{tmp_path}/imagenet1k-validation-00.tar:c.png"
    assert train.reduced == val.reduced == {}  # as far as anyone can tell


def test_a_shard_is_indexed_once_and_again_when_its_size_changes(tmp_path, monkeypatch):
    train, val = tmp_path / "train.tar", tmp_path / "val.tar"
    write_tar(train, {"a.jpg": b"one", "a.cls": b"1"})
    write_tar(val, {"a.jpg": b"one", "a.cls": b"1"})
    indexed, write_index = [], webdataset.write_index
    monkeypatch.setattr(
        webdataset, "write_index", lambda *paths: indexed.append(paths[0]) or write_index(*paths)
    )
    for _ in range(2):
        read_shards(tmp_path)
        assert indexed == [train, val]
    write_tar(train, {f"{i}.{kind}": b"2" for i in range(9) for kind in ("jpg", "cls")})
    assert read_shards(tmp_path)[0].labels.tolist() == [2] * 9
    assert indexed == [train, val, train]


@CORRUPT_SHARD
def test_an_incomplete_shard_is_named(tmp_path, record_property):
    record_property("tried", 5)
    train, val = tmp_path / "train.tar", tmp_path / "val.tar"
    write_tar(val, {"a.jpg": b"one", "a.cls": b"1"})
    message = r"there is no shard .*\*train\*.tar: download all shards, or make them"
    with pytest.raises(FileNotFoundError, match=message):
        read_shards(tmp_path)
    for members, problem in {
        (("a.jpg", b"1"), ("b.cls", b"1")): "a does not have both an image and a .cls",
        (("a.txt", b"1"),): "it has no image in it",
        (("a.jpg", b"1"), ("a.cls", b"cat")): "train.tar is not a complete shard .*'cat'",
    }.items():
        write_tar(train, dict(members))
        with pytest.raises(ValueError, match=problem):
            read_shards(tmp_path)
    write_tar(train, {"a.cls": b"1", "a.jpg": bytes(50_000)})
    os.truncate(train, 30_000)
    message = "train.tar is not a complete shard .*download or make it again"
    with pytest.raises(ValueError, match=message):
        read_shards(tmp_path)
    assert not index_path(train).exists()


def test_a_rerun_makes_only_the_shards_that_are_missing(folders, tmp_path):
    out = tmp_path / "out"
    make_shards(folders, out, workers=1, images_per_shard=5)
    expected = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    (out / "imagenet-train-0001.tar").rename(out / "imagenet-train-0001.tar.part")
    os.truncate(out / "imagenet-train-0001.tar.part", 1000)
    (out / "imagenet-val-0000.tar").unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    make_shards(folders, out, workers=1, images_per_shard=5)
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == expected
    assert not list(out.glob("*.part"))
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


@CORRUPT_SHARD
def test_shards_of_other_images_are_not_mixed_in(folders, tmp_path):
    make_shards(folders, tmp_path / "out", workers=1)
    next(folders.glob("train/*/*.JPEG")).unlink()
    message = "imagenet-train-0000.tar was not made from .*: choose another folder"
    with pytest.raises(ValueError, match=message):
        make_shards(folders, tmp_path / "out", workers=1)


@pytest.mark.fault_injection("bad input", "an image that is truncated, no image, or gone")
def test_a_corrupt_image_is_copied_and_reported(folders, tmp_path, capsys):
    path = next(folders.glob("train/*/*.JPEG"))
    path.write_bytes(b"no image")
    make_shards(folders, tmp_path / "out", workers=1)
    assert f"{path} is not an image: copied unchanged" in capsys.readouterr().err
    train, _ = read_shards(tmp_path / "out")
    assert b"no image" in [content for content, _ in contents(train)]


def make_shards_as_command(folders, out, log):
    """Run the command in a process group of its own, as a shell does."""
    os.setsid()
    sys.stderr = log.open("w")
    run_entry_point(lambda: make_shards(folders, out, workers=1, images_per_shard=1))


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_a_message_and_a_rerun_resumes_it(tmp_path):
    folders = make_folders(tmp_path / "folders", train=1, val=1)
    out, log = tmp_path / "out", tmp_path / "log"
    # The worker process blocks at the last image, a named pipe, so that Ctrl-C meets it at work.
    path = Path(read_folders(folders)[0].location(np.random.default_rng(0).permutation(3)[-1]))
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    # Not a fork of this process: threads of other tests may hold locks, which a fork would keep.
    process = FORK_SERVER.Process(target=make_shards_as_command, args=(folders, out, log))
    process.start()
    while process.is_alive() and not (out / "imagenet-train-0002.tar.part").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert log.read_text().startswith("\n")
    assert len(log.read_text().splitlines()) == 2  # no traceback, of the worker process either
    assert {path.name for path in out.glob("*.tar")} == {
        "imagenet-train-0000.tar",
        "imagenet-train-0001.tar",
    }

    path.unlink()
    path.write_bytes(content)
    make_shards(folders, out, workers=1, images_per_shard=1)
    assert [len(source.labels) for source in read_shards(out)] == [3, 3]


def test_the_old_name_of_the_command_prints_the_new_one():
    command = [sys.executable, "-m", "src.data.shards", "IN", "OUT"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "python -m src.data.shards is now python -m src.data.webdataset\n"
