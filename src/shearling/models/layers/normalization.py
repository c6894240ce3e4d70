"""Norm types. A norm maps (..., D) to (..., D), with statistics in its gain's fp32, and keeps its input's dtype."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from shearling.models.spec import LayerNormSpec, NormSpec, RMSNormSpec


class RMSNorm(nn.Module):
    """g · x / sqrt(mean(x²) + eps), g starting at 1 (arXiv 1910.07467)."""

    def __init__(self, spec: RMSNormSpec, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """g · (x − mean(x)) / sqrt(var(x) + eps) + b with the biased variance; g starts at 1, b at 0 (arXiv 1607.06450)."""

    def __init__(self, spec: LayerNormSpec, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if spec.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


NORMS: dict[str, Callable[[Any, int], nn.Module]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def build_norm(spec: NormSpec, dim: int) -> nn.Module:
    """The norm that `spec` names, over the last dimension of size `dim`."""
    return NORMS[spec.kind](spec, dim)
