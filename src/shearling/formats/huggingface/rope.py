"""Rotary options as `transformers` has them in config.json, and as we have them."""

import math
from collections.abc import Mapping
from typing import Any

from shearling.formats.huggingface.options import Options
from shearling.models.spec import RoPESpec

SCALINGS: Mapping[str, Mapping[str, str]] = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_seq_len",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_max_seq_len",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    },
}
"""By rope_type, which is our kind: their key, and our option below `position.scaling`."""

COMPUTED_FROM = ("mscale", "mscale_all_dim")
KNOWN = {"type", "rope_type", "rope_theta", "partial_rotary_factor", "truncate", "finetuned", *COMPUTED_FROM}
SCALING_KEYS = {key for keys in SCALINGS.values() for key in keys}


def flat_rope(config: Options) -> Options:
    """A config with its rotary options beside the others, and with all that they leave to be computed.

    They lie in `rope_parameters`; before version 5, in `rope_scaling`, which goes first, and beside it. A key that
    nobody knows comes out as `unknown_rope_option`.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope: Options = given if isinstance(given, dict) else {"rope_type": given}
    flat = {key: value for key, value in config.items() if key not in SCALING_KEYS} | {
        key: rope[key] for key in ("rope_theta", "partial_rotary_factor", "truncate") if key in rope
    }
    flat["rope_type"] = kind = rope.get("rope_type", rope.get("type", "default"))
    flat["unknown_rope_option"] = next(
        (key for key, value in rope.items() if value is not None and key not in KNOWN | SCALING_KEYS), None
    )
    if isinstance(kind, str) and kind in SCALINGS:
        flat |= {key: rope[key] for key in SCALINGS[kind] if rope.get(key) is not None}
        if "original_max_position_embeddings" in SCALINGS[kind]:
            flat["original_max_position_embeddings"] = _original_length(config, rope)
        if kind == "yarn":
            flat = _yarn(config, rope) | flat
    return flat


def _original_length(config: Options, rope: Options) -> Any:
    beside = config.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
    return config.get("max_position_embeddings") if beside is None else beside


def _yarn(config: Options, rope: Options) -> Options:
    """What stands for YaRN's options where they are left out."""
    flat: Options = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None}
    lengths = config.get("max_position_embeddings"), _original_length(config, rope)
    if all(isinstance(length, int) and length > 0 for length in lengths):
        flat["factor"] = lengths[0] / lengths[1]
    factor, *scales = (rope.get(key) for key in ("factor", *COMPUTED_FROM))
    if all(scales):
        flat["attention_factor"] = _attention_factor(factor or flat.get("factor"), *scales)
    return flat


def _attention_factor(factor: Any, mscale: Any, mscale_all_dim: Any) -> Any:
    """DeepSeek's: of two lengths that the paper's formula gives, times mscale and times mscale_all_dim."""
    numbers = (factor, mscale, mscale_all_dim)
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        return numbers  # no number either: refused as one
    logarithm = 0.1 * math.log(max(factor, 1))
    return (mscale * logarithm + 1) / (mscale_all_dim * logarithm + 1)


def rope_options(rope: RoPESpec) -> Options:
    """What config.json says of rotary positions, for version 5 of `transformers` and for those before."""
    scaling: Options = {}
    if rope.scaling is not None:
        ours = {key: getattr(rope.scaling, option) for key, option in SCALINGS[rope.scaling.kind].items()}
        scaling = {"rope_type": rope.scaling.kind, **{key: value for key, value in ours.items() if value is not None}}
    return {
        "rope_theta": rope.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope.theta, **scaling},
        "rope_scaling": scaling or None,
    }
