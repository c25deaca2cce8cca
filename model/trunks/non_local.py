"""A non-local block (Wang et al. 2018, arXiv:1711.07971): every place of a feature looks at all others.

Legend: B images, C channels, N = H W places, d = C / 2.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class NonLocal(nn.Module):
    """z = x + W y with y_i = sum_j softmax_j(theta(x_i) . phi(x_j) / sqrt(d)) g(x_j), the embedded Gaussian (eq. 1-6).

    The division by sqrt(d) is the authors' code's, not the paper's. W starts at zero, so that the block is the identity
    at first and can be put into a pretrained body (3.3); they have a batch norm with a scale of zero for that, which
    frozen statistics would keep at zero for ever.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 2  # 3.3
        self.theta, self.phi, self.g = (nn.Conv2d(channels, width, 1) for _ in range(3))
        self.out = nn.Conv2d(width, channels, 1)
        for conv in (self.theta, self.phi, self.g, self.out):
            nn.init.normal_(conv.weight, std=0.01)  # as in the authors' code
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> the same shape."""
        query, key, value = (conv(x).flatten(2).mT[:, None] for conv in (self.theta, self.phi, self.g))  # [B, 1, N, d]
        seen = F.scaled_dot_product_attention(query, key, value)[:, 0]  # [B, N, d]
        return x + self.out(seen.mT.reshape(len(x), -1, *x.shape[2:]))  # type: ignore[no-any-return]
