"""The localization error of ILSVRC: an object is found if a box overlaps it by an IoU of 0.5."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torchvision.ops import box_iou

FOUND_IOU = 0.5


class Located(NamedTuple):
    """What was found in an image.

    Attributes:
        image_id: Its number.
        label: The class that it is of, from 1 on.
        truth: The boxes of all objects of this class, [K, 4].
        classes: The classes that a classifier finds, the most probable first; none without one.
        boxes: One box for the class of the image, and one for each of these classes.
    """

    image_id: int
    label: int
    truth: Tensor
    classes: list[int]
    boxes: Tensor


def is_found(box: Tensor, truth: Tensor) -> bool:
    """Return whether a box [4] overlaps any object [K, 4] enough."""
    return bool((box_iou(box[None], truth) >= FOUND_IOU).any())


def is_error(result: Located, predictions: int) -> bool:
    """Return whether none of the first predictions is both of the right class and the right box."""
    pairs = zip(result.classes[:predictions], result.boxes[1:], strict=False)
    return not any(c == result.label and is_found(box, result.truth) for c, box in pairs)


def localization_errors(results: Sequence[Located]) -> dict[str, float]:
    """Return the errors in percent: with the class given and, with a classifier, without it."""
    if not results:
        return {}
    counts = {"localization_error": sum(not is_found(r.boxes[0], r.truth) for r in results)}
    if results[0].classes:
        counts |= {
            "localization_error_top1": sum(is_error(r, 1) for r in results),
            "localization_error_top5": sum(is_error(r, 5) for r in results),
            "classification_error_top5": sum(r.label not in r.classes[:5] for r in results),
        }
    return {name: 100 * count / len(results) for name, count in counts.items()}


def class_errors(results: Sequence[Located]) -> dict[int, float]:
    """Return the error of each class, given the class, in percent by its label."""
    of_class: dict[int, list[bool]] = {}
    for result in results:
        of_class.setdefault(result.label, []).append(not is_found(result.boxes[0], result.truth))
    return {label: 100 * sum(errors) / len(errors) for label, errors in sorted(of_class.items())}
