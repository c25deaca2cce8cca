"""Test-time augmentation: one view is plain prediction, a mirror is a mirror, and merging equals loops."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_mask_rcnn import spread
from test_variants import CASCADE, KEYPOINT, build, variant
from tiny_model import TINY, scene
from torch import Tensor

from model.config import ModelConfig
from model.heads.box import Found
from model.types import Batch, Detections
from model.views import View, predict_views

SWAP = [1, 0, 2, 3]  # keypoints 0 and 1 are left and right
BOTH = variant(keypoint=KEYPOINT)
CONFIGS: dict[str, ModelConfig] = {
    "masks": TINY,
    "masks and keypoints": BOTH,
    "masks of pixels": variant(mask={"pixel_channels": 4}),
    "boxes": variant(mask=None),
    "cascade": variant(box=CASCADE),
    "soft nms": variant(box={"nms": "soft_gaussian"}),
}


def batch_of(height: int = 96, width: int = 128) -> Batch:
    """Three images of different sizes in one padded batch, from originals of other sizes; the second one is empty."""
    batch = scene([3, 0, 2], height=height, width=width)
    sizes = torch.tensor([[height, width], [height - 17, width], [height, width - 30]])
    images = batch.images.clone()
    for image, (rows, columns) in zip(images, sizes.tolist(), strict=True):
        image[rows:], image[:, columns:] = 0, 0
    original = torch.tensor([[200, 260], [150, 300], [96, 98]])
    return Batch(images, sizes, original, batch.sample_ids, None)


def mirror(batch: Batch) -> Batch:
    images = batch.images.clone()
    for image, width in zip(images, batch.sizes[:, 1].tolist(), strict=True):
        image[:, :width] = image[:, :width].flip(1)
    return dataclasses.replace(batch, images=images)


def resize(batch: Batch, height: int, width: int) -> Batch:
    """The same images at about height / H of their size."""
    old = batch.images.shape[1:3]
    sizes = (batch.sizes * torch.tensor([height / old[0], width / old[1]])).round().long()
    images = torch.zeros(len(sizes), height, width, 3, dtype=torch.uint8)
    for image, source, (rows, columns), (r, c) in zip(
        images, batch.images, batch.sizes.tolist(), sizes.tolist(), strict=True
    ):
        pixels = source[:rows, :columns].permute(2, 0, 1)[None].float()
        resized = F.interpolate(pixels, (r, c), mode="bilinear")[0].permute(1, 2, 0)
        image[:r, :c] = resized.round().to(torch.uint8)
    return dataclasses.replace(batch, images=images, sizes=sizes)


def fields(found: Detections) -> list[Tensor]:
    values = (found.boxes, found.scores, found.classes, found.masks, found.keypoints)
    return [value for value in values if value is not None]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: spread(build(config)).eval() for name, config in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_one_plain_view_is_plain_prediction(models: dict[str, Any], name: str) -> None:
    batch = batch_of()
    plain, viewed = models[name].predict(batch), predict_views(models[name], [View(batch)])
    assert sum(len(one.boxes) for one in plain) > 30
    for one, other in zip(plain, viewed, strict=True):
        assert one.size == other.size
        assert all(torch.equal(a, b) for a, b in zip(fields(one), fields(other), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mirrored_view_gives_mirrored_detections(models: dict[str, Any], name: str) -> None:
    """The network sees the same pixels twice, and once is told that they are a mirror image."""
    batch = batch_of()
    plain, mirrored = models[name].predict(batch), predict_views(models[name], [View(batch, True)], SWAP)
    for one, other in zip(plain, mirrored, strict=True):
        width, (x0, y0, x1, y1) = one.size[1], one.boxes.unbind(-1)
        assert torch.equal(one.classes, other.classes)
        torch.testing.assert_close(other.scores, one.scores)  # soft-NMS: IoUs of mirrored boxes are rounded anew
        torch.testing.assert_close(other.boxes, torch.stack([width - x1, y0, width - x0, y1], -1), rtol=0, atol=1e-3)
        if one.masks is not None and other.masks is not None:
            torch.testing.assert_close(other.masks, one.masks.flip(-1), rtol=1e-3, atol=1e-4)
        if one.keypoints is not None and other.keypoints is not None:
            swapped = one.keypoints[:, SWAP]
            torch.testing.assert_close(other.keypoints[..., 2], swapped[..., 2], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(other.keypoints[..., 0], width - swapped[..., 0], rtol=0, atol=1e-2)
            torch.testing.assert_close(other.keypoints[..., 1], swapped[..., 1], rtol=0, atol=1e-2)


def naive_merge(model: Any, views: list[View], image: int) -> tuple[list[list[float]], list[float], list[int]]:
    """All candidates in pixels of the first view, then greedy NMS of one class at a time, in loops."""
    height, width = views[0].batch.sizes[image].tolist()
    found: list[tuple[float, int, list[float]]] = []
    for view in views:
        rows, columns = view.batch.sizes[image].tolist()
        own = model.candidates(model.look(view.batch), view.batch.sizes)[image]
        for box, score, kind in zip(own.boxes.tolist(), own.scores.tolist(), own.classes.tolist(), strict=True):
            x0, y0, x1, y1 = box
            if view.mirrored:
                x0, x1 = columns - x1, columns - x0
            found.append(
                (score, kind, [x0 * width / columns, y0 * height / rows, x1 * width / columns, y1 * height / rows])
            )

    def iou(a: list[float], b: list[float]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        both = max(w, 0) * max(h, 0)
        return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

    kept: list[tuple[float, int, list[float]]] = []
    for score, kind, box in sorted(found, key=lambda one: -one[0]):
        if all(kind != other or iou(box, there) <= model.box.config.nms_iou for _, other, there in kept):
            kept.append((score, kind, box))
    kept = kept[: model.box.config.detections_per_image]
    return [box for _, _, box in kept], [score for score, _, _ in kept], [kind for _, kind, _ in kept]


@torch.no_grad()
def test_merging_equals_loops(models: dict[str, Any]) -> None:
    model, batch = models["masks and keypoints"], batch_of()
    larger = resize(batch, 128, 192)
    views = [View(batch), View(mirror(batch), True), View(larger), View(mirror(larger), True)]
    merged, alone = predict_views(model, views, SWAP), model.predict(batch)
    for image, found in enumerate(merged):
        boxes, scores, classes = naive_merge(model, views, image)
        assert found.classes.tolist() == classes
        torch.testing.assert_close(found.scores, torch.tensor(scores))
        height, width = batch.sizes[image].tolist()
        original = torch.tensor([found.size[1] / width, found.size[0] / height] * 2)
        torch.testing.assert_close(found.boxes, torch.tensor(boxes) * original, rtol=1e-4, atol=1e-2)
        assert found.scores.tolist() != alone[image].scores.tolist()  # the other views did count
        masks = torch.zeros(len(boxes), model.mask.size, model.mask.size)
        for view in views:
            rows, columns = view.batch.sizes[image].tolist()
            own = torch.tensor(boxes) * torch.tensor([columns / width, rows / height] * 2)
            if view.mirrored:
                own = torch.stack([columns - own[:, 2], own[:, 1], columns - own[:, 0], own[:, 3]], 1)
            nothing = Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
            of_images = [nothing] * 3
            of_images[image] = Found(own, torch.tensor(scores), torch.tensor(classes))
            probabilities, _ = model.describe(model.look(view.batch), of_images)
            masks += (probabilities.flip(-1) if view.mirrored else probabilities) / len(views)
        assert found.masks is not None
        torch.testing.assert_close(found.masks, masks, rtol=1e-3, atol=1e-3)


def test_keypoints_of_two_views_are_the_best_of_the_mean(models: dict[str, Any]) -> None:
    """A view twice, and its mirror image: heatmaps add up with left and right swapped back."""
    model, batch = models["masks and keypoints"], batch_of()
    twice = predict_views(model, [View(batch), View(batch)])
    for one, other in zip(model.predict(batch), twice, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(fields(one), fields(other), strict=True))  # NMS drops the doubles
    plain = predict_views(model, [View(batch), View(mirror(batch), True)], SWAP)
    wrong = predict_views(model, [View(batch), View(mirror(batch), True)], [0, 1, 2, 3])
    for one, other in zip(plain, wrong, strict=True):
        assert one.keypoints is not None and other.keypoints is not None
        assert torch.equal(one.keypoints[:, 2:], other.keypoints[:, 2:])
        assert not torch.equal(one.keypoints[:, :2], other.keypoints[:, :2])


def test_nothing_found_in_any_view() -> None:
    model = build(variant(keypoint=KEYPOINT, box={"score_threshold": 0.999})).eval()
    batch = batch_of()
    for found in predict_views(model, [View(batch), View(mirror(batch), True)], SWAP):
        assert found.boxes.shape == (0, 4) and found.scores.shape == (0,)
        assert found.masks is not None and found.masks.shape == (0, 14, 14)
        assert found.keypoints is not None and found.keypoints.shape == (0, 4, 3)


def test_what_cannot_be_merged_is_refused(models: dict[str, Any]) -> None:
    views = [View(batch_of()), View(mirror(batch_of()), True)]
    with pytest.raises(ValueError, match="keypoint_flip"):
        predict_views(models["masks and keypoints"], views)
    with pytest.raises(ValueError, match="box head's NMS"):
        predict_views(build(variant(box=None, mask=None)).eval(), views)
    with pytest.raises(RuntimeError, match="eval"):
        predict_views(build(TINY).train(), views)
