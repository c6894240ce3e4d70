"""How positions enter: turned into queries and keys, added to the embeddings, or taken from attention's scores.

The tables are fp32 and made on demand for the positions asked for, so that only learned ones are part of a checkpoint.
"""

import math

import torch
from torch import nn

from shearling.models.rope import inverse_frequencies
from shearling.models.spec import LearnedPositionSpec, ModelSpec, RoPESpec


class Position(nn.Module):
    """No positions (arXiv 2305.19466). The others each replace one of the three ways in."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()

    def rotation(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Cosines and sines that turn queries and keys, each (T, K/2)."""
        return None

    def embedding(self, positions_T: torch.Tensor) -> torch.Tensor | None:
        """What is added to the token embeddings, (T, D)."""
        return None

    def bias(self, queries_T: torch.Tensor, keys_S: torch.Tensor) -> torch.Tensor | None:
        """What is added to attention's scores between positions, (H, T, S)."""
        return None


class RotaryPosition(Position):
    """Pairs (i, i + K/2) of queries and keys turn by position · theta^(−2i/K) (RoPE, arXiv 2104.09864).

    Frequencies that are scaled for a longer context: see `shearling.models.rope`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        assert isinstance(spec.position, RoPESpec)
        self.theta = spec.position.theta
        self.head_dim = spec.head_dim
        frequencies, self._factor = inverse_frequencies(spec)
        self._frequencies = torch.from_numpy(frequencies)  # no buffer: they have values in a model without storage too

    def rotation(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the angles position · frequency, times YaRN's factor (1 elsewhere)."""
        angles = positions_T.float()[:, None] * self._frequencies.to(positions_T.device)
        return self._factor * angles.cos(), self._factor * angles.sin()


class LearnedPosition(Position):
    """A learned vector for each position up to max_seq_len (arXiv 1810.04805; GPT-2)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        assert isinstance(spec.position, LearnedPositionSpec)
        self.weight = nn.Parameter(torch.empty(spec.max_seq_len, spec.d_model))

    def embedding(self, positions_T: torch.Tensor) -> torch.Tensor:
        return self.weight[positions_T]


class SinusoidalPosition(Position):
    """sin and cos of position / 10000^(2i/D), interleaved (arXiv 1706.03762, section 3.5)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.d_model = spec.d_model

    def embedding(self, positions_T: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(0, self.d_model, 2, device=positions_T.device, dtype=torch.float32) / self.d_model
        angles = positions_T.float()[:, None] * 10000.0**-exponents
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, : self.d_model]


class ALiBi(Position):
    """Scores lose slope · distance, one slope a head (arXiv 2108.12409); distance counts both ways in an encoder."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.slopes = _slopes(spec.n_heads)

    def bias(self, queries_T: torch.Tensor, keys_S: torch.Tensor) -> torch.Tensor:
        distance_TS = (queries_T[:, None] - keys_S[None, :]).abs()
        return -torch.tensor(self.slopes, device=queries_T.device)[:, None, None] * distance_TS


def _slopes(n_heads: int) -> list[float]:
    """2^(−8i/H) for a power of two; else those of the power below, and every other one of the power above."""
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    return slopes if power == n_heads else slopes + _slopes(2 * power)[::2][: n_heads - power]


def rotate(x_BTHK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x_i, x_{i+K/2}) by its angle; the arithmetic is fp32, the result has the dtype of x."""
    first, second = x_BTHK.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x_BTHK.dtype)


POSITIONS: dict[str, type[Position]] = {
    "rope": RotaryPosition,
    "learned": LearnedPosition,
    "sinusoidal": SinusoidalPosition,
    "alibi": ALiBi,
    "none": Position,
}


def build_position(spec: ModelSpec) -> Position:
    """The position embedding that `spec.position` names."""
    return POSITIONS[spec.position.kind](spec)
