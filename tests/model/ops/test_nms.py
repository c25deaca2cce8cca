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
