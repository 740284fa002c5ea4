"""Photos that tests make on the fly, in folders as ImageNet's."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

SAMPLE = ROOT.parent / "shared" / "imagenet-sample"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"the sample photos are not in {SAMPLE}")
WNIDS = ("n01440764", "n01518878", "n03417042")
SIZES = ((500, 375), (90, 70), (300, 480), (640, 512), (225, 224))


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Smooth colors, as JPEG keeps them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def make_folders(root: Path, train: int = 4, val: int = 2) -> Path:
    """`train` and `val` photos of each of three classes."""
    for split, count in (("train", train), ("val", val)):
        for label, wnid in enumerate(WNIDS):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                number = 10 * label + i + (100 if split == "val" else 0)
                photo = picture(number, *SIZES[number % len(SIZES)])
                (folder / f"{wnid}_{number}.JPEG").write_bytes(encoded(photo, quality=90))
    return root
