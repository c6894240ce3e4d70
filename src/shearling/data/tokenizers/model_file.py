"""Writes a SentencePiece model's file.

The layout is sentencepiece_model.proto's in protobuf's wire format. Written by hand: with 32,000 pieces the protobuf
library takes four times as long, and a `tokenizer.bin` or a GGUF is read at each start.
"""

import struct
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Literal

MODEL_TYPES: dict[Literal["bpe", "unigram"], int] = {"unigram": 1, "bpe": 2}
_VARINT, _BYTES = 0, 2
_IDS = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2)}
"""TrainerSpec's fields of ids, and what they are when they are not there; `pad` is always written."""
_NAMES = {"unk": (45, b"<unk>"), "bos": (46, b"<s>"), "eos": (47, b"</s>"), "pad": (48, b"<pad>")}


def model_file(
    kind: Literal["bpe", "unigram"],
    pieces: Sequence[bytes],
    scores: Sequence[bytes],
    types: Sequence[int],
    *,
    ids: Mapping[str, int],
    byte_fallback: bool,
    add_dummy_prefix: bool,
) -> bytes:
    """A ModelProto of pieces (in UTF-8, with U+2581 for spaces) that leaves the text as it is.

    Args:
        scores: of each piece, as little-endian float32.
        types: a PieceType each.
        ids: of `unk`, `bos`, `eos` and `pad`, those that there are.
    """
    heads = {length: _head(length) for length in set(map(len, pieces))}
    tails = {type_: b"\x18" + bytes([type_]) for type_ in set(types)}
    columns = (map(heads.__getitem__, map(len, pieces)), pieces, repeat(b"\x15"), scores, map(tails.__getitem__, types))
    entries = b"".join(chain.from_iterable(zip(*columns, strict=False)))
    trainer = _field(3, MODEL_TYPES[kind]) + _field(4, len(pieces)) + _field(35, int(byte_fallback))
    trainer += b"".join(
        _field(number, ids[name]) for name, (number, default) in _IDS.items() if ids.get(name, default) != default
    )
    trainer += _field(43, ids.get("pad", -1))
    trainer += b"".join(
        _field(number, pieces[ids[name]])
        for name, (number, default) in _NAMES.items()
        if name in ids and pieces[ids[name]] != default
    )
    normalizer = _field(1, b"identity") + _field(3, int(add_dummy_prefix)) + _field(4, 0)
    return entries + _field(2, trainer) + _field(3, normalizer)


def packed(scores: Sequence[float]) -> list[bytes]:
    """Scores as `model_file` takes them."""
    return list(map(struct.Struct("<f").pack, scores))


def _head(length: int) -> bytes:
    """What stands before a piece of so many bytes: of its message, which has a score and a type besides, and of it."""
    string = b"\x0a" + varint(length)
    return b"\x0a" + varint(len(string) + length + 5 + 2) + string


def varint(number: int) -> bytes:
    """A number below 2**64 in groups of seven bits, lowest first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | _BYTES) + varint(len(value)) + value
    return varint(number << 3 | _VARINT) + varint(value % (1 << 64))  # negative numbers are two's complement
