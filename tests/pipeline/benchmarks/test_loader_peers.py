"""The peers' loaders make of a sample what ours makes of it, so that their costs compare."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from pipeline.benchmarks.loader_peers import Input, _read, compare_loaders, load_ours, load_torchvision, map_detectron2
from pipeline.data import rle


@pytest.fixture(scope="module")
def coco() -> tuple[Path, Path]:
    root = Path(__file__).parents[3].parent / "shared/data/coco-small"
    if not root.is_dir():
        pytest.skip("needs real COCO pictures")
    return root / "annotations/instances_val2017.json", root / "val2017"


@pytest.fixture(scope="module")
def inputs(coco: tuple[Path, Path]) -> list[Input]:
    inputs = _read(*coco, 8, 320, 533)
    assert {one.recipe.geometry.flip for one in inputs} == {False, True}
    return inputs


def test_torchvisions_masks_and_boxes_are_ours(inputs: list[Input]) -> None:
    for one in inputs:
        _, (target,) = load_torchvision([one], None)
        kept = [i for i, crowd in enumerate(one.record["crowd"]) if not crowd]
        height, width = one.record["height"], one.record["width"]
        masks = np.stack([rle.to_mask(one.record["rles"][i], height, width) for i in kept])
        if one.recipe.geometry.flip:
            masks = masks[:, :, ::-1]
        assert np.array_equal(target["masks"].numpy(), masks)


def test_all_make_the_same_boxes_and_nearly_the_same_pixels(inputs: list[Input]) -> None:
    transform = GeneralizedRCNNTransform(320, 533, [0.0] * 3, [1.0] * 3)
    for one in inputs:
        ours, mapped = load_ours([one]), map_detectron2(one)
        (peer,), (target,) = load_torchvision([one], transform)
        assert ours.targets is not None
        boxes = ours.targets.boxes[0, ours.targets.valid[0]]
        height, width = ours.sizes[0].tolist()
        assert torch.allclose(mapped["gt_boxes"], boxes, atol=0.01)
        assert torch.allclose(target["boxes"], boxes, atol=1.5)  # torchvision rounds the size down
        pixels = ours.images[0, :height, :width].permute(2, 0, 1).int()
        assert (mapped["image"].flip(0).int() - pixels).abs().max() <= 1
        assert (255 * peer[:, : height - 1, : width - 1] - pixels[:, :-1, :-1]).abs().mean() < 12  # no antialias
        assert len(mapped["gt_masks"]) == len(mapped["gt_classes"]) == len(boxes) == len(target["masks"])


def test_detectron2s_polygons_lie_in_their_boxes(inputs: list[Input]) -> None:
    for one in inputs:
        mapped = map_detectron2(one)
        for box, polygons in zip(mapped["gt_boxes"].numpy(), mapped["gt_masks"], strict=True):
            if isinstance(polygons, list):
                points = np.concatenate([p.reshape(-1, 2) for p in polygons])
                assert np.abs([*points.min(0), *points.max(0)] - box).max() < 2


def test_the_comparison_says_what_it_measured(coco: tuple[Path, Path]) -> None:
    rounds: list[int] = []
    got = compare_loaders(*coco, count=3, rounds=2, shorter_px=200, longest_px=333, on_round=rounds.append)
    assert rounds == [1, 2] and got.images == 3 and got.rounds == 2 and got.instances > 3
    assert got.decoder_equal and got.resize_levels <= 1
    names = ["ours", "torchvision", "torchvision, resize left to the device", "detectron2-style"]
    assert [f.loader for f in got.figures] == names
    assert all(f.cpu_ms > 0 and f.wall_ms > 0 for f in got.figures)
