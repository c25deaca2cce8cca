from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from model.ops.mask_targets import targets_from_crops, targets_from_images
from model.types import CROP_SIZE

Shape = Callable[[Tensor, Tensor], Tensor]  # x, y in 0..1 of the box -> inside


def ellipse(x: Tensor, y: Tensor) -> Tensor:
    return (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25


def ring(x: Tensor, y: Tensor) -> Tensor:
    return ellipse(x, y) & ((x - 0.5) ** 2 + (y - 0.5) ** 2 >= 0.05)


def triangle(x: Tensor, y: Tensor) -> Tensor:
    return (y >= 2 * (x - 0.5).abs()) & (y <= 1)


def blob(x: Tensor, y: Tensor) -> Tensor:
    angle = torch.atan2(y - 0.5, x - 0.5)
    return torch.hypot(x - 0.5, y - 0.5) <= 0.38 + 0.1 * torch.cos(3 * angle)


def at_centres(shape: Shape, left: Tensor, top: Tensor, width: Tensor, height: Tensor, cells: int) -> Tensor:
    """bool [R, cells, cells]: the shape at the centres of a grid over frames given in the box's own 0..1."""
    centre = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    x = (left[:, None] + centre * width[:, None])[:, None, :].expand(-1, cells, -1)
    y = (top[:, None] + centre * height[:, None])[:, :, None].expand(-1, -1, cells)
    return shape(x, y) & (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)


def jittered(truth: Tensor, generator: torch.Generator) -> Tensor:
    """RoIs about as far from their truth as those that train the mask head (IoU of at least one half, mostly)."""
    side = (truth[:, 2:] - truth[:, :2]).repeat(1, 2)
    return truth + (torch.rand(len(truth), 4, generator=generator) - 0.5) * 0.4 * side


@pytest.mark.parametrize("shape", [ellipse, ring, triangle, blob])
def test_crops_give_nearly_the_supersampled_truth(shape: Shape) -> None:
    generator = torch.Generator().manual_seed(0)
    count = 60
    corner = torch.rand(count, 2, generator=generator) * 300
    truth = torch.cat([corner, corner + (torch.rand(count, 2, generator=generator) * 4 + 2).exp()], 1)
    rois = jittered(truth, generator)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    crop = at_centres(shape, zero, zero, one, one, CROP_SIZE).to(torch.uint8).expand(count, -1, -1)
    target = targets_from_crops(crop, truth, rois, 28)
    assert target.shape == (count, 28, 28) and target.dtype == torch.float32
    assert ((target == 0) | (target == 1)).all()

    extent = (truth[:, 2:] - truth[:, :2]).double()
    start = (rois[:, :2] - truth[:, :2]).double() / extent
    size = (rois[:, 2:] - rois[:, :2]).double() / extent
    fine = at_centres(shape, start[:, 0], start[:, 1], size[:, 0], size[:, 1], 28 * 16)
    expected = fine.float().reshape(count, 28, 16, 28, 16).mean((2, 4)) >= 0.5  # most of the cell is covered
    found = target.bool()
    iou = (found & expected).sum((1, 2)) / (found | expected).sum((1, 2))
    # Measured means: triangle 0.999, ellipse 0.998, ring 0.996, blob 0.995; the worst single RoI 0.983.
    assert iou.mean() >= 0.99 and iou.min() >= 0.975


def naive_crop(crop: Tensor, truth: list[float], roi: list[float], size: int) -> list[list[float]]:
    """The share of each cell of the RoI that is mask: what it has in common with each cell of the crop, summed."""
    cells = crop.shape[0]
    values = crop.tolist()

    def interval(low: float, high: float, index: int, count: int) -> tuple[float, float]:
        return low + (high - low) * index / count, low + (high - low) * (index + 1) / count

    def common(axis: int, i: int, k: int) -> float:
        a, b = interval(roi[axis], roi[axis + 2], i, size)
        c, d = interval(truth[axis], truth[axis + 2], k, cells)
        return max(0.0, min(b, d) - max(a, c)) / (b - a)

    rows = [[common(1, i, k) for k in range(cells)] for i in range(size)]
    columns = [[common(0, j, k) for k in range(cells)] for j in range(size)]
    every = range(cells)
    return [
        [
            sum(values[k][n] * rows[i][k] * columns[j][n] for k in every if rows[i][k] for n in every if columns[j][n])
            for j in range(size)
        ]
        for i in range(size)
    ]


def test_crops_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.tensor(
        [
            [10.0, 20.0, 90.0, 50.0],
            [10.0, 20.0, 90.0, 50.0],  # RoI partly outside
            [0.3, 0.6, 0.9, 70.2],  # thin
            [5.0, 5.0, 700.0, 600.0],  # RoI much smaller
            [30.0, 30.0, 33.0, 32.0],  # RoI much larger
        ]
    )
    rois = torch.tensor(
        [
            [10.0, 20.0, 90.0, 50.0],
            [-20.5, 30.1, 60.2, 80.3],
            [0.1, 5.0, 1.7, 60.0],
            [300.2, 280.7, 320.0, 305.0],
            [10.0, 10.0, 60.0, 57.0],
        ]
    )
    crops = (torch.rand(5, 12, 12, generator=generator) < 0.6).to(torch.uint8)
    target = targets_from_crops(crops, truth, rois, 14)
    pairs = zip(crops, truth.tolist(), rois.tolist(), strict=True)
    expected = torch.tensor([naive_crop(c, t, r, 14) for c, t, r in pairs])
    clear = (expected - 0.5).abs() > 1e-4  # float32 may decide a tie either way
    assert clear.float().mean() > 0.95
    assert torch.equal(target[clear], (expected >= 0.5).float()[clear])


def test_crop_full_of_ones_fills_its_box() -> None:
    """The target is one exactly where half of a cell or more lies in the box, as in a loop over the whole image."""
    generator = torch.Generator().manual_seed(2)
    truth = torch.tensor([[40.0, 30.0, 130.0, 90.0]]).expand(50, -1)
    rois = torch.cat([truth[:1], jittered(truth[1:], generator)])
    target = targets_from_crops(torch.ones(50, CROP_SIZE, CROP_SIZE, dtype=torch.uint8), truth, rois, 28)

    def inside(low: Tensor, high: Tensor, first: float, last: float) -> Tensor:
        edges = low[:, None] + torch.arange(29) / 28 * (high - low)[:, None]
        common = edges[:, 1:].clamp(max=last) - edges[:, :-1].clamp(min=first)
        return common.clamp(min=0) / (edges[:, 1:] - edges[:, :-1])

    share = inside(rois[:, 1], rois[:, 3], 30, 90)[:, :, None] * inside(rois[:, 0], rois[:, 2], 40, 130)[:, None]
    clear = (share - 0.5).abs() > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(target.bool()[clear], (share > 0.5)[clear])
    assert target[0].all()


def test_autocast_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    truth = torch.tensor([[40.0, 30.0, 130.0, 90.0]]).expand(20, -1)
    rois = jittered(truth, generator)
    crops = (torch.rand(20, CROP_SIZE, CROP_SIZE, generator=generator) < 0.5).to(torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        target = targets_from_crops(crops, truth, rois, 28)
    assert target.dtype == torch.float32 and torch.equal(target, targets_from_crops(crops, truth, rois, 28))


def test_a_tie_is_foreground() -> None:
    half = torch.zeros(1, CROP_SIZE, CROP_SIZE, dtype=torch.uint8)
    half[:, :, : CROP_SIZE // 2] = 1
    box = torch.tensor([[0.0, 0.0, 112.0, 112.0]])
    target = targets_from_crops(half, box, box, 7)  # the edge cuts the fourth cell in halves
    assert target[0].tolist() == [[1, 1, 1, 1, 0, 0, 0]] * 7


def test_roi_beside_the_box_is_empty() -> None:
    ones = torch.ones(1, CROP_SIZE, CROP_SIZE, dtype=torch.uint8)
    box = torch.tensor([[10.0, 10.0, 20.0, 20.0]])
    assert not targets_from_crops(ones, box, box + 11, 28).any()


def test_empty_boxes_give_numbers() -> None:
    """Padding slots and RoIs that do not train still pass through: what comes out must be finite."""
    crops = torch.ones(3, CROP_SIZE, CROP_SIZE, dtype=torch.uint8)
    truth = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 9.0, 9.0]])
    rois = torch.tensor([[0.0, 0.0, 0.0, 0.0], [-1e4, 3.0, 1e4, 800.0], [7.0, 7.0, 7.0, 7.0]])
    target = targets_from_crops(crops, truth, rois, 28)
    assert ((target == 0) | (target == 1)).all()
    assert targets_from_crops(crops[:0], truth[:0], rois[:0], 28).shape == (0, 28, 28)


@pytest.mark.parametrize("size", [14, 28])
def test_images_equal_torchvision(size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    masks = (torch.rand(6, 70, 90, generator=generator) < 0.5).to(torch.uint8)
    corner = torch.rand(30, 2, generator=generator) * 80 - 10
    rois = torch.cat([corner, corner + (torch.rand(30, 2, generator=generator) * 4.5).exp()], 1)
    rois[0] = torch.tensor([0.0, 0.0, 90.0, 70.0])
    rois[1] = torch.tensor([30.0, 30.0, 30.0, 30.0])
    index = torch.randint(0, 6, (30,), generator=generator)
    target = targets_from_images(masks, index, rois, size)
    assert target.shape == (30, size, size) and target.dtype == torch.float32
    assert torch.equal(target, project_masks_on_boxes(masks, rois, index, size))
    assert ((target > 0) & (target < 1)).any()  # soft
