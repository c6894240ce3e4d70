"""llama2.c's `tokenizer.bin`: pieces and scores without the rest of their SentencePiece model.

Layout (little-endian): int32 length of the longest piece in bytes, then per piece float32 score, int32 length, bytes.
Ids 0, 1, 2 are unknown, BOS and EOS, 3 to 258 the bytes; a space is a space, not SentencePiece's U+2581.
"""

import struct

from shearling.data.tokenizers.sentence_piece import SPACE, SentencePieceTokenizer, model_proto
from shearling.errors import UserError

_SPECIAL = ("<unk>", "<s>", "</s>")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
LONGEST_PIECE = 1 << 12


def llama2c_tokenizer(content: bytes, origin: str = "tokenizer.bin") -> SentencePieceTokenizer:
    """The SentencePiece model that encodes as llama2.c does: greedy merges by score over the text, one space before it.

    Raises:
        UserError: the content does not follow the layout.
    """
    pieces = _parse(content, origin)
    model = model_proto()()
    kinds = model.SentencePiece
    for index, (piece, score) in enumerate(pieces):
        kind = kinds.NORMAL
        if index < len(_SPECIAL):
            # llama2.c prints BOS and EOS on lines of their own ("\n<s>\n"); the pieces' names are these.
            piece, kind = _SPECIAL[index], kinds.CONTROL if index else kinds.UNKNOWN
        elif index < len(_SPECIAL) + len(_BYTES):
            kind = kinds.BYTE
        model.pieces.add(piece=piece.replace(" ", SPACE), score=score, type=kind)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.vocab_size = len(pieces)
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return SentencePieceTokenizer(model.SerializeToString(deterministic=True), origin)


def _parse(content: bytes, origin: str) -> list[tuple[str, float]]:
    def refuse(what: str) -> UserError:
        return UserError(f"{origin}: not a tokenizer.bin of llama2.c: {what}")

    if len(content) < 4:
        raise refuse("it is shorter than its header")
    (longest,) = struct.unpack_from("<i", content)
    if not 0 < longest <= LONGEST_PIECE:
        raise refuse(f"its longest piece would be {longest} bytes")
    pieces: list[tuple[str, float]] = []
    position = 4
    while position < len(content):
        if position + 8 > len(content):
            raise refuse(f"it ends within piece {len(pieces)}")
        score, length = struct.unpack_from("<fi", content, position)
        position += 8
        # "\n</s>\n" is written without being counted into the longest piece
        if not 0 <= length <= max(longest, 8) or position + length > len(content):
            raise refuse(f"piece {len(pieces)} has an impossible length of {length} bytes")
        try:
            pieces.append((content[position : position + length].decode(), score))
        except UnicodeDecodeError as error:
            raise refuse(f"piece {len(pieces)} is not UTF-8") from error
        position += length
    if tuple(piece for piece, _ in pieces[3:259]) != _BYTES:
        raise refuse("ids 3 to 258 are not the bytes <0x00> to <0xFF>")
    return pieces
