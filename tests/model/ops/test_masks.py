import math
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


def naive_exact(mask: list[list[float]], box: list[float], y: float, x: float) -> float:
    """Bilinear value of the mask in its box at a point of the image; zeros around it."""
    m = len(mask)
    v, u = (y - box[1]) / (box[3] - box[1]) * m - 0.5, (x - box[0]) / (box[2] - box[0]) * m - 0.5
    total = 0.0
    for i in (math.floor(v), math.floor(v) + 1):
        for j in (math.floor(u), math.floor(u) + 1):
            if 0 <= i < m and 0 <= j < m:
                total += mask[i][j] * (1 - abs(v - i)) * (1 - abs(u - j))
    return total


def naive_integer(mask: list[list[float]], box: list[float], y: int, x: int) -> float:
    """torchvision's rule at a pixel: a frame of zeros, a grown box of whole pixels, a resize that repeats its edge."""
    m = len(mask)
    low, extent = [], []
    for axis in (0, 1):
        centre, half = (box[axis] + box[axis + 2]) / 2, (box[axis + 2] - box[axis]) / 2 * (m + 2) / m
        low.append(int(centre - half))
        extent.append(int(centre + half) - low[axis] + 1)
    if not (low[0] <= x < low[0] + extent[0] and low[1] <= y < low[1] + extent[1]):
        return 0.0
    taps = []
    for position, start, length in ((y, low[1], extent[1]), (x, low[0], extent[0])):
        place = max((position - start + 0.5) * (m + 2) / length - 0.5, 0.0)
        first = min(math.floor(place), m + 1)
        taps.append([(first, 1 - (place - first)), (min(first + 1, m + 1), place - first)])
    value = 0.0
    for i, a in taps[0]:
        for j, b in taps[1]:
            if 1 <= i <= m and 1 <= j <= m:
                value += mask[i - 1][j - 1] * a * b
    return value


@pytest.mark.parametrize("rule", get_args(Paste))
def test_equals_a_loop_over_pixels_on_a_thousand_masks(rule: Paste) -> None:
    height, width, m = 11, 14, 5
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(1000, 2, generator=generator) * torch.tensor([20.0, 16.0]) - 4
    boxes = torch.cat([corner, corner + torch.rand(1000, 2, generator=generator) ** 2 * 18 + 0.05], 1)
    boxes[::3] = (boxes[::3] * 2).round() / 2 + torch.tensor([0.0, 0.0, 0.5, 0.5])  # on pixels and between them
    masks = random_masks(1000, m, 3)
    pasted = paste_full(masks, boxes, (height, width), rule)
    ties = 0
    for mask, box, image in zip(masks.double().tolist(), boxes.double().tolist(), pasted.tolist(), strict=True):
        for y in range(height):
            for x in range(width):
                if rule == "exact":
                    value = naive_exact(mask, box, y + 0.5, x + 0.5)
                    inside = box[0] <= x + 0.5 <= box[2] and box[1] <= y + 0.5 <= box[3]
                    value = value if inside else 0.0  # a threshold of one half is not passed outside the box
                else:
                    value = naive_integer(mask, box, y, x)
                if abs(value - 0.5) < 1e-5:
                    ties += 1  # float32 may decide either way
                else:
                    assert image[y][x] == (value > 0.5), (mask, box, y, x, value)
    assert ties < 0.01 * 1000 * height * width


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
