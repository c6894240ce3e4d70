"""Feed-forward sublayers: (B, T, D) to (B, T, D) through a hidden width F."""

import torch
import torch.nn.functional as F
from torch import nn

from shearling.models.layers.attention import Context
from shearling.models.layers.linear import Linear
from shearling.models.layers.normalization import StoredGain, build_norm
from shearling.models.spec import ModelSpec


class FeedForward(nn.Module):
    """Up to the hidden width and down again.

    Args:
        inside: what a placement asks for in here: `hidden_norm` (a norm before the projection down), `unit` (gains on
            what enters the activation).
    """

    gated = False

    def __init__(self, spec: ModelSpec, inside: frozenset[str] = frozenset()) -> None:
        super().__init__()
        D, width = spec.d_model, spec.intermediate_size
        self.gate_proj = Linear(D, width, bias=spec.feedforward_bias) if self.gated else None
        self.up_proj = Linear(D, width, bias=spec.feedforward_bias)
        self.down_proj = Linear(width, D, bias=spec.feedforward_bias)
        self.hidden_norm = build_norm(spec.norm, width) if "hidden_norm" in inside else None
        scaled = "unit" in inside
        self.gate_gain = StoredGain((width,), D**0.5, 1.0) if scaled and self.gated else None
        self.up_gain = StoredGain((width,), 1.0 if self.gated else D**0.5, 1.0) if scaled else None

    def hidden(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Hidden values (B, T, F) before the projection down."""
        raise NotImplementedError

    def forward(self, x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
        h_BTF = self.hidden(x_BTD)
        if self.hidden_norm is not None:
            h_BTF = self.hidden_norm(h_BTF)
        return self.down_proj(h_BTF)

    def up(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """W_up x, with its gain where it has one."""
        u_BTF = self.up_proj(x_BTD)
        return u_BTF if self.up_gain is None else self.up_gain(u_BTF)


class SwiGLU(FeedForward):
    """W_down (silu(W_gate x) ⊙ W_up x) (arXiv 2002.05202)."""

    gated = True

    def hidden(self, x_BTD: torch.Tensor) -> torch.Tensor:
        assert self.gate_proj is not None
        gate_BTF = self.gate_proj(x_BTD)
        return F.silu(gate_BTF if self.gate_gain is None else self.gate_gain(gate_BTF)) * self.up(x_BTD)


class GELU(FeedForward):
    """W_down gelu(W_up x), with the tanh form of GELU that GPT-2 uses (arXiv 1606.08415)."""

    def hidden(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.up(x_BTD), approximate="tanh")


class ExactGELU(FeedForward):
    """W_down gelu(W_up x), with GELU itself, x · Φ(x), as in BERT (arXiv 1606.08415)."""

    def hidden(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.up(x_BTD))


class SquaredReLU(FeedForward):
    """W_down relu(W_up x)² (arXiv 2109.08668)."""

    def hidden(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return F.relu(self.up(x_BTD)).square()


FEEDFORWARDS: dict[str, type[FeedForward]] = {
    "swiglu": SwiGLU,
    "gelu": GELU,
    "gelu_erf": ExactGELU,
    "relu2": SquaredReLU,
}


def build_feedforward(spec: ModelSpec, inside: frozenset[str] = frozenset()) -> FeedForward:
    """The feed-forward sublayer that `spec.activation` names."""
    return FEEDFORWARDS[spec.activation](spec, inside)
