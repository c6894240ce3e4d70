"""Tokenizers as GGUF's metadata, both ways: SentencePiece's BPE ("llama") and GPT-2's ("gpt2")."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from shearling.data.tokenizers import Tokenizer
from shearling.data.tokenizers.conversion import pieces_of, tokenizer_of
from shearling.data.tokenizers.pieces import BYTE_NAMES, Pieces, PieceType
from shearling.errors import UserError
from shearling.formats.gguf.container import Strings
from shearling.formats.gguf.patterns import PATTERNS, pattern_name
from shearling.formats.gguf.values import Metadata

NO_TOKENIZER = ("no_vocab", "none")
"""`tokenizer.ggml.model` of a file for ids alone."""

_MODEL = "tokenizer.ggml.model"
_PATTERN = "tokenizer.ggml.pre"
_TOKENS = "tokenizer.ggml.tokens"
_SCORES = "tokenizer.ggml.scores"
_TYPES = "tokenizer.ggml.token_type"
_MERGES = "tokenizer.ggml.merges"
ADD_BOS = "tokenizer.ggml.add_bos_token"
_ADD_SPACE = "tokenizer.ggml.add_space_prefix"
_BOS, _EOS, _UNKNOWN, _PAD, _END_OF_TURN, _END_OF_MESSAGE = (
    f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "unknown", "padding", "eot", "eom")
)
_DEFAULTS = {_BOS: 1, _EOS: 2, _UNKNOWN: 0}
"""Ids of a "llama" tokenizer that does not say."""

ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
)
"""Tokens that llama.cpp knows by name to end a text or a reply, whatever ids a file gives."""

MOST_MERGES = 16
"""For each token; LLaMA 3 has two."""


def has_tokenizer(metadata: Metadata) -> bool:
    """Whether the file has a tokenizer, be it one that is read here or not."""
    return metadata.text(_MODEL, NO_TOKENIZER[0]) not in NO_TOKENIZER


def read_tokenizer(metadata: Metadata, vocab_size: int) -> Tokenizer:
    """The file's tokenizer.

    Raises:
        UserError: it is of a kind that is not read here, or damaged.
    """
    model = metadata.text(_MODEL)
    if model not in READERS:
        raise metadata.inexpressible(_MODEL, f"read are {' and '.join(READERS)}: name a tokenizer's file")
    texts, types = _tokens(metadata, vocab_size)
    ids = {key: _special(metadata, key, len(texts)) for key in (_BOS, _EOS, _UNKNOWN, _PAD)}
    pieces = READERS[model](metadata, texts, types)
    pieces = replace(pieces, bos=ids[_BOS], eos=ids[_EOS], unk=ids[_UNKNOWN], pad=ids[_PAD])
    return tokenizer_of(pieces, metadata.origin)


def write_tokenizer(
    tokenizer: Tokenizer, vocab_size: int, adds_bos: bool | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The metadata that holds a tokenizer, with as many tokens as the model has rows, and what its user should know.

    Args:
        adds_bos: whether BOS stands before a text; None: as the tokenizer's own file says.

    Raises:
        UserError: GGUF, or llama.cpp, has no such tokenizer; the reason is given.
    """
    pieces = pieces_of(tokenizer)
    if pieces.kind not in WRITERS:
        raise UserError(f"GGUF's tokenizers merge pairs, and this one is of kind {pieces.kind}: write another format")
    assert len(pieces.texts) <= vocab_size, "a checkpoint's tokenizer is no larger than its model"
    padding = range(len(pieces.texts), vocab_size)
    texts = [*pieces.texts, *(_padding(index) for index in padding)]
    if (twice := _twice(texts)) is not None:
        raise UserError(f"the tokenizer has {twice!r:.40} twice, and llama.cpp loads no such: mend the tokenizer")
    ids = {_BOS: pieces.bos, _EOS: pieces.eos, _UNKNOWN: pieces.unk, _PAD: pieces.pad}
    entries = {
        **WRITERS[pieces.kind](pieces, len(padding)),
        _TOKENS: texts,
        _TYPES: [int(kind) for kind in pieces.types] + [int(PieceType.UNUSED)] * len(padding),
        **{key: index for key, index in ids.items() if index is not None},
        ADD_BOS: pieces.adds_bos if adds_bos is None else adds_bos,
    }
    notes = list(pieces.notes)
    if pieces.kind == "bpe" and PieceType.USER_DEFINED in pieces.types:
        name = pieces.texts[list(pieces.types).index(PieceType.USER_DEFINED)]
        notes.append(f"llama.cpp looks for user-defined pieces, such as {name!r:.40}, before all others, and puts a "
                     "space behind them: it cuts a text around them otherwise")  # fmt: skip
    return entries, notes


def without_tokenizer() -> dict[str, Any]:
    """The metadata of a file that has none: llama.cpp runs it on ids."""
    return {_MODEL: NO_TOKENIZER[0]}


def end_of_turn(stop_ids: tuple[int, ...], entries: Mapping[str, Any]) -> dict[str, int]:
    """The metadata for a token that ends a reply and is not the tokenizer's EOS."""
    others = [index for index in stop_ids if index != entries.get(_EOS)]
    return {_END_OF_TURN: others[0]} if others else {}


def stop_ids(metadata: Metadata, vocab_size: int) -> tuple[int, ...]:
    """Tokens at which llama.cpp stops: those that the file names as ends, and those with an end's name."""
    named = [_special(metadata, key, vocab_size) for key in (_EOS, _END_OF_TURN, _END_OF_MESSAGE)]
    tokens = metadata.values.get(_TOKENS)
    if isinstance(tokens, Strings):
        named += [tokens.place(text) for text in ENDS]
    return tuple(dict.fromkeys(index for index in named if index is not None and index < vocab_size))


def _special(metadata: Metadata, key: str, vocab_size: int) -> int | None:
    """A special token's id, of a "llama" tokenizer that does not say the usual one."""
    index = metadata.token(key, vocab_size)
    return _DEFAULTS.get(key) if index is None and metadata.values.get(_MODEL) == "llama" else index


def _padding(index: int) -> str:
    """The name that converters give to a row of the model that is no token."""
    return f"[PAD{index}]"


def _tokens(metadata: Metadata, vocab_size: int) -> tuple[list[str], list[int]]:
    """Texts and types of all tokens, without the rows at the end that are none."""
    texts = _strings(metadata, _TOKENS, vocab_size)
    known = set(PieceType)
    types = [
        int(kind) if kind in known else int(PieceType.NORMAL)
        for kind in _numbers(metadata, _TYPES, len(texts), PieceType.NORMAL)
    ]
    while texts and types[-1] == PieceType.UNUSED and texts[-1] == _padding(len(texts) - 1):
        texts.pop()
        types.pop()
    texts = [text or f"[EMPTY_{index}]" for index, text in enumerate(texts)]
    if (twice := _twice(texts)) is not None:
        raise metadata.wrong(_TOKENS, f"{twice!r:.40} is there twice")
    return texts, types


def _twice(texts: list[str]) -> str | None:
    """A text that is there more than once."""
    return Counter(texts).most_common(1)[0][0] if len(set(texts)) < len(texts) else None


def _strings(metadata: Metadata, key: str, most: int) -> list[str]:
    value = metadata.values.get(key)
    if not isinstance(value, Strings):
        raise metadata.wrong(key, "missing" if value is None else "should be strings")
    if len(value) > most:
        raise metadata.wrong(key, f"{len(value)} strings, and at most {most} can be of use")
    try:
        return value.decoded()
    except UnicodeDecodeError:
        raise metadata.wrong(key, "a string of it is not UTF-8") from None


def _numbers(metadata: Metadata, key: str, count: int, default: float | None = None) -> list[float]:
    value = metadata.values.get(key)
    if value is None and default is not None:
        return [default] * count
    if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.number):
        raise metadata.wrong(key, "missing" if value is None else "should be an array of numbers")
    if len(value) < count or not np.isfinite(value).all():
        raise metadata.wrong(key, f"should give a finite number for each of {count} tokens")
    numbers: list[float] = value[:count].tolist()
    return numbers


def _read_llama(metadata: Metadata, texts: list[str], types: list[int]) -> Pieces:
    names = frozenset(BYTE_NAMES)
    for text, kind in zip(texts, types, strict=True):
        if kind == PieceType.BYTE and text not in names:
            raise metadata.wrong(_TOKENS, f"{text!r:.40} is no byte such as <0x0A>")
    return Pieces(
        kind="bpe",
        texts=texts,
        types=types,
        scores=_numbers(metadata, _SCORES, len(texts)),
        add_dummy_prefix=metadata.flag(_ADD_SPACE, True),
        adds_bos=metadata.flag(ADD_BOS, True),
    )


def _read_gpt2(metadata: Metadata, texts: list[str], types: list[int]) -> Pieces:
    name = metadata.text(_PATTERN, "default")
    if name not in PATTERNS:
        raise metadata.inexpressible(_PATTERN, f"read are {', '.join(PATTERNS)}: name a tokenizer's file")
    pattern = PATTERNS[name]
    return Pieces(
        kind="byte-bpe",
        texts=texts,
        types=types,
        merges=_strings(metadata, _MERGES, MOST_MERGES * len(texts)),
        add_dummy_prefix=False,
        adds_bos=metadata.flag(ADD_BOS, pattern.adds_bos),
        pre_tokenizer=pattern.pre_tokenizer(),
        ignore_merges=pattern.ignore_merges,
    )


def _write_llama(pieces: Pieces, padding: int) -> dict[str, Any]:
    # A row that is no token must never be the best merge.
    scores = [float(score) for score in pieces.scores] + [-10000.0] * padding
    return {_MODEL: "llama", _PATTERN: "default", _SCORES: scores, _ADD_SPACE: pieces.add_dummy_prefix}


def _write_gpt2(pieces: Pieces, padding: int) -> dict[str, Any]:
    if not pieces.merges:
        raise UserError("llama.cpp loads no byte-level tokenizer without merges, and this one has none")
    name = pattern_name(pieces.pre_tokenizer, pieces.normalizer, pieces.ignore_merges)
    return {_MODEL: "gpt2", _PATTERN: name, _MERGES: list(pieces.merges), _ADD_SPACE: False}


READERS: dict[str, Callable[[Metadata, list[str], list[int]], Pieces]] = {"llama": _read_llama, "gpt2": _read_gpt2}
"""By `tokenizer.ggml.model`."""

WRITERS: dict[str, Callable[[Pieces, int], dict[str, Any]]] = {"bpe": _write_llama, "byte-bpe": _write_gpt2}
"""By the kind of Pieces; the number is that of rows that are no tokens."""
