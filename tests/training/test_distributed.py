"""What must not depend on the number of devices, and a device that hangs: over gloo, on the CPU."""

import io
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY
from data.images_on_disk import make_folders
from omegaconf import OmegaConf
from ranks import said_in_a_run, together
from reference_protocols import counts, reader
from src.training.callbacks.record import Record

from src import train
from src.config import CONF
from src.data.in_memory import Batches
from src.evaluation.evaluator import evaluate
from src.training.distributed import PATIENCE

CPU = {"accelerator": "cpu", "precision": "32-true"}
SHARED = [
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "recipe.batch_size=126",
]  # goes into 2 and into 3


@pytest.mark.fault_injection(
    "processes", "errors of a run on 2 and 3 devices against those of its checkpoint on one"
)
@pytest.mark.parametrize(("devices", "images"), [(2, ()), (3, ("data.test_images=499",))])
def test_a_run_is_tested_as_its_checkpoint_is_by_one_process(find, monkeypatch, devices, images):
    """500 and 499 images in batches of 64; each process has batch norm statistics of its own until it tests."""
    folder = find(*TINY, *SHARED, *images, f"trainer.devices={devices}")
    (said, *others) = together(devices, said_in_small_batches, folder)
    assert f"on {devices} devices, batch norm over {126 // devices} images" in said
    assert others == [""] * (devices - 1)
    config = folder.config | {"weights": folder.last_checkpoint}
    mistakes, mistakes_top5, count = counts(evaluate([config], CPU, "center", "it"))
    assert count == (499 if images else 500)
    assert 100 * mistakes / count == folder.summary["test_error"]
    assert 100 * mistakes_top5 / count == folder.summary["test_error_top5"]
    assert [row["lr"] for row in folder.rows()] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.001])
    # 126 images a step: the errors of the last two of eight iterations are out of 252.
    assert (folder.summary["train_error"] * 252 / 100) == pytest.approx(
        round(folder.summary["train_error"] * 2.52)
    )


def said_in_small_batches(folder):
    import src.data.in_memory

    src.data.in_memory.TEST_BATCH = 64
    return said_in_a_run(folder)


@pytest.mark.fault_injection(
    "processes", "a run on two devices killed and gone on with, against one that was not"
)
def test_a_run_on_two_devices_goes_on_with_the_same_bits(find, tmp_path):
    overrides = [
        *TINY[:1],
        *SHARED,
        "trainer.devices=2",
        "recipe.iterations=24",
        "recipe.eval_every=20",
    ]
    overrides += ["recipe.log_every=1", "recipe.checkpoint_every=3", "recipe.schedule.lr=0.01"]
    whole, folder = find(*overrides, f"output_dir={tmp_path}/whole"), find(*overrides)
    together(2, said_in_a_run, whole)
    with pytest.raises(Interrupted):
        together(2, stopped_at_5, folder)
    assert "goes on at iteration 3 of 24" in together(2, said_in_a_run, folder)[0]
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    assert folder.layers.read_bytes() == whole.layers.read_bytes()
    ours, theirs = (
        torch.load(f.last_checkpoint, weights_only=True)["state_dict"] for f in (folder, whole)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


class Interrupted(Exception):
    """Instead of a signal."""


def stopped_at_5(folder):
    def stop(self, trainer, *_):
        if trainer.global_step == 5:
            raise Interrupted

    Record.on_train_batch_start = stop
    train.run(folder)


@pytest.mark.fault_injection(
    "processes", "every test image counted once on 2 and 3 devices, by each protocol"
)
@pytest.mark.parametrize("devices", [2, 3])
def test_every_image_counts_once_however_many_devices_test_it(
    tiny, tmp_path, devices, record_property
):
    """500 digits; seven photos, one of which cannot be read; three, so that one process can read none."""
    folder = tiny()
    weights, data = (
        tmp_path / "reader.pt",
        OmegaConf.to_container(OmegaConf.load(CONF / "data" / "imagenet.yaml")),
    )
    torch.save(reader(0).state_dict(), weights)
    photos = []
    for count, each in ((7, 3), (3, 1)):
        root = make_folders(tmp_path / str(count), val=each)
        for path in sorted(root.glob("val/*/*"))[::4][: 3 * each - count]:
            path.unlink()
        sorted(root.glob("val/*/*"))[1].write_bytes(b"text")
        own = {"root": str(root), "normalization": "channel", "num_workers": 0, "on_bad": "skip"}
        model = {"_target_": "reference_protocols.reader", "seed": 0}
        photos.append({"model": model, "data": data | own, "seed": 0, "weights": weights})
    asked = [(photos[0], protocol) for protocol in ("center", "10crop", "multiscale")] + [
        (photos[1], "center")
    ]
    asked.append((folder.config | {"weights": folder.last_checkpoint}, "center"))
    record_property("tried", len(asked))
    alone = found_on(1, asked)
    assert [images for (_, _, images), _ in alone] == [6, 6, 6, 2, 500]
    first, *others = together(devices, found_on, devices, asked)
    for found, expected in zip(first, alone, strict=True):
        assert found[0] == expected[0]
        assert len(found[1].splitlines()) == 1  # and the other processes are silent:
    assert others == [[(found, "") for found, _ in alone]] * (devices - 1)


def found_on(devices, asked):
    """What `evaluate` finds and prints for each of these."""
    found = []
    for config, protocol in asked:
        with redirect_stdout(io.StringIO()) as said:
            errors = counts(evaluate([config], CPU | {"devices": devices}, protocol, "it"))
        found.append((errors, said.getvalue()))
    return found


@pytest.mark.parametrize("images", [3, 7, 12])
def test_the_shares_of_the_test_images_are_all_of_them_once(monkeypatch, images):
    monkeypatch.setattr("src.data.in_memory.TEST_BATCH", 2)
    pixels, labels = torch.zeros(images, 1, 1, 3), torch.arange(images)
    for world in range(1, images + 1):
        shares = [
            Batches(pixels, labels, torch.zeros(3), None, rank, world) for rank in range(world)
        ]
        of_each = [torch.cat([labels for _, labels in share]) for share in shares]
        assert torch.cat(of_each).sort().values.tolist() == list(range(images))
        assert [len(share) for share in shares] == [-(-len(of) // 2) for of in of_each]
        assert max(map(len, of_each)) - min(map(len, of_each)) <= 1
    with pytest.raises(
        ValueError, match=f"{images} images are too few to be tested on {images + 1} devices"
    ):
        Batches(pixels, labels, torch.zeros(3), None, 0, images + 1)


@pytest.mark.fault_injection("bad input", "a batch that does not divide among the devices")
@pytest.mark.parametrize(("devices", "batch"), [(2, 127), (3, 128), (3, 2)])
def test_a_batch_that_does_not_divide_is_refused_before_there_is_a_folder(find, devices, batch):
    folder = find(
        f"recipe.batch_size={batch}", f"trainer.devices={devices}", "trainer.accelerator=cpu"
    )
    with pytest.raises(
        ValueError, match=f"batch_size={batch} .* must be a multiple of {devices}, their number"
    ):
        train.run(folder)
    assert not folder.path.exists()


@pytest.mark.fault_injection("processes", "a process that hangs")
def test_a_process_that_hangs_ends_the_run_with_that_said_and_is_ended(tmp_path):
    """Of two, the second never comes to its fifth iteration; the patience of the first is cut to 5 s."""
    script = tmp_path / "train.py"
    script.write_text(
        f"import os, sys, time\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from datetime import timedelta\n"
        "from src import cluster, train\n"
        "cluster.PATIENCE = timedelta(seconds=5)\n"
        "from src.cli import entry\n"
        "from src.training.callbacks.record import Record\n"
        "def hang(self, trainer, *_):\n"
        "    if trainer.global_step == 5 and trainer.global_rank == 1:\n"
        "        print('process', os.getpid(), flush=True)\n"
        "        time.sleep(1000)\n"
        "Record.on_train_batch_start = hang\n"
        "entry(train.main_or_sweep)\n"
    )
    command = [
        sys.executable,
        script,
        *TINY,
        *SHARED,
        "trainer.devices=2",
        f"output_dir={tmp_path}/runs",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("another process of this run died or hangs") and "imed out" in last
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    assert (folder / "error.txt").read_text() == last
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    assert PATIENCE.total_seconds() < 60
    (process,) = (
        line.split()[1] for line in done.stdout.splitlines() if line.startswith("process")
    )
    status = Path(f"/proc/{process}/status")
    assert not status.exists() or "zombie" in status.read_text()
