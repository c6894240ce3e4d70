"""SentencePiece models: LLaMA's tokenizers (arXiv 1808.06226)."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from shearling.data.tokenizers.base import ByteStreamDecoder, StreamDecoder, TokenArray, Tokenizer, join_bytes
from shearling.errors import UserError

SPACE = "\u2581"
CHUNK_CHARACTERS = 1 << 14
"""A longer text is encoded in pieces: SentencePiece's heap outgrows the cache, and costs half the speed at 256 KiB."""


def model_proto() -> Any:
    """SentencePiece's ModelProto, a message class that is made at import, unseen by type checkers."""
    from sentencepiece import sentencepiece_model_pb2

    return vars(sentencepiece_model_pb2)["ModelProto"]


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model.

    With LLaMA's normalization (none) `decode(encode(x)) == x` for every text but one that holds U+2581 itself, which
    SentencePiece uses for the space and therefore gives back as one.

    Args:
        serialized: content of a `tokenizer.model` file (a ModelProto).
        origin: what to call it in an error.

    Raises:
        UserError: it is no SentencePiece model, or has no BOS.
    """

    kind: ClassVar[str] = "sentencepiece"
    file_name: ClassVar[str] = "tokenizer.model"

    def __init__(self, serialized: bytes, origin: str = "the tokenizer") -> None:
        from sentencepiece import SentencePieceProcessor

        self.serialized = serialized
        try:
            self._processor = SentencePieceProcessor(model_proto=serialized)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{origin}: not a SentencePiece model ({error})") from error
        if self._processor.bos_id() < 0:
            raise UserError(f"{origin}: this SentencePiece model has no BOS, which marks where a document begins")
        self.vocab_size = int(self._processor.get_piece_size())
        self.bos_id = int(self._processor.bos_id())
        self.eos_id = int(self._processor.eos_id()) if self._processor.eos_id() >= 0 else self.bos_id

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._encode_long(text)] if self._is_long(text) else self._encode_whole(text)

    def encode_batch(self, texts: Sequence[str]) -> list[TokenArray]:
        whole = iter(
            self._processor.encode(
                [text for text in texts if not self._is_long(text)], num_threads=1, return_type="numpy"
            )
        )
        return [self._encode_long(text) if self._is_long(text) else next(whole) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return join_bytes(self.token_bytes, ids, strip_first_space=self._has_dummy_prefix)

    def stream_decoder(self) -> StreamDecoder:
        return ByteStreamDecoder(self.token_bytes, strip_first_space=self._has_dummy_prefix)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id stands for; control tokens stand for nothing, and the space that `decode` takes off is there."""
        unknown = self._model.trainer_spec.unk_surface.encode()
        kinds = self._model.SentencePiece
        return [
            b""
            if piece.type == kinds.CONTROL
            else unknown
            if piece.type == kinds.UNKNOWN
            else bytes([int(piece.piece[3:5], 16)])
            if piece.type == kinds.BYTE
            else piece.piece.replace(SPACE, " ").encode()
            for piece in self._model.pieces
        ]

    @cached_property
    def _model(self) -> Any:
        return model_proto().FromString(self.serialized)

    @cached_property
    def _has_dummy_prefix(self) -> bool:
        return bool(self._model.normalizer_spec.add_dummy_prefix)

    def _encode_whole(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        return ids

    def _is_long(self, text: str) -> bool:
        return len(text) > 4 * CHUNK_CHARACTERS and self._continuation is not None

    def _encode_long(self, text: str) -> TokenArray:
        """The same tokens as in one go, for nothing ever merges across a line end (see `_continuation`)."""
        first, *rest = _line_chunks(text, CHUNK_CHARACTERS)
        arrays = [self._processor.encode(first, return_type="numpy")]
        arrays += self._continuation.encode(rest, num_threads=1, return_type="numpy")
        return np.concatenate(arrays)

    @cached_property
    def _continuation(self) -> Any:
        """Encodes what follows a line end: the same model without dummy prefix. None where a cut could be felt."""
        from sentencepiece import SentencePieceProcessor

        trainer, normalizer = self._model.trainer_spec, self._model.normalizer_spec
        cut_is_exact = (
            trainer.model_type == trainer.BPE
            and not trainer.treat_whitespace_as_suffix
            and not normalizer.precompiled_charsmap
            and not normalizer.remove_extra_whitespaces
            and all("\n" not in piece.piece for piece in self._model.pieces)
        )
        if not cut_is_exact:
            return None
        model = type(self._model).FromString(self.serialized)
        model.normalizer_spec.add_dummy_prefix = False
        return SentencePieceProcessor(model_proto=model.SerializeToString())


def _line_chunks(text: str, size: int) -> Iterator[str]:
    """Cut a text after line ends into chunks of at least `size` characters."""
    start = 0
    while start < len(text):
        line_end = text.find("\n", start + size)
        end = len(text) if line_end < 0 else line_end + 1
        yield text[start:end]
        start = end
