"""From each kind of tokenizer to each other, where the other can hold it: the same ids for the same text, and back.

`pieces_of` takes a tokenizer apart and `tokenizer_of` makes one, which is all that another format needs.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from shearling.data.tokenizers.base import Tokenizer
from shearling.data.tokenizers.hugging_face import HuggingFaceTokenizer, refusing
from shearling.data.tokenizers.llama2c import FIRST_TYPES, PRINTED_NAMES
from shearling.data.tokenizers.model_file import MODEL_TYPES, model_file, packed
from shearling.data.tokenizers.pieces import SPACE, Pieces, PieceType
from shearling.data.tokenizers.sentence_piece import SentencePieceTokenizer
from shearling.data.tokenizers.tokenizer_json import bos_template, json_of, pieces_of_json, shell
from shearling.errors import UserError

__all__ = [
    "PieceType",
    "Pieces",
    "pieces_of",
    "to_sentencepiece",
    "to_tokenizer_bin",
    "to_tokenizer_json",
    "tokenizer_config_json",
    "tokenizer_of",
]


def pieces_of(tokenizer: Tokenizer) -> Pieces:
    """The tokenizer taken apart.

    Raises:
        UserError: it is of a kind that the description does not know. It knows SentencePiece's BPE and Unigram models
            that leave the text as it is, and byte-level BPE.
    """
    return _TAKE_APART[tokenizer.kind](tokenizer)


def tokenizer_of(pieces: Pieces, origin: str) -> Tokenizer:
    """The tokenizer that is made of these pieces.

    Raises:
        UserError: they contradict each other; the message begins with `origin`.
    """
    if len(pieces.types) != len(pieces.texts):
        raise UserError(f"{origin}: {len(pieces.texts)} pieces with {len(pieces.types)} types")
    if strange := set(pieces.types).difference(PieceType):
        raise UserError(
            f"{origin}: a piece is of type {min(strange)}, and there are {min(PieceType)} to {max(PieceType)}"
        )
    for name, index in _ids(pieces).items():
        if not 0 <= index < len(pieces.texts):
            raise UserError(f"{origin}: its {name} is piece {index} of {len(pieces.texts)}")
    return _byte_level(pieces, origin) if pieces.kind == "byte-bpe" else _sentence_piece(pieces, origin)


def to_tokenizer_json(tokenizer: Tokenizer, *, adds_bos: bool | None = None) -> bytes:
    """Content of a `tokenizer.json` that encodes and decodes as the tokenizer does.

    Args:
        adds_bos: whether its template puts BOS before a text; None: as the tokenizer's own file says.

    Raises:
        UserError: the `tokenizers` library cannot do what the tokenizer does.
    """
    if adds_bos is None:
        adds_bos = tokenizer.adds_bos
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return _written(
            tokenizer, "tokenizer.json", lambda pieces: _dumped(json_of(replace(pieces, adds_bos=adds_bos)))
        )
    if adds_bos == tokenizer.adds_bos:
        return tokenizer.serialized
    bos = bos_template(_name_of(tokenizer, tokenizer.bos_id), tokenizer.bos_id) if adds_bos else None
    return _dumped({**tokenizer.canonical(), "post_processor": bos})


def to_sentencepiece(tokenizer: Tokenizer) -> bytes:
    """Content of a `tokenizer.model`, of a SentencePiece model or of what was made from one.

    Raises:
        UserError: it does what SentencePiece does not.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.serialized
    return _written(tokenizer, "a SentencePiece model", lambda pieces: _sentence_piece(pieces, "it").serialized)


def to_tokenizer_bin(tokenizer: Tokenizer) -> bytes:
    """Content of llama2.c's `tokenizer.bin`.

    Raises:
        UserError: llama2.c would encode otherwise: it knows only SentencePiece's BPE with LLaMA's first 259 pieces.
    """
    return _written(tokenizer, "llama2.c's tokenizer.bin", _llama2c)


def tokenizer_config_json(
    tokenizer: Tokenizer,
    chat_template: str | None = None,
    *,
    max_length: int | None = None,
    adds_bos: bool | None = None,
) -> bytes:
    """Content of the `tokenizer_config.json` with which `transformers.AutoTokenizer` takes `tokenizer.json` as it is.

    A class of its own for LLaMA would be put together from the vocabulary, and then drops a space that begins a text.

    Args:
        max_length: tokens that the model takes.
        adds_bos: whether BOS stands before a text; None: as the tokenizer's own file says.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _name_of(tokenizer, tokenizer.bos_id),
        "eos_token": _name_of(tokenizer, tokenizer.eos_id),
        "add_bos_token": tokenizer.adds_bos if adds_bos is None else adds_bos,
        "clean_up_tokenization_spaces": False,
    }
    if max_length is not None:
        config["model_max_length"] = max_length
    if chat_template is not None:
        config["chat_template"] = chat_template
    return json.dumps(config, ensure_ascii=False, indent=2).encode() + b"\n"


def _name_of(tokenizer: Tokenizer, special: int) -> str:
    return next(name for name, index in tokenizer.special_ids.items() if index == special)


def _written(tokenizer: Tokenizer, file: str, write: Callable[[Pieces], bytes]) -> bytes:
    try:
        return write(pieces_of(tokenizer))
    except UserError as error:
        raise UserError(f"the tokenizer cannot be written as {file}: {error}") from error


def _dumped(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _ids(pieces: Pieces) -> dict[str, int]:
    ids = {"unk": pieces.unk, "bos": pieces.bos, "eos": pieces.eos, "pad": pieces.pad}
    return {name: index for name, index in ids.items() if index is not None}


def _take_apart_sentence_piece(tokenizer: Tokenizer) -> Pieces:
    assert isinstance(tokenizer, SentencePieceTokenizer)
    model = tokenizer.model
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kind = next((kind for kind, number in MODEL_TYPES.items() if number == trainer.model_type), None)
    if kind is None:
        raise UserError("it cuts the text into words or characters")
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces or not normalizer.escape_whitespaces:
        raise UserError(f"it changes the text before it looks for pieces ({normalizer.name or 'whitespace'})")
    if trainer.treat_whitespace_as_suffix:
        raise UserError("it keeps a space with the word before it")
    types = [piece.type for piece in model.pieces]
    names = {piece.piece: index for index, piece in enumerate(model.pieces)}
    return Pieces(
        kind=kind,
        texts=list(names),
        types=types,
        scores=[piece.score for piece in model.pieces],
        bos=tokenizer.bos_id,
        eos=names.get(trainer.eos_piece),
        unk=types.index(PieceType.UNKNOWN) if PieceType.UNKNOWN in types else None,
        pad=names.get(trainer.pad_piece),
        add_dummy_prefix=normalizer.add_dummy_prefix,
        adds_bos=tokenizer.adds_bos,
    )


def _take_apart_json(tokenizer: Tokenizer) -> Pieces:
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return pieces_of_json(
        tokenizer.canonical(), bos=tokenizer.bos_id, eos=tokenizer.eos_id, adds_bos=tokenizer.adds_bos
    )


_TAKE_APART: dict[str, Callable[[Tokenizer], Pieces]] = {
    SentencePieceTokenizer.kind: _take_apart_sentence_piece,
    HuggingFaceTokenizer.kind: _take_apart_json,
}


def _sentence_piece(pieces: Pieces, origin: str) -> SentencePieceTokenizer:
    if pieces.kind == "byte-bpe":
        raise UserError(_BYTE_LEVEL)
    if len(pieces.scores) != len(pieces.texts):
        raise UserError(f"{origin}: {len(pieces.texts)} pieces with {len(pieces.scores)} scores")
    if not (np.abs(np.asarray(pieces.scores)) <= np.finfo(np.float32).max).all():
        raise UserError(f"{origin}: a piece's score is no number")
    ids = _ids(pieces)
    types = list(pieces.types)
    for name, type_ in (("bos", PieceType.CONTROL), ("eos", PieceType.CONTROL), ("unk", PieceType.UNKNOWN)):
        if name in ids:
            types[ids[name]] = type_
    model = model_file(
        pieces.kind,
        [text.encode() for text in pieces.texts],
        packed(pieces.scores),
        types,
        ids=ids,
        byte_fallback=PieceType.BYTE in types,
        add_dummy_prefix=pieces.add_dummy_prefix,
    )
    return SentencePieceTokenizer(model, origin, adds_bos=pieces.adds_bos)


_BYTE_LEVEL = "it cuts the text by a pattern and joins bytes by ranked pairs: there are no scores of pieces"


def _byte_level(pieces: Pieces, origin: str) -> HuggingFaceTokenizer:
    import tokenizers
    from tokenizers import AddedToken, models

    vocabulary = {text: index for index, text in enumerate(pieces.texts)}
    if len(vocabulary) != len(pieces.texts):
        raise UserError(f"{origin}: two of its pieces are the same")
    content = shell(
        pieces,
        added=[],
        normalizer=pieces.normalizer,
        pre_tokenizer=pieces.pre_tokenizer,
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model={"type": "BPE", "vocab": {}, "merges": []},
    )
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in pieces.merges)]
    with refusing(f"{origin}: not a byte-level BPE"):
        # The library takes the vocabulary and merges from Python's objects twice as fast as from JSON.
        library: Any = tokenizers.Tokenizer.from_str(json.dumps(content))
        library.model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pieces.ignore_merges)
    for index in [index for index, type_ in enumerate(pieces.types) if type_ != PieceType.NORMAL]:
        if pieces.types[index] in (PieceType.CONTROL, PieceType.UNKNOWN):
            library.add_special_tokens([AddedToken(pieces.texts[index], normalized=False, special=True)])
        elif pieces.types[index] == PieceType.USER_DEFINED:
            library.add_tokens([AddedToken(pieces.texts[index], normalized=False)])
    bos, eos = (None if index is None else pieces.texts[index] for index in (pieces.bos, pieces.eos))
    return HuggingFaceTokenizer(library, origin, bos=bos, eos=eos)


def _llama2c(pieces: Pieces) -> bytes:
    if pieces.kind == "byte-bpe":
        raise UserError(_BYTE_LEVEL)
    if pieces.kind == "unigram":
        raise UserError("it takes the most probable cut of the text, where llama2.c joins pairs")
    if not pieces.add_dummy_prefix:
        raise UserError("llama2.c puts a space before the text, which this tokenizer does not")
    _refuse_other_types(pieces)
    encoded = [text.replace(SPACE, " ").encode() for text in pieces.texts]
    encoded[: len(PRINTED_NAMES)] = PRINTED_NAMES
    entries = [struct.pack("<fi", score, len(text)) + text for score, text in zip(pieces.scores, encoded, strict=True)]
    return struct.pack("<i", max(map(len, encoded))) + b"".join(entries)


def _refuse_other_types(pieces: Pieces) -> None:
    """llama2.c knows by an id alone what a piece is."""
    if list(pieces.types[: len(FIRST_TYPES)]) != FIRST_TYPES or (pieces.bos, pieces.eos) != (1, 2):
        raise UserError("llama2.c wants unknown, BOS and EOS as ids 0, 1 and 2, and the bytes as 3 to 258")
    for index in range(len(FIRST_TYPES), len(pieces.types)):
        if pieces.types[index] != PieceType.NORMAL:
            name = PieceType(pieces.types[index]).name.lower().replace("_", "-")
            raise UserError(f"its piece {index} {pieces.texts[index]!r} is {name}: llama2.c would take it for text")
