"""Images that tests make on the fly, in folders as ImageNet's."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from omegaconf import OmegaConf
from PIL import Image

from src.config import CONF
from src.data.imagenet import ImageNet

SAMPLE = ROOT.parent / "shared" / "imagenet-sample"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no sample images in {SAMPLE}")
WNIDS = ("n01440764", "n01518878", "n03417042")
# Principal components of RGB as fb.resnet.torch prints them, the vectors in columns.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
SIZES = ((500, 375), (90, 70), (300, 480), (650, 520), (225, 224))


def random_image(seed: int, width: int, height: int) -> Image.Image:
    """Return an image of smooth colors, which survive JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.BICUBIC)


def encode(image: Image.Image, file_format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def make_folders(root: Path, train: int = 4, val: int = 2) -> Path:
    """Write `train` and `val` images of each of three classes."""
    for split, count in (("train", train), ("val", val)):
        for label, wnid in enumerate(WNIDS):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                number = 10 * label + i + (100 if split == "val" else 0)
                image = random_image(number, *SIZES[number % len(SIZES)])
                (folder / f"{wnid}_{number}.JPEG").write_bytes(encode(image, quality=90))
    return root


def imagenet(root: Path, **changes: object) -> ImageNet:
    """Set up data=imagenet, but with channel means and without worker processes.

    Three batches of 8 of 12 training images: the second straddles two epochs.
    """
    options = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "imagenet.yaml"))
    del options["_target_"]
    options |= {"root": str(root), "normalization": "channel_mean", "num_workers": 0}
    data = ImageNet(**options | {"seed": 0, "batch_size": 8, "iterations": 3} | changes)
    data.prepare_data()
    data.setup()
    return data
