"""A second implementation of the evaluation protocols: in numpy, one image at a time."""

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from src.config import CONF
from src.data.image_reader import decode_image
from src.data.imagenet import MEAN, STD
from src.data.transforms import resize


class Reader(nn.Module):
    """Twelve scores from an image's first pixel and mean color, so that views score differently."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x):
        return (x[:, :, 0, 0] + 3 * x.mean((2, 3))) @ self.weights


def reader(seed):
    return Reader(torch.randn((3, 12), generator=torch.Generator().manual_seed(seed)) / 30)


def reference(protocol, path, normalization, seed, mean_image=None):
    """Return the softmax scores of one image by `reader(seed)`, float64 [12].

    Only decoding and resizing are those of src.
    """
    image = decode_image(np.fromfile(path, np.uint8))
    height, width = image.shape[1:]
    mean = 255 * np.array(MEAN)
    std = 255 * np.array(STD) if normalization == "channel" else np.ones(3)
    weights = reader(seed).weights.detach().double().numpy()
    scores = []
    for shorter in (224, 256, 384, 480, 640) if protocol == "multiscale" else (256,):
        size = [int(side * shorter / min(height, width) + 1e-9) for side in (height, width)]
        complete = resize(image, *size).permute(1, 2, 0).double().numpy()
        bottom, right = size[0] - 224, size[1] - 224
        middle = (round(bottom / 2), round(right / 2))
        corners = {
            "center": [middle],
            "10crop": [(0, 0), (0, right), (bottom, 0), (bottom, right), middle],
            "multiscale": [None],
        }
        for corner in corners[protocol]:
            view = complete if corner is None else complete[corner[0] :, corner[1] :][:224, :224]
            for pixels in (view,) if protocol == "center" else (view, np.fliplr(view)):
                if mean_image is not None:
                    same_size = pixels.shape[:2] == (224, 224)
                    mean = mean_image if same_size else mean_image.mean((0, 1))
                normalized = (pixels - mean) / std
                powers = np.exp((normalized[0, 0] + 3 * normalized.mean((0, 1))) @ weights)
                scores.append(powers / powers.sum())
    return np.mean(scores, 0)


def imagenet_config(root, **overrides):
    """The config of conf/data/imagenet.yaml, without mean image and worker processes."""
    config = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "imagenet.yaml"))
    return config | {"root": str(root), "normalization": "channel", "num_workers": 0} | overrides


def counts(result):
    """The top-1 errors, top-5 errors and images of what `evaluate` returns."""
    return result["errors"], result["errors_top5"], result["images"]


def expected_counts(scores, labels):
    """The same from scores, image by image."""
    ranks = [int((one > one[label]).sum()) for one, label in zip(scores, labels, strict=True)]
    return sum(rank >= 1 for rank in ranks), sum(rank >= 5 for rank in ranks), len(ranks)
