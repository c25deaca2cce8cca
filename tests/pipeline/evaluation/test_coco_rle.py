import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from model.ops.masks import paste_full
from model.types import Detections
from pipeline.evaluation.coco_rle import detections_to_results, encode_crop, encode_crops
from pipeline.evaluation.instances import from_results
from pipeline.evaluation.shown_detections import from_detections


def full(crop: np.ndarray[Any, Any], y0: int, x0: int, height: int, width: int) -> np.ndarray[Any, Any]:
    image = np.zeros((height, width), dtype=np.uint8)
    image[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
    return image


def oracle(image: np.ndarray[Any, Any]) -> bytes:
    counts: bytes = coco_mask.encode(np.asfortranarray(image))["counts"]
    return counts


AWKWARD = {
    "full image of ones": (np.ones((7, 9)), 0, 0, 7, 9),
    "full image of zeros": (np.zeros((7, 9)), 0, 0, 7, 9),
    "nothing": (np.zeros((0, 0)), 0, 0, 7, 9),
    "no rows": (np.zeros((0, 4)), 2, 2, 7, 9),
    "zeros inside": (np.zeros((3, 4)), 2, 2, 7, 9),
    "one pixel": (np.ones((1, 1)), 3, 4, 7, 9),
    "first pixel": (np.ones((1, 1)), 0, 0, 7, 9),
    "last pixel": (np.ones((1, 1)), 6, 8, 7, 9),
    "image of one pixel": (np.ones((1, 1)), 0, 0, 1, 1),
    "full height, runs go on": (np.ones((7, 3)), 0, 2, 7, 9),
    "full height to the last column": (np.ones((7, 3)), 0, 6, 7, 9),
    "bottom, then next top": (np.array([[0, 1], [0, 0], [1, 0]]), 0, 3, 3, 9),
    "touches the bottom": (np.ones((3, 3)), 4, 2, 7, 9),
    "touches the top": (np.ones((3, 3)), 0, 2, 7, 9),
    "touches bottom and right": (np.ones((3, 3)), 4, 6, 7, 9),
    "a large image": (np.ones((2, 3)), 2000, 5000, 4000, 6000),
}


@pytest.mark.parametrize("case", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_crops_equal_pycocotools(case: tuple[np.ndarray[Any, Any], int, int, int, int]) -> None:
    crop, y0, x0, height, width = case
    assert encode_crop(crop.astype(np.uint8), y0, x0, height, width) == oracle(full(crop, y0, x0, height, width))


@pytest.mark.parametrize("layout", ["C", "F"])
def test_random_crops_equal_pycocotools(layout: Any) -> None:
    rng = np.random.default_rng(7)
    for _ in range(300):
        height, width = rng.integers(1, 60, 2).tolist()
        crops = []
        for _ in range(5):
            y0, x0 = int(rng.integers(0, height)), int(rng.integers(0, width))
            h, w = int(rng.integers(1, height - y0 + 1)), int(rng.integers(1, width - x0 + 1))
            crop = (rng.random((h, w)) < rng.choice([0.05, 0.5, 0.97])).astype(np.uint8)
            crops.append((y0, x0, np.asarray(crop, order=layout)))
        expected = [oracle(full(crop, y0, x0, height, width)) for y0, x0, crop in crops]
        assert encode_crops(crops, height, width) == expected


def test_a_crop_outside_its_image_is_refused() -> None:
    with pytest.raises(ValueError, match="3 x 3 at row 5, column 0"):
        encode_crop(np.ones((3, 3)), 5, 0, 7, 9)


@pytest.mark.parametrize("rule", ["exact", "integer"])
def test_detections_become_coco_results(rule: Any) -> None:
    g = torch.Generator().manual_seed(3)
    boxes = torch.rand(20, 4, generator=g) * torch.tensor([50.0, 40.0, 60.0, 50.0])
    boxes[:, 2:] += boxes[:, :2]
    masks = torch.rand(20, 28, 28, generator=g)
    classes = torch.randint(1, 4, (20,), generator=g)
    found = Detections(boxes, torch.linspace(0.9, 0.1, 20), classes, masks, size=(80, 90))
    results = json.loads(json.dumps(detections_to_results(found, 42, [7, 11, 90], rule)))
    pasted = paste_full(masks, boxes, (80, 90), rule).numpy().astype(np.uint8)
    assert len(results) == 20
    for result, box, c, image in zip(results, boxes.tolist(), classes.tolist(), pasted, strict=True):
        assert result["image_id"] == 42
        assert result["category_id"] == {1: 7, 2: 11, 3: 90}[c]
        assert result["bbox"] == pytest.approx([box[0], box[1], box[2] - box[0], box[3] - box[1]])
        assert result["segmentation"] == {"size": [80, 90], "counts": oracle(image).decode()}


def whole_images(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], rule: str) -> torch.Tensor:
    """bool [N, H, W] by the public implementations: every mask sampled over the whole image, or torchvision's paste."""
    if rule == "integer":
        return paste_masks_in_image(masks[:, None], boxes, size)[:, 0] > 0.5
    height, width = size
    y = (torch.arange(height) + 0.5 - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) * 2 - 1  # [N, H]
    x = (torch.arange(width) + 0.5 - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1  # [N, W]
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], 3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0] >= 0.5


@pytest.mark.parametrize("side", [14, 28, 56])
@pytest.mark.parametrize("rule", ["exact", "integer"])
def test_paste_and_encode_equal_pycocotools_of_whole_images(rule: Any, side: int) -> None:
    """300 instances in one image, byte for byte: of a pixel to the whole image, on its borders, with soft masks."""
    height, width = 61, 83
    g = torch.Generator().manual_seed(side)
    corner = torch.rand(300, 2, generator=g) * torch.tensor([width - 2.0, height - 2.0])
    extent = (torch.rand(300, 2, generator=g) * 5).exp() - 0.5
    boxes = torch.cat([corner, torch.minimum(corner + extent, torch.tensor([width, height]))], 1)
    boxes[:6] = torch.tensor(
        [
            [0.0, 0.0, width, height],
            [0.0, 0.0, 1.0, 1.0],
            [width - 1, height - 1, width, height],
            [10.0, 10.0, 11.0, 11.0],  # a pixel
            [0.0, 30.0, width, 31.0],  # a row
            [40.0, 0.0, 41.0, height],  # a column
        ]
    )
    coarse = torch.rand(300, 1, 4, 4, generator=g)
    masks = F.interpolate(coarse, (side, side), mode="bicubic")[:, 0].clamp(0, 1)  # blobs; some are full, some empty
    masks[::9], masks[1::9] = 1.0, 0.0
    found = Detections(boxes, torch.rand(300, generator=g), torch.ones(300, dtype=torch.int64), masks, (height, width))
    results = detections_to_results(found, 1, [1], rule)
    pasted = whole_images(masks, boxes, (height, width), rule).numpy().astype(np.uint8)
    assert pasted[0].mean() > 0.98 and not pasted[1].any() and pasted.any((1, 2)).sum() > 150
    assert [r["segmentation"]["counts"] for r in results] == [oracle(image).decode() for image in pasted]


def test_detections_without_masks_and_without_objects() -> None:
    found = Detections(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([0.5]), torch.tensor([1]), None, (10, 10))
    assert detections_to_results(found, 1, [5]) == [
        {"image_id": 1, "category_id": 5, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}
    ]
    nothing = Detections(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 28, 28), (10, 10)
    )
    assert detections_to_results(nothing, 1, [5]) == []


def test_a_class_the_data_does_not_have_is_refused() -> None:
    found = Detections(torch.ones(1, 4), torch.ones(1), torch.tensor([3]), None, (10, 10))
    with pytest.raises(ValueError, match=r"1\.\.2 .* got \[3\]"):
        detections_to_results(found, 1, [5, 6])


def test_keypoints_name_pixels_as_cocos_do() -> None:
    points = torch.tensor([[[3.5, 4.5, -1.0], [10.25, 0.5, 7.0]]])
    found = Detections(torch.ones(1, 4), torch.ones(1), torch.ones(1, dtype=torch.int64), None, (20, 30), points)
    (result,) = detections_to_results(found, 1, [5])
    assert result["keypoints"] == [3.0, 4.0, -1.0, 9.75, 0.0, 7.0]
    shown = from_results([result], [5]).keypoints, from_detections(found).keypoints
    for drawn in shown:
        assert drawn is not None and drawn[0].tolist() == [[3.0, 4.0, 2.0], [9.75, 0.0, 2.0]]
    assert found.keypoints is points and points[0, 0, 0] == 3.5
