"""Whether what was written is the model: each number of its weights, then logits, then perplexity."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from shearling.engine.session import Engine
from shearling.errors import UserError
from shearling.experiments.convert.tokenizer import same_tokens
from shearling.formats import Checkpoint, StoredTensor
from shearling.formats.pages import PagesHeld
from shearling.models.rope import inverse_frequencies
from shearling.models.spec import ModelSpec, RoPESpec
from shearling.quantization import Codec, FloatArray, Parts

EngineFactory = Callable[[Checkpoint], Engine]

TOKENS = 64
LARGEST_DIFFERENCE = 1e-3
"""Of logits where no weight was rounded, relative to the largest of the source's: only the order of sums differs."""

NAMES_SHOWN = 3

GRAPH = (
    "arch", "d_model", "n_layers", "n_heads", "kv_heads", "intermediate_size", "vocab_size", "max_seq_len",
    "activation", "norm", "placement", "qk_norm", "embedding_norm", "final_norm", "position", "sliding_window",
    "attention_bias", "feedforward_bias", "head", "tie_embeddings", "learned_embedding_scale",
)  # fmt: skip
"""What of a specification the result must have kept; the rest matters to training alone."""


class Difference(NamedTuple):
    """How far two models' logits are apart.

    Attributes:
        largest: absolute difference.
        scale: the largest absolute logit of the first model.
        tokens: compared, at each of them all logits.
    """

    largest: float
    scale: float
    tokens: int


def check_kept(source: Checkpoint, result: Checkpoint) -> None:
    """Refuses a result that describes another model than its source.

    Raises:
        UserError: an option differs, a text's tokens, or whether it begins with BOS.
    """
    changed = [option for option in GRAPH if not _alike(_option(source.spec, option), _option(result.spec, option))]
    if changed:
        raise UserError(f"{result.origin}: read back, its {', '.join(changed)} are not the source's: this format "
                        "cannot hold the model")  # fmt: skip
    if not (source.tokenizer and result.tokenizer):
        return
    if source.begins_with_bos != result.begins_with_bos:
        how = "with" if result.begins_with_bos else "without"
        raise UserError(f"{result.origin}: read back, its texts begin {how} BOS: this format cannot hold the model")
    if not same_tokens(source.tokenizer, result.tokenizer):
        raise UserError(f"{result.origin}: read back, its tokenizer gives other tokens: this format cannot hold it")


def _option(spec: ModelSpec, name: str) -> Any:
    """An option as plain data; rotations as their frequencies, for which there can be several words."""
    value = getattr(spec, name)
    if isinstance(value, RoPESpec):
        frequencies, length = inverse_frequencies(spec)
        return {str(pair): frequency for pair, frequency in enumerate(frequencies.tolist())} | {"length": length}
    return value.model_dump() if isinstance(value, BaseModel) else value


def _alike(one: Any, other: Any) -> bool:
    """Equal; floats to within what single precision keeps."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def check_finite(source: Checkpoint, progress: Callable[[int], None]) -> None:
    """Refuses a model some of whose numbers are NaN or infinite: whatever it is written as, it computes nothing.

    Of a quantized matrix the scales are looked at, as integers are finite.

    Raises:
        UserError: there are such numbers; the tensors are named.
    """
    held = PagesHeld(source.tensors.values())
    strange = []
    for name, stored in source.tensors.items():
        if not all(_is_finite(stored.codec, parts) for parts in stored.encoded(stored.codec)):
            strange.append(name)
        held.count(stored.nbytes)
        progress(stored.nbytes)
    if strange:
        more = f" and {len(strange) - NAMES_SHOWN} more" if len(strange) > NAMES_SHOWN else ""
        raise UserError(
            f"{source.origin}: NaN or infinite numbers in {', '.join(strange[:NAMES_SHOWN])}{more}: the model is "
            "damaged: fetch it again, or take a checkpoint from before"
        )


def _is_finite(codec: Codec, parts: Parts) -> bool:
    return all(np.isfinite(numbers).all() for numbers in codec.float_fields(parts) or (codec.decode(parts),))


def check_weights(source: Checkpoint, result: Checkpoint, progress: Callable[[int], None]) -> bool:
    """Compare every number of the result with the source's under the codec that the result has it in.

    Returns:
        Whether no number was rounded on the way.

    Raises:
        UserError: one differs, or a tensor is missing.
    """
    if missing := sorted(source.tensors.keys() ^ result.tensors.keys()):
        raise UserError(f"{result.origin}: read back, {missing[0]} is in one of the two only ({len(missing)} such)")
    held = [PagesHeld(checkpoint.tensors.values()) for checkpoint in (source, result)]
    exact = True
    for name, stored in result.tensors.items():
        original = source.in_rotary(result.rotary, name)
        if original.shape != stored.shape or not _equal(original, stored):
            raise UserError(f"{result.origin}: read back, {name} is not what was written: the disk may be failing")
        exact = exact and _holds_all(original, stored)
        for pages, tensor in zip(held, (original, stored), strict=True):
            pages.count(tensor.nbytes)
        progress(stored.nbytes)
    return exact


def _equal(original: StoredTensor, stored: StoredTensor) -> bool:
    both = zip(original.encoded(stored.codec), stored.encoded(stored.codec), strict=True)
    return all(_same(a, b) for mine, theirs in both for a, b in zip(mine, theirs, strict=True))


def _same(a: FloatArray, b: FloatArray) -> bool:
    """Bit for bit, so that a NaN is itself."""
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def _holds_all(original: StoredTensor, stored: StoredTensor) -> bool:
    own = (original.codec.name, original.codec.group) == (stored.codec.name, stored.codec.group)
    return own or stored.codec.name == "f32"


def compare_logits(source: Checkpoint, result: Checkpoint, engine: EngineFactory) -> Difference:
    """How far the logits behind fixed tokens are apart.

    Raises:
        UserError: the source's or the result's are not finite.
    """
    n_tokens = min(TOKENS, source.spec.max_seq_len)
    tokens = np.random.default_rng(0).integers(0, source.spec.vocab_size, n_tokens).tolist()
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        ours, theirs = (_logits(checkpoint, tokens, engine) for checkpoint in (source, result))
    if not np.isfinite(ours).all():
        raise UserError(f"{source.origin}: its logits are not finite, though its weights are: their products are "
                        "beyond fp32: take a checkpoint from before")  # fmt: skip
    if not np.isfinite(theirs).all():
        raise UserError(f"{result.origin}: its logits are not finite, as a weight is too large for this type: "
                        "take bf16")  # fmt: skip
    return Difference(float(np.abs(theirs - ours).max()), float(np.abs(ours).max()), n_tokens)


def _logits(checkpoint: Checkpoint, tokens: Sequence[int], engine: EngineFactory) -> FloatArray:
    """Logits (T, V), or hidden states of a model without a head. What is beyond LLaMA's graph runs in PyTorch."""
    if not checkpoint.spec.beyond_llama():
        return engine(checkpoint).session().feed_for_all_logits(tokens)
    import torch

    from shearling.formats.in_torch import load_transformer

    model = load_transformer(checkpoint)
    with torch.no_grad():
        hidden_BTD = model(torch.tensor([tokens]))
        return (model.logits(hidden_BTD) if checkpoint.spec.head else hidden_BTD)[0].numpy()
