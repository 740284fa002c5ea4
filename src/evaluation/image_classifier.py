"""A trained classifier that tells the most probable classes of an image, for localization."""

import torch
from torch import Tensor, nn

from src.data.transforms import CROP_SIZE, center_crop
from src.evaluation.ensemble import NormalizedNet
from src.evaluation.evaluator import load_nets, run_config
from src.runs.run_dir import RunDir

CLASSES = 5  # as in the top-5 error


class ImageClassifier(nn.Module):
    """Tells the most probable classes of an image, by its central crop.

    Args:
        net: The net.
        image_shape: Channels, height and width of the images that it was trained on.
    """

    def __init__(self, net: NormalizedNet, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.net, self.image_shape = net, image_shape

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[int]:
        """Return the classes of an image uint8 [3, H, W], from 1 on, the most probable first.

        Raises:
            ValueError: A net for small images takes images of one size, and this has another.
        """
        if self.image_shape[1:] == (CROP_SIZE, CROP_SIZE):
            image = center_crop(image)
        elif image.shape != self.image_shape:
            raise ValueError(
                f"the classifier takes images of {list(self.image_shape)}, but the localizer's "
                f"are of {list(image.shape)}"
            )
        scores = self.net(image.movedim(0, -1)[None])[0]
        return (scores.topk(min(CLASSES, len(scores))).indices + 1).tolist()


def load_classifier(run_dir: RunDir, num_classes: int) -> ImageClassifier:
    """Return the classifier of a run.

    Raises:
        ValueError: The run is not of a classifier, or has another number of classes.
    """
    (net,), data = load_nets([run_config(run_dir)])
    classes = run_dir.config["model"].get("num_classes", num_classes)
    if classes != num_classes:
        raise ValueError(
            f"{run_dir.path} is of {classes} classes, but the localizer of {num_classes}"
        )
    return ImageClassifier(net.eval(), data.image_shape)
