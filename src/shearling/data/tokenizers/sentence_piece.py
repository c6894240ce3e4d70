"""SentencePiece models: LLaMA's tokenizers (arXiv 1808.06226)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np

from shearling.data.tokenizers.base import StreamDecoder, TokenArray, Tokenizer
from shearling.data.tokenizers.pieces import SPACE
from shearling.data.tokenizers.streaming import ByteStreamDecoder, join_bytes
from shearling.errors import UserError

CHUNK_CHARACTERS = 1 << 14
"""A longer text is encoded in pieces: SentencePiece's heap outgrows the cache, and costs half the speed at 256 KiB."""

LARGEST_MODEL = 32 << 20
"""Bytes; a million pieces take about two thirds. The library makes of a file without sense forty times its size."""

MEND = "give a tokenizer.model, tokenizer.json or tokenizer.bin"

_INNARDS = re.compile(r"^[A-Z_]+: |\S+\(\d+\) \[.*\]$")
"""Of the library's errors: their kind, and the line and condition of its source, which stand there for a reason."""


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
        adds_bos: LLaMA's models begin a text with BOS; the file itself does not say.

    Raises:
        UserError: it is no SentencePiece model, or has no BOS.
    """

    kind: ClassVar[str] = "sentencepiece"
    file_name: ClassVar[str] = "tokenizer.model"

    def __init__(self, serialized: bytes, origin: str = "the tokenizer", *, adds_bos: bool = True) -> None:
        from sentencepiece import SentencePieceProcessor

        if len(serialized) > LARGEST_MODEL:
            raise UserError(f"{origin}: larger than any SentencePiece model ({LARGEST_MODEL >> 20} MiB)")
        self.serialized = serialized
        self.adds_bos = adds_bos
        self._origin = origin
        try:
            self._processor = SentencePieceProcessor(model_proto=serialized)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{origin}: not a SentencePiece model{_reason(error)}: {MEND}") from error
        if self._processor.bos_id() < 0:
            raise UserError(f"{origin}: this SentencePiece model has no BOS, which marks where a document begins")
        self.vocab_size = int(self._processor.get_piece_size())
        self.bos_id = int(self._processor.bos_id())
        self.eos_id = int(self._processor.eos_id()) if self._processor.eos_id() >= 0 else self.bos_id
        # Looked up when a token is first met: a table of all 32,000 takes longer than all else at start-up.
        self._bytes_of = lru_cache(None)(self._look_up)

    @cached_property
    def special_ids(self) -> Mapping[str, int]:
        ids = range(self.vocab_size)
        return {self.piece(token): token for token in ids if self._processor.is_control(token)}

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._encode_long(text)] if self._is_long(text) else self._encode_whole(text)

    def encode_with_specials(self, text: str) -> list[int]:
        """See Tokenizer. Each stretch of text between special tokens is a text, so the dummy space goes before each.

        So do Meta's own code (which encodes each turn of a chat by itself), llama2.c, llama.cpp and the
        `tokenizer.json` that `to_tokenizer_json` writes: "<s>[INST]" is `<s>`, `▁[`, `INST`, `]`. Only
        `transformers`' LlamaTokenizer with legacy=False puts the space at the very start alone.
        """
        ids: list[int] = []
        for part in self._special_names.split(text):
            ids += [self.special_ids[part]] if part in self.special_ids else self.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[TokenArray]:
        whole = iter(
            self._processor.encode(
                [text for text in texts if not self._is_long(text)], num_threads=1, return_type="numpy"
            )
        )
        return [self._encode_long(text) if self._is_long(text) else next(whole) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return join_bytes(self._bytes_of, ids, strip_first_space=self._has_dummy_prefix)

    def stream_decoder(self) -> StreamDecoder:
        return ByteStreamDecoder(self._bytes_of, strip_first_space=self._has_dummy_prefix)

    def _look_up(self, token: int) -> bytes:
        """What a token stands for; the space that `decode` takes off is there."""
        processor = self._processor
        if not 0 <= token < self.vocab_size or processor.is_control(token):
            return b""
        if processor.is_unknown(token):
            return str(processor.decode([token])).encode()
        piece = self.piece(token)
        return bytes([int(piece[3:5], 16)]) if processor.is_byte(token) else piece.replace(SPACE, " ").encode()

    def piece(self, token: int) -> str:
        """The piece of an id, with U+2581 for spaces; an empty one where there is none."""
        if not 0 <= token < self.vocab_size:
            return ""
        try:
            return str(self._processor.id_to_piece(token))
        except UnicodeDecodeError as error:
            raise UserError(f"{self._origin}: piece {token} is not UTF-8") from error

    @cached_property
    def _special_names(self) -> re.Pattern[str]:
        """Splits a text at the names of special tokens, which it keeps; the longest name wins."""
        names = sorted(self.special_ids, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})")

    @cached_property
    def model(self) -> Any:
        """The file's message, a ModelProto.

        Raises:
            UserError: a piece is not UTF-8, which SentencePiece does not mind.
        """
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        try:
            model = model_proto().FromString(self.serialized)
        except DecodeError as error:
            raise UserError(f"{self._origin}: not a SentencePiece model: {MEND}") from error
        strange = (index for index, piece in enumerate(model.pieces) if not isinstance(piece.piece, str))
        if (first := next(strange, None)) is not None:
            raise UserError(f"{self._origin}: piece {first} is not UTF-8")
        return model

    @cached_property
    def _has_dummy_prefix(self) -> bool:
        return str(self._processor.normalize("a")).startswith(SPACE)

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

        trainer, normalizer = self.model.trainer_spec, self.model.normalizer_spec
        cut_is_exact = (
            trainer.model_type == trainer.BPE
            and not trainer.treat_whitespace_as_suffix
            and not normalizer.precompiled_charsmap
            and not normalizer.remove_extra_whitespaces
            and all("\n" not in piece.piece for piece in self.model.pieces)
        )
        if not cut_is_exact:
            return None
        model = type(self.model).FromString(self.serialized)
        model.normalizer_spec.add_dummy_prefix = False
        return SentencePieceProcessor(model_proto=model.SerializeToString())


def _reason(error: Exception) -> str:
    """What the library says of a model, in words; nothing where it has none."""
    words = _INNARDS.sub("", " ".join(str(error).split()))
    return f" ({words.rstrip('.')})" if words else ""


def _line_chunks(text: str, size: int) -> Iterator[str]:
    """Cut a text after line ends into chunks of at least `size` characters."""
    start = 0
    while start < len(text):
        line_end = text.find("\n", start + size)
        end = len(text) if line_end < 0 else line_end + 1
        yield text[start:end]
        start = end
