"""Feed-forward sublayers: (B, T, D) to (B, T, D) through a hidden width F."""

import torch
import torch.nn.functional as F
from torch import nn

from shearling.models.layers.linear import Linear
from shearling.models.spec import ModelSpec


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) ⊙ W_up x) (arXiv 2002.05202)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_proj = Linear(spec.d_model, spec.intermediate_size, bias=spec.feedforward_bias)
        self.up_proj = Linear(spec.d_model, spec.intermediate_size, bias=spec.feedforward_bias)
        self.down_proj = Linear(spec.intermediate_size, spec.d_model, bias=spec.feedforward_bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class GELU(nn.Module):
    """W_down gelu(W_up x), with the tanh form of GELU that GPT-2 uses (arXiv 1606.08415)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.up_proj = Linear(spec.d_model, spec.intermediate_size, bias=spec.feedforward_bias)
        self.down_proj = Linear(spec.intermediate_size, spec.d_model, bias=spec.feedforward_bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.gelu(self.up_proj(x_BTD), approximate="tanh"))


FEEDFORWARDS: dict[str, type[nn.Module]] = {"swiglu": SwiGLU, "gelu": GELU}


def build_feedforward(spec: ModelSpec) -> nn.Module:
    """The feed-forward sublayer that `spec.activation` names."""
    return FEEDFORWARDS[spec.activation](spec)
