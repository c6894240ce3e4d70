"""What every tokenizer offers, and text that streams out token by token. Imports no torch."""

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from shearling.files import write_atomically

TokenArray = npt.NDArray[np.int32]


class StreamDecoder(Protocol):
    """Turns tokens into text as they come, never giving out half a character."""

    def push(self, token: int) -> str:
        """Take one token and return the text that is now certain, possibly none."""
        ...

    def flush(self) -> str:
        """Return what is held back, an incomplete byte sequence as U+FFFD, and begin anew."""
        ...


class Tokenizer(ABC):
    """Text to token ids and back.

    `encode` gives the tokens of the text alone: no BOS, and a special token's name in the text stays plain text,
    so that a document cannot forge a boundary. All ids are below `vocab_size`.
    """

    kind: ClassVar[str]
    file_name: ClassVar[str]
    vocab_size: int
    bos_id: int
    eos_id: int
    serialized: bytes
    """The content of the one file that holds this tokenizer."""

    @cached_property
    def sha256(self) -> str:
        """Identity of the tokenizer: the hash of its file, in hexadecimal."""
        return hashlib.sha256(self.serialized).hexdigest()

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without BOS."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[TokenArray]:
        """Tokens of each text, without BOS, as int32 arrays [T]. Leaves the interpreter's lock while it works."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of a sequence of tokens; control tokens give none, invalid UTF-8 becomes U+FFFD."""

    @abstractmethod
    def stream_decoder(self) -> StreamDecoder:
        """A decoder for one sequence; what it gives out adds up to `decode` of that sequence."""

    def save(self, folder: Path) -> Path:
        """Write the tokenizer's file into a folder, atomically, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        write_atomically(path, self.serialized)
        return path


class ByteStreamDecoder:
    """Stream decoder of a tokenizer whose every token stands for known bytes."""

    def __init__(self, token_bytes: Sequence[bytes], *, strip_first_space: bool) -> None:
        self._token_bytes = token_bytes
        self._strip_first_space = strip_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True

    def push(self, token: int) -> str:
        piece = self._token_bytes[token]
        if self._at_start and piece:
            self._at_start = False
            if self._strip_first_space:
                piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._at_start = True
        return rest


def join_bytes(token_bytes: Sequence[bytes], ids: Sequence[int], *, strip_first_space: bool) -> str:
    """Text of a sequence of tokens that stand for known bytes."""
    text = b"".join([token_bytes[token] for token in ids])
    if strip_first_space:
        text = text.removeprefix(b" ")
    return text.decode("utf-8", "replace")
