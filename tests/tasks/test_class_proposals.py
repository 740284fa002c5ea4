"""The per-class proposal net: its anchors, its order, and what its losses learn from."""

import pytest
import torch
from torch import nn

from src.tasks.class_proposals import ClassProposals

OPTIONS = {
    "anchor_sizes": [8, 16],
    "anchor_ratios": [1.0, 4.0],
    "anchors_per_image": 8,
    "positive_iou": 0.7,
    "negative_iou": 0.3,
}


@pytest.fixture
def proposals():
    torch.manual_seed(0)
    return ClassProposals(6, 4, 3, OPTIONS)


def test_anchors_are_at_every_step_of_the_map_with_all_sizes_and_ratios(proposals):
    anchors = proposals.anchors(3, 5, torch.device("cpu"))
    assert len(anchors) == 3 * 5 * 4
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    # By row and by column, the stride apart.
    expected = [[4.0 * x, 4.0 * y] for y in range(3) for x in range(5) for _ in range(4)]
    assert centers.tolist() == expected
    width, height = (anchors[:4, 2:] - anchors[:4, :2]).unbind(1)
    assert (height / width).tolist() == [1, 1, 4, 4]  # by ratio, then by size
    assert (width * height).sqrt().tolist() == [8, 16, 8, 16]


def test_each_channel_belongs_to_the_anchor_and_the_class_that_it_says(proposals):
    """A channel with a bias of its own gives its score at its anchor and its class, everywhere."""
    for layer, width in ((proposals.scores, 1), (proposals.deltas, 4)):
        nn.init.zeros_(layer.weight)
        layer.bias.data = torch.arange(4 * 3 * width, dtype=torch.float32)
    scores, deltas, anchors = proposals(torch.randn(2, 6, 3, 5))
    assert scores.shape == (2, 60, 3)
    assert deltas.shape == (2, 60, 3, 4)
    assert len(anchors) == 60
    for place in range(15):
        for anchor in range(4):
            for label in range(3):
                at = 1, 4 * place + anchor, label
                assert scores[at] == 3 * anchor + label
                assert deltas[at].tolist() == [4 * (3 * anchor + label) + i for i in range(4)]


def test_a_score_belongs_to_the_place_of_its_anchor(proposals):
    nn.init.zeros_(proposals.scores.weight)
    proposals.scores.weight.data[2, 0] = 1.0  # the first anchor, the third class
    last_map = torch.zeros(1, 6, 3, 5)
    last_map[0, 0, 2, 1] = 7.0
    scores, _, anchors = proposals(last_map)
    ((best,),), _ = proposals.top(last_map, [3], 1)
    place = scores[0, :, 2].argmax()
    assert best == scores[0, place, 2] == 7 + proposals.scores.bias[2]
    center = (anchors[place, :2] + anchors[place, 2:]) / 2
    assert center.tolist() == [4.0, 8.0]  # x and y of row 2 and column 1


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_the_boxes_of_the_highest_scores_are_regressed_from_their_anchors(proposals, count):
    nn.init.zeros_(proposals.deltas.weight)
    proposals.deltas.bias.data = torch.tensor([0.5, -0.25, 0.0, 0.0]).repeat(12)
    last_map = torch.randn(1, 6, 3, 5)
    scores, _, anchors = proposals(last_map)
    best, boxes = proposals.top(last_map, [2, 1], count)
    assert boxes.shape == (2, min(count, 60), 4)
    for row, label in enumerate((2, 1)):
        places = scores[0, :, label - 1].argsort(descending=True)[:count]
        assert torch.equal(best[row], scores[0, places, label - 1])
        width, height = (anchors[places, 2:] - anchors[places, :2]).unbind(1)
        shift = torch.stack([width / 2, -height / 4] * 2, 1)
        torch.testing.assert_close(boxes[row], anchors[places] + shift)


def test_the_losses_depend_on_the_class_of_each_image_alone(proposals):
    boxes = [torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[4.0, 4, 12, 12]])]
    losses = proposals.losses(torch.randn(2, 6, 3, 5), [1, 3], boxes)
    sum(losses).backward()
    by_class = proposals.scores.weight.grad.view(4, 3, 6).abs().sum((0, 2))
    assert by_class[0] > 0 < by_class[2]
    assert by_class[1] == 0
    of_boxes = proposals.deltas.weight.grad.view(4, 3, 4, 6).abs().sum((0, 2, 3))
    assert of_boxes[0] > 0 < of_boxes[2]
    assert of_boxes[1] == 0


def test_an_image_samples_eight_anchors_half_of_them_positive_if_there_are_so_many(proposals):
    # All boxes at once match many anchors; a single small one matches one.
    anchors = proposals.anchors(6, 6, torch.device("cpu"))
    last_map = torch.randn(1, 6, 6, 6)
    sampler = proposals.matching.fg_bg_sampler
    counts = []

    def count(labels):
        positive, negative = sampler(labels)
        counts.append((int(positive[0].sum()), int(negative[0].sum())))
        return positive, negative

    proposals.matching.fg_bg_sampler = count
    for boxes in (anchors[::9], anchors[:1], anchors[:0]):
        proposals.losses(last_map, [1], [boxes])
    assert counts[0] == (4, 4)
    assert sum(counts[1]) == 8
    assert 1 <= counts[1][0] < 4
    assert counts[2] == (0, 8)
