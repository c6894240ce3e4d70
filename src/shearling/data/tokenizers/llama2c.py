"""llama2.c's `tokenizer.bin`: pieces and scores without the rest of their SentencePiece model.

Layout (little-endian): int32 length of the longest piece in bytes, then per piece float32 score, int32 length, bytes.
Ids 0, 1, 2 are unknown, BOS and EOS, 3 to 258 the bytes; a space is a space, not SentencePiece's U+2581.
"""

import struct

import numpy as np

from shearling.data.tokenizers.model_file import model_file
from shearling.data.tokenizers.pieces import BYTE_NAMES, SPACE, PieceType
from shearling.data.tokenizers.sentence_piece import SentencePieceTokenizer
from shearling.errors import UserError

_NAMES = (b"<unk>", b"<s>", b"</s>")
PRINTED_NAMES = (b"<unk>", b"\n<s>\n", b"\n</s>\n")
"""llama2.c prints BOS and EOS on lines of their own; their names are the above."""
_BYTES = [name.encode() for name in BYTE_NAMES]
FIRST_TYPES = [PieceType.UNKNOWN, PieceType.CONTROL, PieceType.CONTROL, *[PieceType.BYTE] * 256]
"""What the first ids are; all others are normal."""
_HEAD = struct.Struct("<4si")
LONGEST_PIECE = 1 << 12
MOST_PIECES = 1 << 20
"""The largest published vocabulary has nine tenths of this; what Python makes of a piece is larger than it in the file.
"""


def llama2c_tokenizer(content: bytes, origin: str = "tokenizer.bin") -> SentencePieceTokenizer:
    """The SentencePiece model that encodes as llama2.c does: greedy merges by score over the text, one space before it.

    Raises:
        UserError: the content does not follow the layout.
    """
    pieces, scores = _parse(content, origin)
    pieces[: len(_NAMES)] = _NAMES
    space = SPACE.encode()
    model = model_file(
        "bpe",
        [piece.replace(b" ", space) for piece in pieces],
        scores,
        [int(type_) for type_ in FIRST_TYPES] + [int(PieceType.NORMAL)] * (len(pieces) - len(FIRST_TYPES)),
        ids={},
        byte_fallback=True,
        add_dummy_prefix=True,
    )
    return SentencePieceTokenizer(model, origin)


def _parse(content: bytes, origin: str) -> tuple[list[bytes], list[bytes]]:
    """The pieces, and their scores as they lie there."""

    def refuse(what: str) -> UserError:
        return UserError(f"{origin}: not a tokenizer.bin of llama2.c: {what}")

    if len(content) < 4:
        raise refuse("it is shorter than its header")
    (longest,) = struct.unpack_from("<i", content)
    if not 0 < longest <= LONGEST_PIECE:
        raise refuse(f"its longest piece would be {longest} bytes")
    allowed = max(longest, len(PRINTED_NAMES[2]))  # which is written without being counted into the longest piece
    pieces: list[bytes] = []
    scores: list[bytes] = []
    position, end, unpack = 4, len(content), _HEAD.unpack_from
    while position < end:
        if position + 8 > end:
            raise refuse(f"it ends within piece {len(pieces)}")
        score, length = unpack(content, position)
        start = position + 8
        position = start + length
        if not 0 < length <= allowed or position > end:
            raise refuse(f"piece {len(pieces)} has an impossible length of {length} bytes")
        if len(pieces) == MOST_PIECES:
            raise refuse(f"it has more than {MOST_PIECES} pieces")
        pieces.append(content[start:position])
        scores.append(score)
    if pieces[3:259] != _BYTES:
        raise refuse("ids 3 to 258 are not the bytes <0x00> to <0xFF>")
    if not np.isfinite(np.frombuffer(b"".join(scores), "<f4")).all():
        raise refuse("a score is no number")
    try:
        b"\n".join(pieces).decode()
    except UnicodeDecodeError as error:
        index = next(i for i, piece in enumerate(pieces) if piece.decode(errors="ignore").encode() != piece)
        raise refuse(f"piece {index} is not UTF-8") from error
    return pieces, scores
