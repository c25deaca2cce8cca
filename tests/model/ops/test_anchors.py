import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from model.ops.anchors import cell_anchors, pyramid_anchors

SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
RATIOS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize("padded", [(224, 160), (96, 352), (32, 32)])  # P6 has 2^6 pixels a cell in neither of them
@pytest.mark.parametrize("ratios", [RATIOS, (1.0,), (0.2, 0.7, 1.3, 5.0)])
def test_rounded_anchors_equal_torchvision(padded: tuple[int, int], ratios: tuple[float, ...]) -> None:
    grids = [(padded[0] // s, padded[1] // s) for s in (4, 8, 16, 32)]
    grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    strides = [(padded[0] // rows, padded[1] // columns) for rows, columns in grids]
    ours = pyramid_anchors(cell_anchors(SIZES, ratios, 5, "size_major", True), grids, strides)

    generator = AnchorGenerator(tuple((int(s),) for s in SIZES), (ratios,) * 5)
    images = ImageList(torch.zeros(1, 3, *padded), [padded])
    (theirs,) = generator(images, [torch.zeros(1, 1, *grid) for grid in grids])
    assert [len(level) for level in ours] == [rows * columns * len(ratios) for rows, columns in grids]
    assert torch.equal(torch.cat(ours), theirs)


@pytest.mark.parametrize("sizes", [SIZES, (32.0, 64.0), (48.0,)])
@pytest.mark.parametrize("ratios", [RATIOS, (1.0,), (0.2, 0.7, 1.3, 5.0)])
def test_order_on_one_level(sizes: tuple[float, ...], ratios: tuple[float, ...]) -> None:
    generator = AnchorGenerator((tuple(int(s) for s in sizes),), (ratios,))
    ratio_major = cell_anchors(sizes, ratios, 1, "ratio_major", True)
    assert torch.equal(ratio_major[0], generator.cell_anchors[0])
    size_major = cell_anchors(sizes, ratios, 1, "size_major", True)
    loop = []  # detectron2's two loops
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2 / ratio)
            loop.append([-width / 2, -width * ratio / 2, width / 2, width * ratio / 2])
    torch.testing.assert_close(cell_anchors(sizes, ratios, 1, "size_major", False)[0], torch.tensor(loop))
    swapped = ratio_major[0].reshape(len(ratios), len(sizes), 4).transpose(0, 1).reshape(-1, 4)
    assert torch.equal(size_major[0], swapped)


def test_order_says_nothing_about_one_size_a_level() -> None:
    assert torch.equal(
        cell_anchors(SIZES, RATIOS, 5, "size_major", False), cell_anchors(SIZES, RATIOS, 5, "ratio_major", False)
    )


def test_anchors_equal_a_loop() -> None:
    grids, strides = [(3, 5), (2, 3), (1, 1), (1, 2), (4, 1)], [(4, 4), (8, 8), (16, 16), (32, 32), (64, 48)]
    levels = pyramid_anchors(cell_anchors(SIZES, RATIOS, 5, "size_major", False), grids, strides)
    assert len(levels) == 5
    for level, size, (rows, columns), (stride_y, stride_x) in zip(levels, SIZES, grids, strides, strict=True):
        expected = []
        for row in range(rows):
            for column in range(columns):
                for ratio in RATIOS:  # height / width, the area stays size²
                    height, width = size * math.sqrt(ratio), size / math.sqrt(ratio)
                    x, y = column * stride_x, row * stride_y
                    expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        assert level.dtype == torch.float32
        torch.testing.assert_close(level, torch.tensor(expected), rtol=1e-6, atol=1e-4)


def test_cells_keep_area_and_ratio() -> None:
    cells = cell_anchors(SIZES, RATIOS, 5, "size_major", False)
    assert cells.shape == (5, 3, 4)
    width, height = (cells[..., 2:] - cells[..., :2]).unbind(-1)
    torch.testing.assert_close(height / width, torch.tensor(RATIOS).expand(5, 3))
    torch.testing.assert_close(width * height, torch.tensor(SIZES)[:, None].expand(5, 3) ** 2)
    assert torch.equal(cells[..., :2], -cells[..., 2:])
