"""Where proposals come from: the RPN finds them, or they come with the batch, which is Fast R-CNN.

Legend: B images, A anchors an image, P proposals.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from model.trunks.trunk import Pyramid
from model.types import Batch, Losses, Proposals, Targets


class Proposed(NamedTuple):
    """Proposals of a batch, and how they learn."""

    proposals: Proposals
    anchors: int  # A, that are sampled for the losses; 0 where nothing is
    losses: Callable[[Targets, Tensor], Losses]  # (targets, noise float32 [B, A] in [0, 1)) -> losses


class External(nn.Module):
    """Proposals of another system, read with the pictures (Fast R-CNN 2). Nothing of it learns."""

    def look(self, pyramid: Pyramid, padded_size: tuple[int, int], batch: Batch) -> Proposed:
        """Those of the batch.

        Raises:
            ValueError: it has none.
        """
        if batch.proposals is None:
            raise ValueError(
                "a model without an RPN needs batch.proposals, got None; shard with --proposals, or set model.rpn"
            )
        return Proposed(batch.proposals, 0, lambda _targets, _noise: {})
