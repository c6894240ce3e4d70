"""LLaMA's shape as GGUF's metadata, both ways."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shearling.errors import UserError
from shearling.formats.gguf.rope import read_scaling, write_scaling
from shearling.formats.gguf.values import MEND, Metadata
from shearling.formats.specification import specification
from shearling.models.rope import inverse_frequencies
from shearling.models.spec import ModelSpec, RoPESpec
from shearling.quantization import FloatArray

ARCHITECTURE = "llama"

_SIZES = {
    "llama.embedding_length": "d_model",
    "llama.block_count": "n_layers",
    "llama.attention.head_count": "n_heads",
    "llama.attention.head_count_kv": "n_kv_heads",
    "llama.feed_forward_length": "intermediate_size",
    "llama.context_length": "max_seq_len",
    "llama.attention.sliding_window": "sliding_window",
}
_OPTIONAL = ("llama.attention.head_count_kv", "llama.attention.sliding_window")
_EPSILON = "llama.attention.layer_norm_rms_epsilon"
_THETA = "llama.rope.freq_base"
_HEAD_SIZES = ("llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length")

_WORDS = {ours: key for key, ours in _SIZES.items()} | {"norm.eps": _EPSILON, "position.theta": _THETA}

_NEUTRAL: dict[str, tuple[float, ...]] = {
    "llama.expert_count": (0,),
    "llama.use_parallel_residual": (False,),
    "llama.attention.causal": (True,),
    "llama.attention.clamp_kqv": (0,),
    "llama.attention.max_alibi_bias": (0,),
    "llama.attention.scale": (0,),
    "llama.logit_scale": (0, 1),
    "llama.residual_scale": (0, 1),
    "llama.embedding_scale": (0, 1),
    "llama.attn_logit_softcapping": (0,),
    "llama.final_logit_softcapping": (0,),
}
"""What changes LLaMA's graph, and the values with which it does not."""


def read_spec(metadata: Metadata, of_tensors: Mapping[str, Any], rope_factors: FloatArray | None) -> ModelSpec:
    """The architecture that a file's metadata describes.

    Args:
        metadata: the file's.
        of_tensors: options of ModelSpec that its tensors decide.
        rope_factors: what each pair's rotation is divided by, (K/2,), where the file says so.

    Raises:
        UserError: a value is missing or wrong, or says what our models cannot.
    """
    for key, neutral in _NEUTRAL.items():
        value = metadata.values.get(key, neutral[0])
        if isinstance(value, np.ndarray) or value not in neutral:
            raise metadata.inexpressible(key, "read are dense LLaMA models")
    if metadata.number("split.count", 1) > 1:
        raise metadata.inexpressible("split.count", "merge the parts with llama.cpp's `llama-gguf-split --merge`")
    given = [key for key in _SIZES if key in metadata.values or key not in _OPTIONAL]
    sizes = {_SIZES[key]: metadata.number(key) for key in given}
    position = {"kind": "rope", "theta": metadata.number(_THETA, 10000.0)}
    flat = {
        **sizes,
        **of_tensors,
        "sliding_window": sizes.get("sliding_window") or None,
        "norm": {"kind": "rmsnorm", "eps": metadata.number(_EPSILON)},
    }
    spec = specification({**flat, "position": position}, _WORDS, metadata.origin, MEND)
    for key in _HEAD_SIZES:
        if metadata.number(key, spec.head_dim) != spec.head_dim:
            raise metadata.inexpressible(
                key, f"all heads together are as wide as the model, that is {spec.head_dim} each"
            )
    with np.errstate(all="ignore"):  # what is not finite is refused below
        scaling = read_scaling(metadata, spec, rope_factors)
        if scaling:
            scaled = {**flat, "position": {**position, "scaling": scaling}}
            spec = specification(scaled, _WORDS, metadata.origin, MEND)
        frequencies, factor = inverse_frequencies(spec)
    if not (np.isfinite(frequencies).all() and np.isfinite(factor)):
        raise UserError(f"{metadata.origin}: {_THETA}: rotations of this base and scaling are no numbers")
    return spec


def write_spec(spec: ModelSpec) -> dict[str, int | float | str]:
    """The metadata that describes an architecture of LLaMA's graph: whole numbers are uint32 there, others float32."""
    assert isinstance(spec.position, RoPESpec), "LLaMA's graph has rotary positions"
    options = spec.model_dump()
    options["n_kv_heads"] = spec.kv_heads
    return {
        "llama.vocab_size": spec.vocab_size,
        **{key: options[ours] for key, ours in _SIZES.items() if ours != "sliding_window"},
        _EPSILON: spec.norm.eps,  # type: ignore[union-attr]  # RMSNorm's
        _THETA: spec.position.theta,
        "llama.rope.dimension_count": spec.head_dim,
        **write_scaling(spec.position.scaling),
    }
