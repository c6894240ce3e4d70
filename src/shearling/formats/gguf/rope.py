"""Scaled rotations in GGUF: interpolation and YaRN as metadata, LLaMA 3's as a tensor; read as llama.cpp does."""

import math
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import ValidationError

from shearling.errors import UserError
from shearling.formats.gguf.names import ROPE_FACTORS
from shearling.formats.gguf.values import Metadata
from shearling.models.rope import DoubleArray, inverse_frequencies
from shearling.models.spec import (
    LinearScalingSpec,
    Llama3ScalingSpec,
    ModelSpec,
    RoPEScaling,
    RoPESpec,
    YarnScalingSpec,
)
from shearling.quantization import FloatArray

CLOSE = 1e-6
"""Of an unscaled rotation: factors are fp32, and programs round differently."""
PUBLISHED_CONTEXT = 8192
"""LLaMA 3's before it was made longer: the scale of what the factors alone do not tell."""

_TYPE = "llama.rope.scaling.type"
_FACTOR = "llama.rope.scaling.factor"
_OLD_FACTOR = "llama.rope.scale_linear"
_CONTEXT = "llama.rope.scaling.original_context_length"
_ATTENTION = "llama.rope.scaling.attn_factor"
_FAST = "llama.rope.scaling.yarn_beta_fast"
_SLOW = "llama.rope.scaling.yarn_beta_slow"


def rope_factors(spec: ModelSpec) -> FloatArray | None:
    """What each pair's rotation is divided by, float32 (K/2,), where a model has LLaMA 3's scaling; None elsewhere."""
    rope = spec.position
    if not (isinstance(rope, RoPESpec) and isinstance(rope.scaling, Llama3ScalingSpec)):
        return None
    plain = spec.model_copy(update={"position": rope.model_copy(update={"scaling": None})})
    return inverse_frequencies(plain)[0] / inverse_frequencies(spec)[0]


def write_scaling(scaling: RoPEScaling | None) -> dict[str, int | float | str]:
    """The metadata of a scaling: whole numbers are uint32 there, others float32."""
    match scaling:
        case LinearScalingSpec():
            return {_TYPE: "linear", _FACTOR: scaling.factor}
        case Llama3ScalingSpec():  # the tensor says the rest
            return {_CONTEXT: scaling.original_max_seq_len}
        case YarnScalingSpec():
            entries: dict[str, int | float | str] = {
                _TYPE: "yarn",
                _FACTOR: scaling.factor,
                _CONTEXT: scaling.original_max_seq_len,
            }
            if scaling.attention_factor is not None:
                entries[_ATTENTION] = scaling.attention_factor / _paper_factor(scaling.factor)
            return entries
    return {}


def read_scaling(metadata: Metadata, spec: ModelSpec, factors: FloatArray | None) -> dict[str, Any] | None:
    """The options of RoPEScaling that a file means; None where nothing is scaled.

    Args:
        metadata: the file's.
        spec: the model without scaling.
        factors: what each pair's rotation is divided by, (K/2,), where the file has that tensor.

    Raises:
        UserError: a value is wrong, or rotations are scaled in a way that cannot be expressed.
    """
    kind = metadata.text(_TYPE, "linear")
    factor = metadata.number(_FACTOR, metadata.number(_OLD_FACTOR, 0.0)) or 1.0  # llama.cpp takes 0 as none
    scaling: dict[str, Any] | None = None
    if kind == "yarn":
        scaling = _yarn(metadata, spec, factor)
    elif kind not in ("linear", "none"):
        raise metadata.inexpressible(_TYPE, "read are none, linear and yarn")
    elif kind == "linear" and factor != 1:
        scaling = {"kind": "linear", "factor": factor}
    if factors is None or (factors == 1).all():
        return scaling
    if scaling is not None:
        raise UserError(
            f"{metadata.origin}: {ROPE_FACTORS}: cannot be expressed here: the metadata scale rotations too"
        )
    return _llama3(metadata, spec, factors)


def _yarn(metadata: Metadata, spec: ModelSpec, factor: float) -> dict[str, Any]:
    attention = metadata.number(_ATTENTION, 1.0)
    return {
        "kind": "yarn",
        "factor": factor,
        "original_max_seq_len": metadata.number(_CONTEXT, spec.max_seq_len),
        "beta_fast": metadata.number(_FAST, 32.0),
        "beta_slow": metadata.number(_SLOW, 1.0),
        "attention_factor": None if attention == 1 else float(str(np.float32(attention * _paper_factor(factor)))),
    }


def _paper_factor(factor: float) -> float:
    """What llama.cpp multiplies queries and keys by before `attn_factor`: YaRN's own."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def _llama3(metadata: Metadata, spec: ModelSpec, factors: FloatArray) -> dict[str, Any]:
    """LLaMA 3's scaling that gives these factors.

    Its ramp is a line over the frequencies, share = a·f − b, so that two pairs on it tell a and b, and with them the
    two factors times the old context. With fewer pairs on it several lines do, of which the published one is taken.
    """
    context = metadata.number(_CONTEXT, PUBLISHED_CONTEXT)
    usable = factors.shape == (spec.head_dim // 2,) and np.isfinite(factors).all() and factors.min() >= 1
    if usable and context >= 1:
        published = (context / (2 * math.pi * 3), 1 / 3)  # low_freq_factor 1, high_freq_factor 4
        ramps = _ramps(spec, factors.astype(np.float64))
        for slope, shift in (published, *ramps):
            width = context / (2 * math.pi * slope)
            for digits in (4, 17):  # the round numbers that were meant, if they give the same
                low, high, factor = (
                    float(f"{number:.{digits}g}") for number in (shift * width, (shift + 1) * width, factors.max())
                )
                scaling = {
                    "kind": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_seq_len": context,
                }
                if _gives(scaling, spec, factors):
                    return scaling
    raise UserError(f"{metadata.origin}: {ROPE_FACTORS}: cannot be expressed here: no scaling of LLaMA 3's gives it")


def _gives(scaling: dict[str, Any], spec: ModelSpec, factors: FloatArray) -> bool:
    try:
        rope = RoPESpec.model_validate({**spec.position.model_dump(), "scaling": scaling})
    except ValidationError:  # a line that is no ramp
        return False
    made = rope_factors(spec.model_copy(update={"position": rope}))
    return made is not None and np.allclose(1 / made, 1 / factors, rtol=0, atol=CLOSE)


def _ramps(spec: ModelSpec, factors: DoubleArray) -> list[tuple[float, float]]:
    """Slope and shift of the lines that may be the ramp, the likeliest first."""
    assert isinstance(spec.position, RoPESpec), "read as rotary"
    frequencies = spec.position.theta ** -(np.arange(0, spec.head_dim, 2) / spec.head_dim)
    largest = factors.max()
    shares = (1 / factors - 1 / largest) / (1 - 1 / largest)
    fast, slow = np.flatnonzero(shares > 1 - CLOSE), np.flatnonzero(shares < CLOSE)
    on_ramp = np.setdiff1d(np.arange(len(shares)), (*fast, *slow))
    pairs = [(on_ramp[0], on_ramp[-1])] if len(on_ramp) > 1 else combinations([*fast[-1:], *on_ramp, *slow[:1]], 2)
    lines = []
    for one, other in pairs:
        slope = (shares[one] - shares[other]) / (frequencies[one] - frequencies[other])
        lines.append((slope, slope * frequencies[one] - shares[one]))
    # With one pair on the ramp, of the lines through it and an end the steeper one passes both ends.
    return sorted((line for line in lines if 0 < line[0] < math.inf), reverse=True)
