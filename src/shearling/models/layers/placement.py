"""Norm placements: how a sublayer F, its norm N and the residual stream x are joined."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from shearling.models.layers.normalization import build_norm
from shearling.models.spec import ModelSpec


class Placement(nn.Module):
    """One sublayer on the residual stream. The stream (B, T, D) is fp32; the branch computes in the context's dtype."""

    def __init__(self, spec: ModelSpec, branch: nn.Module) -> None:
        super().__init__()
        self.norm = build_norm(spec.norm, spec.d_model)
        self.branch = branch
        self.dropout = spec.dropout

    def f(self, x_BTD: torch.Tensor, dtype: torch.dtype, *context: Any) -> torch.Tensor:
        """F(x) in `dtype`, with dropout on its output while training."""
        return F.dropout(self.branch(x_BTD.to(dtype), *context), self.dropout, self.training)


class PreNorm(Placement):
    """x ← x + F(N(x)) (arXiv 2002.04745)."""

    def forward(self, x_BTD: torch.Tensor, dtype: torch.dtype, *context: Any) -> torch.Tensor:
        return x_BTD + self.f(self.norm(x_BTD), dtype, *context)


PLACEMENTS: dict[str, type[Placement]] = {"pre": PreNorm}


def place(spec: ModelSpec, branch: nn.Module) -> Placement:
    """`branch` on the residual stream, with its norm where `spec.placement` puts it."""
    return PLACEMENTS[spec.placement.kind](spec, branch)
