from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from model.config import Paste
from model.ops import masks as masks_module
from model.ops.masks import paste_crops, paste_full

SIZE = (61, 83)
AWKWARD = [
    [0.0, 0.0, 83.0, 61.0],  # the whole image
    [-20.3, -10.7, 20.4, 30.1],  # leaves the image at the top left
    [60.2, 40.9, 120.0, 90.0],  # leaves it at the bottom right
    [-50.0, -50.0, 150.0, 150.0],  # around it
    [10.0, 10.0, 11.0, 11.0],  # one pixel
    [10.2, 10.2, 10.7, 10.8],  # inside one pixel, around its centre
    [10.6, 10.6, 10.9, 10.9],  # inside one pixel, beside its centre
    [5.5, 5.5, 6.5, 6.5],  # pixel centres on its corners
    [0.0, 3.0, 83.0, 4.0],  # one row
    [7.0, 0.0, 8.0, 61.0],  # one column
    [82.0, 60.0, 83.0, 61.0],  # the last pixel
    [100.0, 10.0, 120.0, 20.0],  # outside
    [-30.0, -30.0, -5.0, -5.0],  # outside on the other side
]


def full_image_reference(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """detectron2's way: one grid over the whole image for each box."""
    height, width = size
    x0, y0, x1, y1 = boxes.split(1, dim=1)
    ys = (torch.arange(height, dtype=torch.float32) + 0.5 - y0) / (y1 - y0) * 2 - 1  # [N, H]
    xs = (torch.arange(width, dtype=torch.float32) + 0.5 - x0) / (x1 - x0) * 2 - 1  # [N, W]
    shape = (len(boxes), height, width)
    grid = torch.stack([xs[:, None, :].expand(shape), ys[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def random_boxes(n: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 2, generator=g) * torch.tensor([103.0, 81.0]) - 20
    side = torch.rand(n, 2, generator=g) ** 3 * 80 + 0.05
    return torch.cat([low, low + side], dim=1)


def random_masks(n: int, m: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    masks = torch.rand(n, m, m, generator=g)
    masks[::5] = (masks[::5] > 0.5).float()  # hard masks: many samples are exactly one half
    masks[::7] = 1.0
    return masks


@pytest.mark.parametrize("m", [14, 28])
def test_exact_equals_sampling_the_whole_image(m: int) -> None:
    boxes = torch.cat([torch.tensor(AWKWARD), random_boxes(1500, m)])
    masks = random_masks(len(boxes), m, m + 1)
    expected = full_image_reference(masks, boxes, SIZE)
    for threshold in (0.5, 0.2, 0.9):
        assert torch.equal(paste_full(masks, boxes, SIZE, "exact", threshold), expected >= threshold)


@pytest.mark.parametrize("m", [14, 28])
def test_integer_equals_torchvision(m: int) -> None:
    boxes = torch.cat([torch.tensor(AWKWARD), random_boxes(1500, m)])
    inside = (boxes[:, 0] < 80) & (boxes[:, 1] < 58) & (boxes[:, 2] > 2) & (boxes[:, 3] > 2)
    boxes = boxes[inside]  # torchvision raises on a box which lies outside
    masks = random_masks(len(boxes), m, m + 1)
    expected = paste_masks_in_image(masks[:, None], boxes, SIZE)[:, 0]
    for threshold in (0.5, 0.2):
        assert torch.equal(paste_full(masks, boxes, SIZE, "integer", threshold), expected > threshold)


@pytest.mark.parametrize("rule", get_args(Paste))
def test_nothing_to_paste(rule: Paste) -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0], [9.0, 5.0, 4.0, 9.0], [100.0, 10.0, 120.0, 20.0]])
    crops = paste_crops(torch.ones(3, 28, 28), boxes, SIZE, rule)
    assert [crop.numel() for _, _, crop in crops] == [0, 0, 0]
    assert not paste_full(torch.ones(3, 28, 28), boxes, SIZE, rule).any()
    assert paste_crops(torch.ones(0, 28, 28), torch.zeros(0, 4), SIZE, rule) == []
    assert paste_full(torch.ones(0, 28, 28), torch.zeros(0, 4), SIZE, rule).shape == (0, *SIZE)


def test_crops_are_small_and_uint8() -> None:
    ((y0, x0, crop),) = paste_crops(torch.ones(1, 28, 28), torch.tensor([[10.0, 20.0, 30.0, 25.0]]), SIZE)
    assert (y0, x0, crop.shape, crop.dtype) == (20, 10, (5, 20), torch.uint8)
    assert crop.min() == 1


def test_every_rule_of_the_config_is_there() -> None:
    assert set(masks_module._RULES) == set(get_args(Paste))


@pytest.mark.parametrize(
    ("masks", "boxes", "threshold", "words"),
    [
        (torch.ones(2, 80, 28, 28), torch.zeros(2, 4), 0.5, "detected class only"),
        (torch.ones(2, 28, 28), torch.zeros(3, 4), 0.5, r"got \[2, 28, 28\] and \[3, 4\]"),
        (torch.ones(1, 28, 28), torch.tensor([[0.0, 0.0, float("nan"), 4.0]]), 0.5, "finite"),
        (torch.ones(1, 28, 28), torch.ones(1, 4), 0.0, "between 0 and 1"),
    ],
)
def test_bad_input(masks: Tensor, boxes: Tensor, threshold: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paste_crops(masks, boxes, SIZE, "exact", threshold)
