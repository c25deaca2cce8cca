import itertools
import math

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.ops.poolers import LevelMapper, MultiScaleRoIAlign

from model.config import RoIOperation
from model.ops.boxes import box_area
from model.ops.roi import RoIs, assign_levels, crop_rois

STRIDES = (4, 8, 16, 32)
HEIGHT, WIDTH = 192, 256  # pixels of the padded input
IMAGES, CHANNELS = 2, 5
AWKWARD = [
    [0.0, 0.0, 256.0, 192.0],  # the whole image
    [0.0, 0.0, 0.0, 0.0],  # nothing, in a corner
    [100.0, 50.0, 100.0, 90.0],  # a line
    [31.0, 17.0, 31.5, 17.5],  # half a pixel
    [-100.3, -80.7, 400.2, 300.9],  # around the image
    [-300.2, -200.1, -40.3, -35.4],  # outside
    [300.3, 200.4, 500.1, 290.2],  # outside on the other side
    [-40.3, 60.2, 20.7, 110.9],  # across the left border
    [240.1, 150.3, 290.8, 210.6],  # across the corner at the bottom right
    [255.0, 191.0, 256.0, 192.0],  # the last pixel
    [0.0, 190.0, 256.0, 192.0],  # two rows at the bottom
    [64.0, 64.0, 128.0, 128.0],  # edges on cells of every level
    [60.0, 50.0, 40.0, 30.0],  # the wrong way round
]


def levels(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(IMAGES, CHANNELS, HEIGHT // s, WIDTH // s) for s in STRIDES]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def rois(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, image and level: every awkward box on every level, and random ones."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(40, 2, generator=generator) * torch.tensor([WIDTH + 60.0, HEIGHT + 60.0]) - 40
    side = (torch.rand(40, 2, generator=generator) * 5.5).exp()
    boxes = torch.cat([torch.tensor(AWKWARD)] * 4 + [torch.cat([corner, corner + side], 1)])
    levels_of_awkward = torch.arange(4).repeat_interleave(len(AWKWARD))
    level = torch.cat([levels_of_awkward, torch.randint(0, 4, (40,), generator=generator)])
    return boxes, torch.randint(0, IMAGES, (len(boxes),), generator=generator), level


def reference(
    maps: list[Tensor], boxes: Tensor, image: Tensor, level: Tensor, size: int, samples: int, aligned: bool
) -> Tensor:
    """torchvision's operator, one level at a time."""
    out = torch.zeros(len(boxes), CHANNELS, size, size)
    numbered = torch.cat([image[:, None].float(), boxes], 1)
    for index, stride in enumerate(STRIDES):
        own = (level == index).nonzero()[:, 0]
        crops = torchvision.ops.roi_align(maps[index], numbered[own], size, 1 / stride, samples, aligned)
        out = out.index_copy(0, own, crops)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("size", "samples"), [(7, 1), (7, 2), (5, 3), (14, 2), (1, 2), (3, 0), (7, 0)])
def test_equals_torchvision_on_each_level(size: int, samples: int, aligned: bool) -> None:
    maps, (boxes, image, level) = levels(size), rois(samples)
    crops = crop_rois("align", maps, STRIDES, RoIs(boxes, image, level), size, samples, aligned)
    assert crops.shape == (len(boxes), CHANNELS, size, size) and crops.dtype == torch.float32
    expected = reference(maps, boxes, image, level, size, samples, aligned)
    torch.testing.assert_close(crops, expected, rtol=1e-4, atol=1e-4)

    towards = torch.randn(crops.shape, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad((crops * towards).sum(), maps)
    theirs = torch.autograd.grad((expected * towards).sum(), maps)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("samples", [0, 2])
def test_equals_torchvision_over_the_pyramid(samples: int) -> None:
    generator = torch.Generator().manual_seed(5)
    maps = levels(1)
    corner = torch.rand(120, 2, generator=generator) * torch.tensor([WIDTH * 0.8, HEIGHT * 0.8])
    side = (torch.rand(120, 2, generator=generator) * 5.5).exp()
    boxes = torch.minimum(torch.cat([corner, corner + side], 1), torch.tensor([WIDTH, HEIGHT] * 2))
    image = torch.arange(2).repeat_interleave(60)
    level = assign_levels(boxes, 56.0, 4, 2, 5)
    assert set(level.tolist()) == {0, 1, 2, 3}
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, samples, canonical_scale=56, canonical_level=4)
    features = {str(i): m for i, m in enumerate(maps)}
    expected = pooler(features, [boxes[:60], boxes[60:]], [(HEIGHT, WIDTH)] * 2)
    crops = crop_rois("align", maps, STRIDES, RoIs(boxes, image, level), 7, samples, False)
    torch.testing.assert_close(crops, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_equals_a_loop_of_bilinear_samples(samples: int, aligned: bool) -> None:
    """Inside the map the operation is a mean of bilinear samples at the centres of equal parts of each bin."""
    field = levels(2)[1][0, 0].detach().double()
    box = (35.3, 21.9, 171.2, 140.4)
    x0, y0, x1, y1 = (edge / 8 - (0.5 if aligned else 0) for edge in box)

    def bilinear(y: float, x: float) -> float:
        top, left = math.floor(y), math.floor(x)
        return sum(
            float(field[top + i, left + j]) * (1 - abs(y - top - i)) * (1 - abs(x - left - j))
            for i in (0, 1)
            for j in (0, 1)
        )

    parts = [(i + 0.5) / (3 * samples) for i in range(3 * samples)]
    values = torch.tensor([[bilinear(y0 + v * (y1 - y0), x0 + u * (x1 - x0)) for u in parts] for v in parts])
    expected = values.reshape(3, samples, 3, samples).mean((1, 3))
    one = torch.tensor([1])
    crops = crop_rois("align", levels(2), STRIDES, RoIs(torch.tensor([box]), one - 1, one), 3, samples, aligned)
    torch.testing.assert_close(crops[0, 0], expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [0, 2])
def test_no_rois(samples: int) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    maps = levels(0)
    crops = crop_rois("align", maps, STRIDES, RoIs(torch.zeros(0, 4), none, none), 7, samples, True)
    assert crops.shape == (0, CHANNELS, 7, 7)
    assert all(not g.any() for g in torch.autograd.grad(crops.sum(), maps))


@pytest.mark.parametrize("samples", [0, 2])
def test_half_precision_features_give_float32(samples: int) -> None:
    maps, (boxes, image, level) = [m.detach().bfloat16() for m in levels(4)], rois(4)
    crops = crop_rois("align", maps, STRIDES, RoIs(boxes, image, level), 7, samples, True)
    assert crops.dtype == torch.float32
    same = crop_rois("align", [m.float() for m in maps], STRIDES, RoIs(boxes, image, level), 7, samples, True)
    assert torch.equal(crops, same)


def square(side: float) -> list[float]:
    return [10.0, 20.0, 10.0 + side, 20.0 + side]


def test_levels_equal_torchvision() -> None:
    exact = [square(float(2**k)) for k in range(11)] + [square(7.0 * 2**k) for k in range(8)]
    exact += [[0.0, 0.0, 56.0, 224.0], [0.0, 0.0, 448.0, 112.0], [0.0, 0.0, 896.0, 56.0]]  # areas 112², 224²
    generator = torch.Generator().manual_seed(0)
    random = (torch.rand(3000, 2, generator=generator) * 7.5).exp()
    boxes = torch.cat([torch.tensor(exact), torch.cat([torch.zeros(3000, 2), random], 1)])
    ours = assign_levels(boxes, 224.0, 4, 2, 5)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, LevelMapper(2, 5, 224, 4)([boxes]))
    assert ours.unique().tolist() == [0, 1, 2, 3]


def test_levels_at_the_boundaries() -> None:
    sides = {0.0: 2, 1.0: 2, 111.9: 2, 112.0: 3, 223.9: 3, 224.0: 4, 447.9: 4, 448.0: 5, 5000.0: 5}  # FPN eq. 1
    boxes = torch.tensor([square(side) for side in sides])
    assert assign_levels(boxes, 224.0, 4, 2, 5).tolist() == [level - 2 for level in sides.values()]
    stretched = torch.tensor([[0.0, 0.0, 224.0 * k, 224.0 / k] for k in range(1, 40)])  # area 224², but for rounding
    assert (box_area(stretched) < 224**2).any()
    assert (assign_levels(stretched, 224.0, 4, 2, 5) == 2).all()
    assert assign_levels(boxes, 224.0, 4, 3, 4).tolist() == [min(max(v, 3), 4) - 3 for v in sides.values()]


def naive(operation: str, level: np.ndarray, box: list[float], stride: int, size: int, samples: int, aligned: bool):  # type: ignore[no-untyped-def]
    """One RoI on one map [C, H, W], in float64 loops straight from the definitions."""
    channels, height, width = level.shape
    x1, y1, x2, y2 = (value / stride for value in box)
    out = np.zeros((channels, size, size))
    if operation != "align" and operation != "align_max":

        def whole(value: float) -> float:
            return math.copysign(math.floor(abs(value) + 0.5), value)

        x1, y1, x2, y2 = whole(x1), whole(y1), whole(x2), whole(y2)
        x2, y2 = max(x2, x1) + 1, max(y2, y1) + 1
    if operation == "pool":
        for i, j in itertools.product(range(size), repeat=2):
            rows = [math.floor(i * (y2 - y1) / size) + y1, math.ceil((i + 1) * (y2 - y1) / size) + y1]
            columns = [math.floor(j * (x2 - x1) / size) + x1, math.ceil((j + 1) * (x2 - x1) / size) + x1]
            r0, r1 = (int(min(max(v, 0), height)) for v in rows)
            c0, c1 = (int(min(max(v, 0), width)) for v in columns)
            if r1 > r0 and c1 > c0:
                out[:, i, j] = level[:, r0:r1, c0:c1].max((1, 2))
        return out
    if aligned:
        x1, y1, x2, y2 = x1 - 0.5, y1 - 0.5, x2 - 0.5, y2 - 0.5
    bin_w, bin_h = (x2 - x1) / size, (y2 - y1) / size
    if not aligned:
        bin_w, bin_h = max(x2 - x1, 1.0) / size, max(y2 - y1, 1.0) / size
    for i, j in itertools.product(range(size), repeat=2):
        values = []
        for a, b in itertools.product(range(samples), repeat=2):
            y, x = y1 + (i + (a + 0.5) / samples) * bin_h, x1 + (j + (b + 0.5) / samples) * bin_w
            if not (-1 <= y <= height and -1 <= x <= width):
                values.append(np.zeros(channels))
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            r, c = math.floor(y), math.floor(x)
            r1, c1 = min(r + 1, height - 1), min(c + 1, width - 1)
            top = level[:, r, c] * (1 - (x - c)) + level[:, r, c1] * (x - c)
            bottom = level[:, r1, c] * (1 - (x - c)) + level[:, r1, c1] * (x - c)
            values.append(top * (1 - (y - r)) + bottom * (y - r))
        out[:, i, j] = np.max(values, 0) if operation.endswith("_max") else np.mean(values, 0)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("operation", ["align", "align_max", "warp", "warp_max", "pool"])
def test_every_operation_equals_a_loop(operation: RoIOperation, aligned: bool) -> None:
    maps, (boxes, image, level) = [m.detach().double() for m in levels(4)], rois(1)
    crops = crop_rois(operation, maps, STRIDES, RoIs(boxes.double(), image, level), 3, 2, aligned)
    for index, box in enumerate(boxes.double().tolist()):
        own = maps[level[index]][image[index]].numpy()
        expected = naive(operation, own, box, STRIDES[level[index]], 3, 2, aligned)
        np.testing.assert_allclose(crops[index].numpy(), expected, rtol=1e-9, atol=1e-9, err_msg=f"{box}")


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("operation", "samples"),
    [("align", 0), ("align", 1), ("align", 2), ("align_max", 2), ("warp", 2), ("warp_max", 2), ("pool", 2)],
)
def test_gradients_of_every_operation(operation: RoIOperation, samples: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    maps = [torch.randn(2, 2, side, side, dtype=torch.float64, generator=generator).requires_grad_() for side in (8, 4)]
    boxes = torch.tensor([[1.0, 2.0, 25.0, 30.0], [3.3, 4.4, 9.9, 8.1], [-5.0, 20.0, 14.0, 50.0]], dtype=torch.float64)
    where = RoIs(boxes, torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0]))
    assert torch.autograd.gradcheck(lambda *m: crop_rois(operation, m, (4, 8), where, 2, samples, aligned), maps)


@pytest.mark.parametrize("samples", [0, 1, 2, 3])
@pytest.mark.parametrize("aligned", [True, False])
def test_align_equals_torchvision_in_float64(samples: int, aligned: bool) -> None:
    maps, (boxes, image, level) = [m.detach().double() for m in levels(7)], rois(2)
    crops = crop_rois("align", maps, STRIDES, RoIs(boxes.double(), image, level), 5, samples, aligned)
    numbered = torch.cat([image[:, None].double(), boxes.double()], 1)
    for index, stride in enumerate(STRIDES):
        own = level == index
        expected = torchvision.ops.roi_align(maps[index], numbered[own], 5, 1 / stride, samples, aligned)
        torch.testing.assert_close(crops[own], expected, rtol=1e-10, atol=1e-12)


def test_bf16_maps_are_read_in_float32() -> None:
    maps, (boxes, image, level) = [m.detach().bfloat16() for m in levels(8)], rois(3)
    for operation in ("align", "warp_max", "pool"):
        crops = crop_rois(operation, maps, STRIDES, RoIs(boxes, image, level), 3, 2, True)  # type: ignore[arg-type]
        assert crops.dtype == torch.float32
