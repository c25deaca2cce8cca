"""Batch norm over RoIs in slots of which some are not real: only real ones make the statistics.

Legend: R slots, C channels, P side of a crop.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class RoIBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d as if the slots that are not real were not there (a head with a fixed number of slots has them).

    In training the statistics of a mask head would otherwise be of positive and negative RoIs, and those of detection,
    where it sees the detected boxes alone, would be others. Without a real slot the running statistics stay.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float, over_ranks: bool) -> None:
        super().__init__(channels, eps)
        self.over_ranks = over_ranks  # statistics of all ranks' RoIs, as nn.SyncBatchNorm

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """x [R, C, P, P] -> the same shape. real: bool [R], which slots count in training; None: all."""
        if not self.training:
            return super().forward(x)
        y = x.float()
        weight = y.new_ones(len(y)) if real is None else real.float()
        variances, means = torch.var_mean(y, (2, 3), correction=0)  # [R, C]
        cells = float(y.shape[2] * y.shape[3])
        count = self._sum(weight.sum() * cells)
        safe = count.clamp(min=1)
        mean = self._sum((means * weight[:, None]).sum(0) * cells) / safe  # [C]
        spread = variances + (means - mean) ** 2  # around the common mean
        variance = self._sum((spread * weight[:, None]).sum(0) * cells) / safe
        with torch.no_grad():
            self.num_batches_tracked += 1
            assert self.momentum is not None
            share = self.momentum * (count > 0)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (y * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    def _sum(self, value: Tensor) -> Tensor:
        if self.over_ranks and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return _SumOverRanks.apply(value)  # type: ignore[no-any-return]
        return value


class _SumOverRanks(torch.autograd.Function):
    """The sum over all ranks, and of its gradients too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
