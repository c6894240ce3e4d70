"""Norm types. A norm maps (..., D) to (..., D), with statistics in fp32, and keeps its input's dtype.

Gains are called `weight`; a placement that scales a norm's gain at first (`lns_gain`) finds them by that name.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from shearling.models import norm_spec as specs
from shearling.models.custom import construct, load_class


class RMSNorm(nn.Module):
    """g ⊙ x / sqrt(mean(x²) + eps), g at first 1 (arXiv 1910.07467)."""

    def __init__(self, spec: specs.RMSNormSpec, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps).to(x.dtype)


class PartialRMSNorm(nn.Module):
    """g ⊙ x / sqrt(mean(x₁² … xₖ²) + eps) with k = int(D · p), at least 1 (arXiv 1910.07467, section 4)."""

    def __init__(self, spec: specs.PartialRMSNormSpec, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.k = max(1, int(dim * spec.p))
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        mean_square = h[..., : self.k].square().mean(-1, keepdim=True)
        return (self.weight * h * torch.rsqrt(mean_square + self.eps)).to(x.dtype)


class CRMSNorm(nn.Module):
    """x / sqrt((Σx² + (Σx)²) / (D + 1) + eps): RMSNorm of the zero-mean vector (x, −Σx) of D + 1 (arXiv 2305.14858)."""

    def __init__(self, spec: specs.CRMSNormSpec, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        squares = h.square().sum(-1, keepdim=True) + h.sum(-1, keepdim=True).square()
        return (h * torch.rsqrt(squares / (self.dim + 1) + self.eps)).to(x.dtype)


class SimpleRMSNorm(nn.Module):
    """sqrt(D) · x / max(‖x‖, eps) (arXiv 2307.14995)."""

    def __init__(self, spec: specs.SimpleRMSNormSpec, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.gain = math.sqrt(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.gain * F.normalize(x.float(), dim=-1, eps=self.eps)).to(x.dtype)


class ScaleNorm(nn.Module):
    """g · x / max(‖x‖, eps), the scalar g at first sqrt(D) (arXiv 1910.05895)."""

    def __init__(self, spec: specs.ScaleNormSpec, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.weight = nn.Parameter(torch.tensor(math.sqrt(dim)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight * F.normalize(x.float(), dim=-1, eps=self.eps)).to(x.dtype)


class SSNorm(nn.Module):
    """s · x / sqrt(mean(x²) + eps), the scalar s at first 1 (arXiv 2506.19697)."""

    def __init__(self, spec: specs.SSNormSpec, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.shape = (dim,)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight * F.rms_norm(x.float(), self.shape, None, self.eps)).to(x.dtype)


class LayerNorm(nn.Module):
    """g ⊙ (x − mean(x)) / sqrt(var(x) + eps) + b, the variance biased; g at first 1, b 0 (arXiv 1607.06450)."""

    def __init__(self, spec: specs.LayerNormSpec, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if spec.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


class NonparametricLayerNorm(nn.Module):
    """(x − mean(x)) / sqrt(var(x) + eps) (arXiv 2402.00838)."""

    def __init__(self, spec: specs.NonparametricLayerNormSpec, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.shape = (dim,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.float(), self.shape, None, None, self.eps).to(x.dtype)


class DyT(nn.Module):
    """g ⊙ tanh(α x) + b; g at first 1, b 0, the scalar α as the spec says (arXiv 2503.10622)."""

    def __init__(self, spec: specs.DyTSpec, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(spec.alpha))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if spec.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.weight * torch.tanh(self.alpha * x.float())
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class Derf(nn.Module):
    """g ⊙ erf(α x + s) + b; g at first 1, b 0, the scalars α and s as the spec says (arXiv 2512.10938)."""

    def __init__(self, spec: specs.DerfSpec, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(spec.alpha))
        self.shift = nn.Parameter(torch.tensor(spec.shift))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight * torch.erf(self.alpha * x.float() + self.shift) + self.bias).to(x.dtype)


class NoNorm(nn.Module):
    """x."""

    def __init__(self, spec: specs.NoNormSpec, dim: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class StoredGain(nn.Module):
    """x ⊙ g, with g = init / stored · weight and weight at first `stored` (arXiv 2410.01131, section 2.5).

    Adam moves each weight by about the learning rate; the smaller `stored`, the faster the gain changes.
    """

    def __init__(self, shape: tuple[int, ...], init: float, stored: float) -> None:
        super().__init__()
        self.factor = init / stored
        self.weight = nn.Parameter(torch.full(shape, stored))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.factor * self.weight * x).to(x.dtype)


def unit(x: torch.Tensor) -> torch.Tensor:
    """x / ‖x‖ over the last dimension, in fp32 and back."""
    return F.normalize(x.float(), dim=-1).to(x.dtype)


NORMS: dict[str, Callable[[Any, int], nn.Module]] = {
    "rmsnorm": RMSNorm,
    "prmsnorm": PartialRMSNorm,
    "crmsnorm": CRMSNorm,
    "simplermsnorm": SimpleRMSNorm,
    "scalenorm": ScaleNorm,
    "ssnorm": SSNorm,
    "layernorm": LayerNorm,
    "nonparametric_layernorm": NonparametricLayerNorm,
    "dyt": DyT,
    "derf": Derf,
    "none": NoNorm,
}
"""By kind: made with (spec, dim)."""


def build_norm(spec: specs.NormSpec, dim: int) -> nn.Module:
    """The norm that `spec` names, over the last dimension of size `dim`.

    Raises:
        UserError: a user's own class is not found, or does not take its options.
    """
    if isinstance(spec, specs.CustomNormSpec):
        return construct(load_class(spec.kind, nn.Module, "model.norm"), "model.norm", dim, **spec.options)
    return NORMS[spec.kind](spec, dim)
