"""Balanced random sampling into a fixed number of slots, so that shapes never depend on the data."""

import torch
from torch import Tensor


def sample_slots(label: Tensor, noise: Tensor, slots: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Pick at most `slots` candidates an image, positives first, at most `positive_fraction` of them positive.

    Args:
        label: int8 [B, N], 1 positive, 0 negative, -1 never picked.
        noise: float32 [B, N] in [0, 1): the randomness. Of each kind the largest are picked.
        slots: how many to pick; negatives fill what positives leave (as torchvision and detectron2).
        positive_fraction: of `slots`.

    Returns:
        index: int64 [B, S], S = min(slots, N); the first int(slots * positive_fraction) slots hold every positive.
        valid: bool [B, S], False where fewer than S candidates could be picked.
    """
    count = label.shape[1]
    positives = min(int(slots * positive_fraction), count)
    key = torch.where(label == 1, noise, -1.0)
    top, top_index = key.topk(positives, dim=1)
    picked = torch.zeros_like(noise).scatter(1, top_index, (top >= 0).to(noise.dtype))
    # positives 3..4, negatives 1..2 (float32 may round up to the end), everything else below 0
    key = torch.where(picked > 0, noise + 3, torch.where(label == 0, noise + 1, -1.0))
    top, index = key.topk(min(slots, count), dim=1)
    return index, top >= 0


def gather_slots(values: Tensor, index: Tensor) -> Tensor:
    """values [B, N, ...] at index [B, S] -> [B, S, ...]."""
    shape = index.shape + (1,) * (values.dim() - 2)
    return values.gather(1, index.reshape(shape).expand(*index.shape, *values.shape[2:]))
