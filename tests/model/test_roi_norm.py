"""Batch norm of the real RoIs against nn.BatchNorm2d that is given these alone."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from model.config import BoxConfig
from model.heads import roi_norm
from model.heads.box import BoxHead
from model.heads.roi_norm import RoIBatchNorm

CHANNELS = 5


def pair(seed: int = 0) -> tuple[RoIBatchNorm, nn.BatchNorm2d]:
    torch.manual_seed(seed)
    reference = nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        reference.weight.uniform_(0.5, 1.5)
        reference.bias.normal_()
    reference.running_mean.normal_()
    reference.running_var.uniform_(0.5, 2)
    ours = RoIBatchNorm(CHANNELS, 1e-5, over_ranks=False)
    ours.load_state_dict(reference.state_dict())
    return ours, reference


def crops(count: int, side: int, offset: float) -> Tensor:
    return torch.randn(count, CHANNELS, side, side, generator=torch.Generator().manual_seed(count)) * 3 + offset


@pytest.mark.parametrize("offset", [0.0, 300.0])  # a mean far from zero costs no digits
@pytest.mark.parametrize(("count", "kept", "side"), [(9, 4, 7), (9, 9, 3), (300, 7, 2), (4, 1, 2), (1, 1, 7)])
def test_as_if_the_others_were_not_there(count: int, kept: int, side: int, offset: float) -> None:
    ours, reference = pair()
    real = torch.randperm(count, generator=torch.Generator().manual_seed(1)) < kept
    x = crops(count, side, offset)
    x[~real] *= 7
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = ours(mine, real)[real], reference(theirs[real])
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-4 if offset else 1e-5)
    toward = crops(kept, side, 0.0)
    (out * toward).sum().backward()
    (expected * toward).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert mine.grad is not None and not mine.grad[~real].any()
    for name, value in reference.named_parameters():
        torch.testing.assert_close(dict(ours.named_parameters())[name].grad, value.grad, rtol=1e-3, atol=1e-3)
    for name, buffer in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], buffer, rtol=1e-5, atol=1e-5)


def test_nothing_real_is_finite_and_leaves_the_statistics() -> None:
    ours, _ = pair()
    before = copy.deepcopy(ours.state_dict())
    x = crops(3, 4, 0.0).requires_grad_()
    out = ours(x, torch.zeros(3, dtype=torch.bool))
    (out * 0).sum().backward()
    assert out.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    after = ours.state_dict()
    assert torch.equal(after["running_mean"], before["running_mean"])
    assert torch.equal(after["running_var"], before["running_var"])


def test_half_precision_keeps_statistics_in_float32() -> None:
    ours, reference = pair()
    x, real = crops(20, 5, 4.0).bfloat16(), torch.arange(20) % 3 > 0
    out = ours(x, real)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out[real].float(), reference(x[real].float()), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours.running_mean, reference.running_mean, rtol=1e-5, atol=1e-5)


def test_detection_uses_the_running_statistics() -> None:
    ours, reference = pair()
    x = crops(6, 3, 1.0)
    assert torch.equal(ours.eval()(x), reference.eval()(x))


def test_a_head_learns_from_its_real_rois_alone() -> None:
    torch.manual_seed(0)
    config = BoxConfig(convs=2, conv_channels=6, norm="bn", hidden=8, layers=1)
    head = BoxHead(CHANNELS, 7, 3, config).train()
    alone = copy.deepcopy(head)
    x, real = crops(10, 7, 0.0), torch.arange(10) % 2 == 0
    logits, deltas = head(x, real)
    reference, moves = alone(x[real])
    torch.testing.assert_close(logits[real], reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deltas[real], moves, rtol=1e-4, atol=1e-5)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(head.state_dict()[name], value, rtol=1e-5, atol=1e-5)


class TwoRanks:
    """torch.distributed for two threads, each a rank: what each hands in is replaced by the sum."""

    def __init__(self) -> None:
        self.barrier, self.handed = threading.Barrier(2, timeout=60), {}

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, value: Tensor) -> None:
        self.handed[threading.get_ident()] = value.clone()
        self.barrier.wait()
        value.copy_(sum(self.handed.values()))
        self.barrier.wait()


def test_statistics_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = crops(9, 3, 1.0)
    real = torch.tensor([True, False, True, True, False, True, True, False, True])
    norm, _ = pair()
    whole = x.clone().requires_grad_()
    out = norm(whole, real)
    (out**3 * real[:, None, None, None]).sum().backward()

    monkeypatch.setattr(roi_norm, "dist", TwoRanks())

    def one_rank(part: slice, own: RoIBatchNorm) -> tuple[Tensor, Tensor, RoIBatchNorm]:
        own.over_ranks = True
        mine = x[part].clone().requires_grad_()
        found = own(mine, real[part])
        (found**3 * real[part, None, None, None]).sum().backward()
        assert mine.grad is not None
        return found, mine.grad, own

    norms = [pair()[0] for _ in range(2)]  # here: both threads would share one random state
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one_rank, [slice(0, 4), slice(4, 9)], norms)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), out, rtol=1e-5, atol=1e-5)
    assert whole.grad is not None
    torch.testing.assert_close(torch.cat([first[1], second[1]]), whole.grad, rtol=1e-4, atol=1e-4)
    for _, _, own in (first, second):
        torch.testing.assert_close(own.running_mean, norm.running_mean)
        torch.testing.assert_close(own.running_var, norm.running_var)
    gradient = first[2].weight.grad + second[2].weight.grad
    torch.testing.assert_close(gradient, norm.weight.grad, rtol=1e-4, atol=1e-4)
