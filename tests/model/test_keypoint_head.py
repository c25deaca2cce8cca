"""Keypoints against torchvision's functions, on random and awkward input."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypointrcnn_loss, keypoints_to_heatmap

from model.config import KeypointConfig
from model.heads.keypoint import KeypointHead, cells_of_keypoints, keypoints_of_heatmaps

SIZE = 56


def scene(count: int, joints: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes [R, 4] with keypoints [R, J, 3] in, around and on the edges of them."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 300
    side = torch.rand(count, 2, generator=generator) * 200 + 0.3
    boxes = torch.cat([corner, corner + side], 1)
    place = torch.rand(count, joints, 2, generator=generator) * 1.3 - 0.15
    on_edge = torch.rand(count, joints, 2, generator=generator)
    points = boxes[:, None, :2] + place * (boxes[:, None, 2:] - boxes[:, None, :2])
    points = torch.where(on_edge < 0.15, boxes[:, None, 2:], torch.where(on_edge > 0.85, boxes[:, None, :2], points))
    visibility = torch.randint(0, 3, (count, joints, 1), generator=generator).float()
    return boxes, torch.cat([points, visibility], 2)


@pytest.mark.parametrize(("count", "joints"), [(0, 17), (1, 1), (300, 17)])
def test_cells_equal_torchvision(count: int, joints: int) -> None:
    boxes, points = scene(count, joints, 0)
    cell, inside = cells_of_keypoints(points, boxes, SIZE)
    reference, valid = keypoints_to_heatmap(points, boxes, SIZE)
    assert torch.equal(inside, valid.bool())
    assert torch.equal(cell * inside, reference)
    assert count < 300 or (100 < inside.sum() < inside.numel() - 100)


def test_an_empty_box_holds_nothing() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 9], [0, 0, 0, 0]])
    points = torch.tensor([5.0, 5, 2]).expand(3, 4, 3)
    cell, inside = cells_of_keypoints(points, boxes, SIZE)
    assert not inside.any() and ((cell >= 0) & (cell < SIZE**2)).all()


@pytest.mark.parametrize("positives", [0, 1, 40])
def test_loss_equals_torchvision(positives: int) -> None:
    boxes, points = scene(40, 17, 1)
    boxes[positives:] = 0.0  # slots of no positive RoI may be empty
    logits = torch.randn(40, 17, SIZE, SIZE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    head = KeypointHead(4, 17, KeypointConfig(channels=4, convs=1))
    ours = head.losses(logits, boxes, points, torch.arange(40) < positives)["keypoint/keypoint"]
    (mine,) = torch.autograd.grad(ours, logits)
    theirs = keypointrcnn_loss(logits[:positives], [boxes[:positives]], [points], [torch.arange(positives)])
    (reference,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-9)
    assert (ours > 0) == (positives > 0)


def test_nothing_labelled_is_no_loss() -> None:
    boxes, points = scene(5, 3, 1)
    logits = torch.randn(5, 3, SIZE, SIZE, requires_grad=True)
    head = KeypointHead(4, 3, KeypointConfig(channels=4, convs=1))
    loss = head.losses(logits, boxes, points * 0, torch.ones(5, dtype=torch.bool))["keypoint/keypoint"]
    loss.backward()
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("count", [0, 1, 60])
def test_decoding_equals_torchvision(count: int) -> None:
    boxes, _ = scene(count, 1, 3)
    if count > 5:
        boxes[0, 2:] = boxes[0, :2]  # empty
        boxes[1, 2] = boxes[1, 0] + 0.4  # thin
        boxes[2] = torch.tensor([0.0, 0, 640, 480])  # the whole picture
        boxes[3] = torch.tensor([10.0, 20, 66, 76])  # as large as the heatmap
    maps = torch.randn(count, 5, SIZE, SIZE, generator=torch.Generator().manual_seed(4)) * 3
    found = keypoints_of_heatmaps(maps, boxes)
    points, scores = heatmaps_to_keypoints(maps, boxes)
    assert found.shape == (count, 5, 3)
    torch.testing.assert_close(found[..., :2], points[..., :2], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[..., 2], scores, rtol=0, atol=0)


def test_a_keypoint_comes_back_to_its_cell() -> None:
    """Encoding and decoding are inverse up to a cell; in boxes under m pixels a single cell can fall between two."""
    boxes, points = scene(90, 4, 5)
    large = ((boxes[:, 2:] - boxes[:, :2]) >= SIZE).all(1)
    boxes, points = boxes[large], points[large]
    cell, inside = cells_of_keypoints(points, boxes, SIZE)
    maps = torch.zeros(len(boxes), 4, SIZE**2).scatter_(2, cell[..., None], 10.0).reshape(-1, 4, SIZE, SIZE)
    found = keypoints_of_heatmaps(maps, boxes)[..., :2]
    step = ((boxes[:, 2:] - boxes[:, :2]) / SIZE)[:, None]
    assert ((found - points[..., :2]).abs() <= step * 1.01)[inside].all()
    assert inside.sum() > 40
