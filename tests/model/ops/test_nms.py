import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from model.ops import nms
from model.ops.nms import keep_together, nms_keep


def groups(seed: int, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(5, 70, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + torch.rand(5, 70, 2, generator=generator) * 30], 2)
    boxes[:, ::10, 2:] = boxes[:, ::10, :2]  # empty ones
    boxes[:, 1::10] = boxes[:, 2::10]  # the same box twice
    scores = torch.randn(5, 70, generator=generator)
    if ties:
        scores = scores.round()
    valid = torch.rand(5, 70, generator=generator) < 0.7
    valid[3] = False  # nobody
    valid[4] = torch.arange(70) == 13  # one
    scores = torch.where(valid, scores, 100.0)  # the best scores are not real
    return boxes, scores, valid


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_equals_torchvision_in_each_group(threshold: float, ties: bool) -> None:
    boxes, scores, valid = groups(int(threshold * 10), ties)
    keep = nms_keep(boxes, scores, valid, threshold)
    assert keep.shape == valid.shape and keep.dtype == torch.bool
    assert not (keep & ~valid).any()
    assert keep[4].tolist() == valid[4].tolist()
    for group in range(5):
        real = valid[group].nonzero()[:, 0]
        kept = real[torchvision.ops.nms(boxes[group, real], scores[group, real], threshold)]
        assert sorted(kept.tolist()) == keep[group].nonzero()[:, 0].tolist()


def naive(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    """Greedy NMS as the papers say it: take the best, drop what overlaps it too much, and again."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        x0, y0, x1, y1 = boxes[i]
        for j in kept:
            a0, b0, a1, b1 = boxes[j]
            both = max(min(x1, a1) - max(x0, a0), 0.0) * max(min(y1, b1) - max(y0, b0), 0.0)
            union = (x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - both
            if (
                union > 0 and float(np.float32(both / union)) > threshold
            ):  # 3 / 10 is above 0.3 in float32, as everywhere
                break
        else:
            kept.append(i)
    return kept


def test_equals_a_loop_on_thousands_of_groups() -> None:
    """Half of them on a coarse grid: equal boxes, IoUs of exactly the threshold, empty boxes."""
    generator = torch.Generator().manual_seed(0)
    for threshold in (0.3, 0.5, 0.7):
        corner, side = torch.rand(1000, 12, 2, generator=generator) * 12, torch.rand(1000, 12, 2, generator=generator)
        boxes = torch.cat([corner, corner + side * 10], 2)
        boxes[::2] = (boxes[::2] / 2).round() * 2
        scores = torch.rand(1000, 12, generator=generator)
        valid = torch.rand(1000, 12, generator=generator) < 0.9
        keep = nms_keep(boxes, scores, valid, threshold)
        for own, score, real, kept in zip(boxes.tolist(), scores.tolist(), valid, keep, strict=True):
            index = real.nonzero()[:, 0].tolist()
            expected = naive([own[i] for i in index], [score[i] for i in index], threshold)
            assert sorted(index[i] for i in expected) == kept.nonzero()[:, 0].tolist()


def test_a_box_is_dropped_only_above_the_threshold() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0]]])  # IoU 0.5, then 1
    scores, valid = torch.tensor([[3.0, 2.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert nms_keep(boxes, scores, valid, 0.5).tolist() == [[True, True, False]]
    assert nms_keep(boxes, scores, valid, 0.49).tolist() == [[True, False, False]]
    without = torch.tensor([[False, True, True]])  # who is not there does not suppress
    assert nms_keep(boxes, scores, without, 0.49).tolist() == [[False, True, False]]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    keep = nms_keep(torch.zeros(*shape, 4), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool), 0.5)
    assert keep.shape == shape


def test_is_a_well_behaved_operator() -> None:
    torch.library.opcheck(nms_keep, (*groups(1), 0.5), test_utils=["test_schema", "test_faketensor"])


@pytest.mark.parametrize("together", [1, 140, 16384])
@pytest.mark.parametrize("seed", range(5))
def test_many_groups_in_a_launch_do_not_meet(seed: int, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's way, on the CPU."""
    monkeypatch.setattr(nms, "TOGETHER", together)
    boxes, scores, valid = groups(seed)
    assert torch.equal(keep_together(boxes, scores, valid, 0.7), nms_keep(boxes, scores, valid, 0.7))


def test_many_groups_of_nothing() -> None:
    nothing = torch.zeros(3, 0, dtype=torch.bool)
    assert keep_together(torch.zeros(3, 0, 4), torch.zeros(3, 0), nothing, 0.5).shape == (3, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", range(5))
def test_cuda_equals_cpu(seed: int) -> None:
    boxes, scores, valid = groups(seed)
    keep = nms_keep(boxes.cuda(), scores.cuda(), valid.cuda(), 0.7)
    assert torch.equal(keep.cpu(), nms_keep(boxes, scores, valid, 0.7))


INTERPRETED = """
import torch
from model.ops.nms import keep_on_gpu, nms_keep
from model.ops import nms

generator = torch.Generator().manual_seed(0)
sizes = [(1, 1, 9, 0), (2, 31, 30, 1), (2, 33, 30, 0), (1, 64, 40, 1), (3, 70, 40, 0), (1, 200, 60, 1)]
for groups, count, side, whole in sizes:
    corner = torch.rand(groups, count, 2, generator=generator) * side
    boxes = torch.cat([corner, corner + torch.rand(groups, count, 2, generator=generator) * 30], 2)
    if whole:  # many overlaps of exactly the threshold, and empty boxes
        boxes = boxes.round()
    scores = torch.randn(groups, count, generator=generator)
    scores = scores.round() if whole else scores
    valid = torch.rand(groups, count, generator=generator) < 0.8
    for threshold in (0.0, 0.3, 0.5, 0.7):
        nms.PAIRS = 1 << 29 if whole else count * count  # all groups in a launch, or one
        got, expected = (keep(boxes, scores, valid, threshold) for keep in (keep_on_gpu, nms_keep))
        assert torch.equal(got, expected), (groups, count, threshold)
        print(int(got.sum()))
for shape in [(0, 5), (3, 0)]:
    nothing = torch.zeros(shape)
    assert keep_on_gpu(torch.zeros(*shape, 4), nothing, nothing.bool(), 0.5).shape == shape
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="this torch came without Triton")
def test_triton_kernels_equal_torchvision_in_triton_s_interpreter() -> None:
    """The GPU's kernels, run on the CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.split()) == 24


def test_threshold_of_float32_decides_as_the_one_of_float64() -> None:
    pytest.importorskip("triton")
    from model.ops.nms_triton import _not_above

    for threshold in [*np.random.default_rng(0).random(1000).tolist(), 0.0, 0.3, 0.5, 0.7, 1.0]:
        near = np.float32(_not_above(threshold))
        assert float(near) <= threshold < float(np.nextafter(near, np.float32(2)))
