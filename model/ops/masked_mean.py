"""The last step of every loss: a mean over the slots that count."""

import torch
from torch import Tensor


def masked_mean(values: Tensor, counts: Tensor, number: Tensor) -> Tensor:
    """float32 scalar: the sum of `values` where bool `counts` (of a shape that broadcasts) is true, over `number`.

    Summed in float64. A float32 sum depends on how the values are grouped, and so on how many empty slots there are.
    """
    return ((values * counts).sum(dtype=torch.float64) / number.clamp(min=1)).float()
