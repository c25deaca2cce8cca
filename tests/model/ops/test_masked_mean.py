"""The mean over counted slots against exact arithmetic, and its gradient."""

from fractions import Fraction

import pytest
import torch

from model.ops.masked_mean import masked_mean


@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_is_the_exact_mean_rounded_once_wherever_slots_are_empty(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    values = torch.rand(count, generator=generator) * 10.0 ** torch.randint(-6, 6, (count,), generator=generator)
    exact = sum((Fraction(value) for value in values.tolist()), Fraction(0)) / max(count, 1)
    wanted = torch.tensor(float(exact), dtype=torch.float64).float()
    for empty in (0, 1, 333):
        order = torch.randperm(count + empty, generator=generator)
        padded = torch.cat([values, torch.full((empty,), 1e9)])[order]
        counts = torch.cat([torch.ones(count), torch.zeros(empty)])[order].bool()
        found = masked_mean(padded, counts, counts.sum())
        assert found.dtype == torch.float32
        assert found == wanted


def test_gradient_is_one_over_the_number_where_counted() -> None:
    values = torch.arange(8.0).reshape(4, 2).requires_grad_()
    counts = torch.tensor([True, False, True, False])
    masked_mean(values, counts[:, None], counts.sum()).backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.tensor([[0.5, 0.5], [0, 0], [0.5, 0.5], [0, 0]]))
