"""What every tokenizer offers. Imports no torch, and no tokenizer library."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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

    Attributes:
        adds_bos: the tokenizer's own file asks for BOS before a text, and other programs put it there.
    """

    kind: ClassVar[str]
    file_name: ClassVar[str]
    vocab_size: int
    bos_id: int
    eos_id: int
    adds_bos: bool
    serialized: bytes
    """The content of the one file that holds this tokenizer."""

    @cached_property
    def sha256(self) -> str:
        """Identity of the tokenizer: the hash of its file, in hexadecimal."""
        return hashlib.sha256(self.serialized).hexdigest()

    @property
    @abstractmethod
    def special_ids(self) -> Mapping[str, int]:
        """The tokens that a text cannot write, by their names: `<s>`, `<|im_start|>`, …"""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without BOS."""

    @abstractmethod
    def encode_with_specials(self, text: str) -> list[int]:
        """Tokens of a text in which the names of `special_ids` stand for those tokens, as in a chat's template.

        No BOS but what the text names. Whoever writes the text can write any token: not for documents.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[TokenArray]:
        """Tokens of each text, without BOS, as int32 arrays [T]. Leaves the interpreter's lock while it works."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of a sequence of tokens; invalid UTF-8 becomes U+FFFD.

        Control tokens give none, nor do ids beyond the vocabulary, which a model with a padded embedding can choose.
        """

    @abstractmethod
    def stream_decoder(self) -> StreamDecoder:
        """A decoder for one sequence; what it gives out adds up to `decode` of that sequence."""

    def save(self, folder: Path) -> Path:
        """Write the tokenizer's file into a folder, atomically, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        write_atomically(path, self.serialized)
        return path
