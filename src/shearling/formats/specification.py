"""From what a foreign header says to a ModelSpec, and the parameters of such a model, without making it. No torch."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from shearling.errors import UserError
from shearling.models.norm_spec import LayerNormSpec
from shearling.models.spec import ModelSpec

Named = Iterator[tuple[str, tuple[int, ...]]]


def specification(options: Mapping[str, Any], words: Mapping[str, str], origin: str, mend: str = "") -> ModelSpec:
    """The specification with these options, none of them converted: 1.0 is no whole number, true is no 1.

    Args:
        options: as in a config, by our names.
        words: by our options, with dots where that tells two apart, what the header calls them, for messages.
        origin: the header's file.
        mend: what its user can do about it.

    Raises:
        UserError: the first of them that does not fit, in the header's words.
    """
    try:  # strict and from JSON, as all configs are
        return ModelSpec.model_validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        text = _in_their_words(error, words)
    raise UserError(": ".join(part for part in (origin, text, mend) if part))


def _in_their_words(error: ValidationError, words: Mapping[str, str]) -> str:
    """The first thing that does not fit."""
    finding = error.errors(include_url=False)[0]
    place = [str(part) for part in finding["loc"]]
    if finding["type"] == "value_error":  # of several options; its text names them
        last = {ours.rpartition(".")[2]: theirs for ours, theirs in words.items()}
        return re.sub(r"\w+", lambda word: last.get(word[0], word[0]), str(finding["ctx"]["error"]))
    # Between a section and its key stands the section's kind.
    fitting = (
        theirs
        for ours, theirs in words.items()
        if ours.rpartition(".")[2] == place[-1] and {*ours.split(".")} <= {*place}
    )
    message = finding["msg"].replace("Input should", "should")
    return f"{next(fitting, '.'.join(place))}: {message}, not {shown(finding['input'])}"


def shown(value: Any) -> str:
    """A value as JSON, cut to a length that messages can take."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a model in the graph of LLaMA, GPT-2 or BERT, by their names in its state_dict.

    Queries, keys and values of a layer come one after the other.
    """
    return dict(_parameters(spec))


def _parameters(spec: ModelSpec) -> Named:
    d_model, V = spec.d_model, spec.vocab_size
    yield "embed.weight", (V, d_model)
    if spec.position.kind == "learned":
        yield "position.weight", (spec.max_seq_len, d_model)
    if spec.embedding_norm:
        yield from _norm(spec, "embed_norm")
    for layer in range(spec.n_layers):
        yield from _block(spec, f"layers.{layer}")
    if spec.final_norm:
        yield from _norm(spec, "final_norm")
    if spec.head and not spec.causal:
        yield from _linear("transform.dense_proj", d_model, d_model, bias=True)
        yield from _norm(spec, "transform.norm")
        yield "head_bias", (V,)
    if not spec.tie_embeddings:
        yield "head.weight", (V, d_model)


def _block(spec: ModelSpec, name: str) -> Named:
    d_model, hidden, kv_width = spec.d_model, spec.intermediate_size, spec.kv_heads * spec.head_dim
    rows = {"q": d_model, "k": kv_width, "v": kv_width, "o": d_model}
    yield from _norm(spec, f"{name}.attention.norm")
    for own, width in rows.items():
        yield from _linear(f"{name}.attention.branch.{own}_proj", width, d_model, spec.attention_bias)
    yield from _norm(spec, f"{name}.feedforward.norm")
    for own in ("gate", "up") if spec.activation == "swiglu" else ("up",):
        yield from _linear(f"{name}.feedforward.branch.{own}_proj", hidden, d_model, spec.feedforward_bias)
    yield from _linear(f"{name}.feedforward.branch.down_proj", d_model, hidden, spec.feedforward_bias)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Named:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _norm(spec: ModelSpec, name: str) -> Named:
    yield f"{name}.weight", (spec.d_model,)
    if isinstance(spec.norm, LayerNormSpec) and spec.norm.bias:
        yield f"{name}.bias", (spec.d_model,)
