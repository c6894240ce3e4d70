"""A norm of one's own: a class in a file, named in a config as `norm: {kind: examples.norms:L1Norm}`."""

import torch
from torch import nn


class L1Norm(nn.Module):
    """g ⊙ x / (mean(|x|) + eps): a norm that large values sway less than RMSNorm (arXiv 1803.01814, section 4)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        return (self.weight * h / (h.abs().mean(-1, keepdim=True) + self.eps)).to(x.dtype)
