import pytest
import torch
from torch import Tensor

from model.ops.sampling import gather_slots, sample_slots


def naive(label: Tensor, noise: Tensor, slots: int, fraction: float) -> list[list[int]]:
    """Of each image the picked candidates: positives by falling noise, then negatives by falling noise."""
    picked = []
    for labels, values in zip(label.tolist(), noise.tolist(), strict=True):
        by_noise = sorted(range(len(labels)), key=lambda i: -values[i])
        positives = [i for i in by_noise if labels[i] == 1][: int(slots * fraction)]
        negatives = [i for i in by_noise if labels[i] == 0]
        picked.append(positives + negatives[: slots - len(positives)])
    return picked


@pytest.mark.parametrize("shares", [(0.1, 0.6), (0.5, 0.5), (0.9, 0.05), (0.0, 0.3), (0.0, 0.0), (1.0, 0.0)])
@pytest.mark.parametrize(("slots", "fraction"), [(16, 0.25), (16, 0.5), (7, 0.3), (16, 0.0), (16, 1.0), (80, 0.25)])
def test_equals_a_loop(shares: tuple[float, float], slots: int, fraction: float) -> None:
    generator = torch.Generator().manual_seed(slots)
    draw = torch.rand(4, 50, generator=generator)
    positive, negative = shares
    label = torch.where(draw < positive, 1, torch.where(draw < positive + negative, 0, -1)).to(torch.int8)
    noise = torch.stack([torch.randperm(50, generator=generator) for _ in range(4)]) / 50  # no ties
    index, valid = sample_slots(label, noise, slots, fraction)
    assert index.shape == valid.shape == (4, min(slots, 50))
    assert index.dtype == torch.int64 and valid.dtype == torch.bool
    for image, expected in enumerate(naive(label, noise, slots, fraction)):
        assert index[image][valid[image]].tolist() == expected  # in this order, so positives come first
        assert not valid[image, len(expected) :].any()


def test_positives_stay_first_at_the_ends_of_the_noise() -> None:
    highest = 1 - 2.0**-24  # the largest and the smallest number that torch.rand gives
    noise = torch.tensor([[highest, highest, 0.0, highest]])
    index, valid = sample_slots(torch.tensor([[0, 0, 1, -1]], dtype=torch.int8), noise, 4, 0.25)
    assert index[0, 0] == 2
    assert valid.tolist() == [[True, True, True, False]]


def test_every_candidate_has_the_same_chance() -> None:
    label = torch.tensor([1] * 20 + [0] * 30 + [-1] * 10, dtype=torch.int8).expand(4000, -1)
    noise = torch.rand(label.shape, generator=torch.Generator().manual_seed(0))
    index, valid = sample_slots(label, noise, 16, 0.25)
    assert valid.all()
    share = torch.bincount(index.flatten(), minlength=60) / len(label)
    assert (share[:20] - 4 / 20).abs().max() < 0.03  # 5 standard deviations of a binomial
    assert (share[20:50] - 12 / 30).abs().max() < 0.04
    assert (share[50:] == 0).all()


@pytest.mark.parametrize("tail", [(), (4,), (3, 2)])
def test_gather_equals_a_loop(tail: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.rand(3, 9, *tail, generator=generator)
    index = torch.randint(0, 9, (3, 5), generator=generator)
    expected = torch.stack([torch.stack([values[b, i] for i in index[b]]) for b in range(3)])
    assert torch.equal(gather_slots(values, index), expected)
