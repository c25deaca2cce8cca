"""Run lengths straight from masks against those of the pasted pixels, byte for byte."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.ops.masks import paste_crops
from pipeline.data import rle
from pipeline.evaluation import mask_runs
from pipeline.evaluation.coco_rle import encode_crops
from pipeline.evaluation.mask_runs import exact_runs


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> list[bytes]:
    crops = paste_crops(masks, boxes, size, "exact", threshold)
    return encode_crops([(y0, x0, crop.numpy()) for y0, x0, crop in crops], *size)


def straight(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> list[bytes]:
    lengths, counts = exact_runs(masks, boxes, size, threshold)
    assert len(counts) == len(masks) and counts.sum() == len(lengths)
    assert (lengths >= 0).all()
    return rle.compress_many(lengths, counts)


def some_boxes(count: int, size: tuple[int, int], largest: float, generator: torch.Generator) -> Tensor:
    """Also beyond the image, of less than a pixel, and on whole and half pixels."""
    limit = torch.tensor([size[1], size[0]], dtype=torch.float32)
    side = largest ** torch.rand(count, 2, generator=generator) * 0.5
    corner = torch.rand(count, 2, generator=generator) * (limit + side) - side
    corner[::3] = (corner[::3] * 2).round() / 2
    side[::3] = (side[::3] * 2).round() / 2
    return torch.cat([corner, corner + side], 1)


def some_masks(kind: str, count: int, side: int, generator: torch.Generator) -> Tensor:
    noise = torch.rand(count, side, side, generator=generator)
    match kind:
        case "noise":
            return noise
        case "smooth":
            coarse = torch.randn(count, 1, 4, 4, generator=generator) * 4
            return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")[:, 0].sigmoid()
        case "binary":
            return (noise > 0.5).float()
        case "at the threshold":  # halves, and what is a rounding away from them
            return 0.5 + (torch.randint(-2, 3, noise.shape, generator=generator)) * 6e-8
        case "flat":
            return torch.tensor([0.0, 0.5, 1.0, 0.25])[torch.arange(count) % 4][:, None, None].expand_as(noise)
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["noise", "smooth", "binary", "at the threshold", "flat"])
@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.7])
@pytest.mark.parametrize(("side", "largest"), [(28, 900.0), (14, 60.0), (1, 100.0), (112, 300.0)])
def test_equals_the_runs_of_pasted_pixels(kind: str, threshold: float, side: int, largest: float) -> None:
    generator = torch.Generator().manual_seed(side)
    for size in ((97, 131), (480, 640), (1, 50), (50, 1)):
        masks = some_masks(kind, 60, side, generator)
        boxes = some_boxes(60, size, largest, generator)
        boxes[0] = torch.tensor([0.0, 0.0, size[1], size[0]])  # all of the image: runs go on from column to column
        boxes[1, 2:] = boxes[1, :2]  # nothing
        assert straight(masks, boxes, size, threshold) == pasted(masks, boxes, size, threshold)


def test_few_columns_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way is the one that is taken."""
    counts: list[int] = []
    sample = mask_runs.exact_columns

    def counted(mask: Tensor, box: Tensor, columns: Tensor, *others: object) -> Tensor:
        counts.append(len(columns))
        return sample(mask, box, columns, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(mask_runs, "exact_columns", counted)
    generator = torch.Generator().manual_seed(0)
    masks = some_masks("smooth", 50, 28, generator)
    boxes = torch.tensor([100.3, 80.7, 420.2, 390.9]) + torch.rand(50, 1, generator=generator) * 50
    assert straight(masks, boxes, (800, 1333), 0.5) == pasted(masks, boxes, (800, 1333), 0.5)
    assert sum(counts) < 0.1 * 50 * 320


def test_no_mask_and_no_pixel() -> None:
    lengths, counts = exact_runs(torch.zeros(0, 28, 28), torch.zeros(0, 4), (20, 30))
    assert len(lengths) == len(counts) == 0
    lengths, counts = exact_runs(torch.ones(2, 28, 28), torch.tensor([[-9.0, 0, -1, 5], [3, 3, 3, 9]]), (20, 30))
    assert lengths.tolist() == [600, 600] and counts.tolist() == [1, 1]


def test_bad_input_is_refused_as_by_pasting() -> None:
    with pytest.raises(ValueError, match="finite"):
        exact_runs(torch.zeros(1, 28, 28), torch.tensor([[0.0, 0.0, np.inf, 5.0]]), (20, 30))
    with pytest.raises(ValueError, match="probability"):
        exact_runs(torch.zeros(1, 28, 28), torch.zeros(1, 4), (20, 30), 1.0)
