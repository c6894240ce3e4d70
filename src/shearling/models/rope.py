"""How fast the pairs of a head turn under rotary positions, and how that is slowed for longer contexts. No torch.

PyTorch's model and the engines all take their numbers from here.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shearling.models.spec import LinearScalingSpec, Llama3ScalingSpec, ModelSpec, RoPESpec, YarnScalingSpec

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]


def inverse_frequencies(spec: ModelSpec) -> tuple[FloatArray, float]:
    """Radians a position that pair i turns by, and the factor on all cosines and sines.

    Without scaling theta^(−2i/K) and 1 (arXiv 2104.09864). Computed in float64 and rounded once.

    Returns:
        float32 (K/2,), and the factor, which is 1 except with YaRN.
    """
    rope = spec.position
    assert isinstance(rope, RoPESpec), "only rotary positions turn"
    plain = rope.theta ** -(np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim)
    if rope.scaling is None:
        return plain.astype(np.float32), 1.0
    scaled, factor = SCALINGS[rope.scaling.kind](rope.scaling, plain, rope.theta)
    return scaled.astype(np.float32), factor


def linear(spec: LinearScalingSpec, plain: DoubleArray, theta: float) -> tuple[DoubleArray, float]:
    """f / factor (arXiv 2306.15595)."""
    return plain / spec.factor, 1.0


def llama3(spec: Llama3ScalingSpec, plain: DoubleArray, theta: float) -> tuple[DoubleArray, float]:
    """f · (s + (1 − s) / factor), s rising from 0 to 1 between low and high_freq_factor turns in the old context.

    As `apply_scaling` in github.com/meta-llama/llama-models, models/llama3/model.py.
    """
    turns = spec.original_max_seq_len * plain / (2 * math.pi)
    share = np.clip((turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor), 0, 1)
    return plain * (share + (1 - share) / spec.factor), 1.0


def yarn(spec: YarnScalingSpec, plain: DoubleArray, theta: float) -> tuple[DoubleArray, float]:
    """f · (1 − r + r / factor), the ramp r from 0 to 1 over the pairs between beta_fast and beta_slow turns.

    arXiv 2309.00071, section 3.2, with the ramp linear in the pair's number, from one whole number to another, and
    within the head, as in github.com/jquesnelle/yarn, which all who run such models follow. The paper's factor on the
    scores (section 3.4) is there the square of one on cosines and sines.
    """
    K = 2 * len(plain)

    def pair(turns: float) -> float:
        """The number of the pair that turns so many times in the old context."""
        return K * math.log(spec.original_max_seq_len / (2 * math.pi * turns)) / (2 * math.log(theta))

    low = max(math.floor(pair(spec.beta_fast)), 0)
    high = min(math.ceil(pair(spec.beta_slow)), K - 1)
    width = high - low or 0.001  # a step
    ramp = np.clip((np.arange(K // 2) - low) / width, 0, 1)
    factor = spec.attention_factor
    if factor is None:
        factor = 0.1 * math.log(spec.factor) + 1 if spec.factor > 1 else 1.0
    return plain * (1 - ramp + ramp / spec.factor), factor


SCALINGS: dict[str, Callable[[Any, DoubleArray, float], tuple[DoubleArray, float]]] = {
    "linear": linear,
    "llama3": llama3,
    "yarn": yarn,
}
"""By kind: from the options, the unscaled frequencies and theta."""
