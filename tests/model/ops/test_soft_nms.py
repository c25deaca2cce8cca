"""Soft-NMS against the paper's figure 2, written as loops over one class at a time."""

import math

import pytest
import torch
import torchvision
from torch import Tensor

from model.ops.soft_nms import soft_nms


def naive(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, sigma: float | None, lowest: float, most: int
) -> list[tuple[float, int]]:
    found = []
    for group in set(groups.tolist()):
        left = {i: scores[i].item() for i in range(len(boxes)) if groups[i] == group}
        while left:
            best = max(left, key=lambda i: left[i])
            score = left.pop(best)
            if score > lowest:
                found.append((score, best))
            for i in left:
                iou = torchvision.ops.box_iou(boxes[best][None], boxes[i][None]).item()
                if sigma is not None:
                    left[i] *= math.exp(-(iou**2) / sigma)
                elif iou > threshold:
                    left[i] *= 1 - iou
    return sorted(found, reverse=True)[:most]


@pytest.mark.parametrize("sigma", [None, 0.5])
@pytest.mark.parametrize("count", [0, 1, 2, 60])
@pytest.mark.parametrize("most", [10, 1000])
def test_equals_a_naive_loop(sigma: float | None, count: int, most: int) -> None:
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 40 + 1], 1)
        if count > 5:
            boxes[3] = boxes[2]  # IoU 1
        scores, groups = torch.rand(count, generator=generator), torch.randint(0, 3, (count,), generator=generator)
        index, found = soft_nms(boxes, scores, groups, 0.3, sigma, 0.05, most)
        expected = naive(boxes, scores, groups, 0.3, sigma, 0.05, most)
        assert index.tolist() == [i for _, i in expected]
        torch.testing.assert_close(found, torch.tensor([s for s, _ in expected]).reshape(-1), rtol=1e-5, atol=1e-6)


def test_with_a_threshold_of_one_nothing_decays() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9]]).expand(4, 4)
    scores = torch.tensor([0.1, 0.4, 0.3, 0.2])
    index, found = soft_nms(boxes, scores, torch.zeros(4, dtype=torch.int64), 1.0, None, 0.0, 10)
    assert index.tolist() == [1, 2, 3, 0] and torch.equal(found, scores[index])
    index, found = soft_nms(boxes, scores, torch.zeros(4, dtype=torch.int64), 0.5, None, 0.0, 10)
    assert index.tolist() == [1] and found.tolist() == [scores[1].item()]
