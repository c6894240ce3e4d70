"""How positions enter: rotary embedding of queries and keys."""

import torch
from torch import nn

from shearling.models.spec import RoPESpec


class RotaryPosition(nn.Module):
    """RoPE (arXiv 2104.09864) in real arithmetic, with Hugging Face's layout: dimension i turns with i + K/2.

    The tables are fp32 and made on demand for the positions asked for, so that they are part of no checkpoint.
    """

    def __init__(self, spec: RoPESpec, head_dim: int) -> None:
        super().__init__()
        self.theta = spec.theta
        self.head_dim = head_dim

    def tables(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each (T, K/2) in fp32, of the angles position · theta^(−2i/K)."""
        exponents = torch.arange(0, self.head_dim, 2, device=positions_T.device, dtype=torch.float32) / self.head_dim
        angles = positions_T.float()[:, None] * self.theta**-exponents
        return angles.cos(), angles.sin()


def rotate(x_BTHK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x_i, x_{i+K/2}) by its angle; the arithmetic is fp32, the result has the dtype of x."""
    first, second = x_BTHK.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x_BTHK.dtype)


POSITIONS = {"rope": RotaryPosition}


def build_position(spec: RoPESpec, head_dim: int) -> RotaryPosition:
    """The position embedding that `spec` names."""
    return POSITIONS[spec.kind](spec, head_dim)
