"""A tokenizer taken apart: its pieces and what is to be known of them, in no file's terms. Imports no library."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any, Literal

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

BYTE_NAMES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""What SentencePiece calls the pieces of single bytes, byte 0 first."""


class PieceType(IntEnum):
    """What a piece is. SentencePiece and GGUF use these numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Pieces:
    """A tokenizer as a table of pieces.

    Attributes:
        kind: "bpe" and "unigram" are SentencePiece's: merges by the score of the joined piece, or the most probable
            cut. "byte-bpe" is GPT-2's: a pattern cuts the text, and ranked merges join bytes within each cut.
        texts: each piece, by id. SentencePiece's have U+2581 for a space and `<0x0A>` for a byte; GPT-2's have a
            printable character for each byte, where they are NORMAL, and are plain text where they are not.
        types: a PieceType each, as an int.
        scores: one a piece; empty for "byte-bpe".
        merges: of "byte-bpe", best first, each "left right"; empty for the others.
        bos, eos, unk, pad: ids; None where there is none.
        add_dummy_prefix: SentencePiece puts a space before a text that is not empty.
        adds_bos: the tokenizer's own file asks for BOS before a text.
        pre_tokenizer, normalizer: of "byte-bpe", as `tokenizer.json` has them.
        ignore_merges: of "byte-bpe": a cut that is a piece is taken whole (Llama 3).
        notes: where the tokenizer that they were taken from is not quite this, a sentence each.
    """

    kind: Literal["bpe", "unigram", "byte-bpe"]
    texts: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    pad: int | None = None
    add_dummy_prefix: bool = True
    adds_bos: bool = True
    pre_tokenizer: Mapping[str, Any] | None = None
    normalizer: Mapping[str, Any] | None = None
    ignore_merges: bool = False
    notes: Sequence[str] = ()


def bytes_of_sentence_piece(piece: str) -> bytes:
    """What a SentencePiece piece stands for, where `<0x0A>` is a byte."""
    if byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece):
        return bytes.fromhex(byte[1])
    return piece.replace(SPACE, " ").encode()


def bytes_of_letters(piece: str) -> bytes:
    """What a piece of a byte-level BPE stands for."""
    alphabet = byte_alphabet()
    return b"".join(alphabet.get(letter, letter.encode()) for letter in piece)


@cache
def byte_alphabet() -> dict[str, bytes]:
    """The printable character that stands for each byte in GPT-2's pieces, as character to byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {
        chr(256 + place): bytes([byte]) for place, byte in enumerate(others)
    }
