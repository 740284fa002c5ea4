"""Images with objects: the training stream, its flips, and the shares of several processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.data.examples import Example, make_target
from src.data.object_data import EVAL_BATCH, ObjectData


class Dots(ObjectData):
    """Images of one pixel wide objects: image i has i % 3 of them, and is i everywhere else."""

    image_shape = (3, 6, 8)

    def __init__(self, images=10, test_images=5, **common):
        defaults = {"min_size": 6, "max_size": 8, "flip": True, "val_images": 0, "seed": 0}
        super().__init__(["dot"], ["detection"], **defaults | common)
        self.counts = images, test_images

    @property
    def sizes(self):
        return self.counts

    def content(self):
        yield b"dots"

    def read(self, split, index):
        image = torch.full((3, 6, 8), index, dtype=torch.uint8)
        boxes = [[x, 2, x + 1, 3] for x in range(index % 3)]
        for x1, *_ in boxes:
            image[:, 2, x1] = 255
        return Example(image, make_target(index, boxes, [1] * len(boxes)))


def on_rank(data, rank, world_size):
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    data.setup()
    return data


def test_every_place_of_a_crop_is_drawn():
    class Numbered(Dots):
        def read(self, split, index):
            mask = torch.arange(48, dtype=torch.uint8).reshape(6, 8)
            return Example(mask.expand(3, 6, 8), make_target(index, [], [], mask=mask))

    data = on_rank(Numbered(batch_size=10, iterations=30, crop=4, flip=False), 0, 1)
    batches = [*data.train_dataloader()]
    corners = {int(target["mask"][0, 0]) for _, targets in batches for target in targets}
    assert corners == {8 * row + column for row in range(3) for column in range(5)}


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("crop", [0, 4])
def test_the_training_batches_do_not_depend_on_the_number_of_processes(world_size, crop):
    class Masked(Dots):
        def read(self, split, index):
            image, target = super().read(split, index)
            return Example(image, target | {"mask": image[0]})

    def first_batches(rank, world_size):
        data = on_rank(Masked(batch_size=4, iterations=3, crop=crop), rank, world_size)
        return [*data.train_dataloader()]

    expected = first_batches(0, 1)
    shares = [first_batches(rank, world_size) for rank in range(world_size)]
    for batch, *parts in zip(expected, *shares, strict=True):
        images = [image for part, _ in parts for image in part]
        assert len(images) == 4
        assert all(torch.equal(a, b) for a, b in zip(images, batch[0], strict=True))


def test_about_half_the_training_images_are_flipped_and_none_where_flips_are_off():
    def flipped(**options):
        data = on_rank(Dots(batch_size=10, iterations=20, **options), 0, 1)
        batches = [*data.train_dataloader()]
        # The objects of image 1 and 2 are at the left, unless it is flipped.
        return np.mean(
            [
                target["boxes"][:, 0].max().item() > 4
                for _, targets in batches
                for target in targets
                if len(target["boxes"])
            ]
        )

    assert 0.3 < flipped() < 0.7
    assert flipped(flip=False) == 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_test_image_is_evaluated_by_one_process(world_size):
    ids = []
    for rank in range(world_size):
        loader = on_rank(Dots(test_images=EVAL_BATCH + 3), rank, world_size).test_dataloader()
        batches = [*loader]
        assert len(batches) == len(loader)
        ids += [int(target["image_id"]) for _, targets in batches for target in targets]
    assert sorted(ids) == [*range(EVAL_BATCH + 3)]


def test_held_out_images_are_not_trained_on():
    data = on_rank(Dots(val_images=4, batch_size=6, iterations=3), 0, 1)
    trained = {int(t["image_id"]) for _, targets in data.train_dataloader() for t in targets}
    held_out = {int(t["image_id"]) for _, targets in data.val_dataloader() for t in targets}
    assert (len(trained), len(held_out)) == (6, 4)
    assert not trained & held_out


def test_images_are_resized_to_every_shorter_side_before_they_are_cropped():
    data = on_rank(Dots(batch_size=10, iterations=30, scales=[6, 9], crop=0), 0, 1)
    sizes = {image.shape[1:] for images, _ in data.train_dataloader() for image in images}
    assert {height for height, _ in sizes} == {6, 7, 8, 9}
    cut = on_rank(Dots(batch_size=10, iterations=2, scales=[6, 9], crop=5), 0, 1)
    sizes = {image.shape for images, _ in cut.train_dataloader() for image in images}
    assert sizes == {(3, 5, 5)}


@pytest.mark.parametrize(
    "options", [{"scales": [480, 256]}, {"scales": [256]}, {"scales": [0, 9]}, {"crop": -1}]
)
def test_impossible_crops_and_scales_are_refused(options):
    (key,) = options
    with pytest.raises(ValueError, match=f"data.{key}="):
        Dots(**options)
