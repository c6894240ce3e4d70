"""A model as it lies in a file: its specification, and named tensors that are read when they are asked for.

All readers give this, all writers take it. Imports no torch.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shearling.data.tokenizers.base import Tokenizer
from shearling.errors import UserError
from shearling.models.spec import ModelSpec
from shearling.quantization import CODECS, Codec, FloatArray, Part, Parts

NUMBERS_AT_ONCE = 1 << 22
"""Numbers that are decoded at a time where a tensor passes through: 16 MiB of float32."""

SUFFIXES = (".bin", ".gguf")
"""Of files that hold a model. Another ending is part of a name: SmolLM2-1.7B."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file holds it, memory-mapped where the layout allows.

    Attributes:
        shape: of the tensor: (rows, columns), (length,) of a vector, () of a single number.
        codec: how its numbers are stored.
        parts: what `codec` decodes, views of the file; the first axis of each is the tensor's rows, where it has any.
    """

    shape: tuple[int, ...]
    codec: Codec
    parts: Parts

    @classmethod
    def of(cls, array: FloatArray) -> "StoredTensor":
        """An array of float32, as it is."""
        return cls(array.shape, CODECS["f32"], (array,))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in its file."""
        return sum(part.nbytes for part in self.parts)

    def rows(self, rows: "slice | Part") -> Parts:
        """What `codec` decodes, of some rows."""
        return tuple(part[rows] for part in self.parts)

    def read(self, rows: "slice | Part" = slice(None)) -> FloatArray:
        """Its numbers, or those of some rows, as float32."""
        if not self.shape:  # codecs know rows
            return self.codec.decode(tuple(part.reshape(1) for part in self.parts)).reshape(())
        return self.codec.decode(self.rows(rows))

    def encoded(self, codec: Codec) -> Iterator[Parts]:
        """Its rows under another codec, a few MiB at a time; untouched where the codec is its own."""
        same = codec.name == self.codec.name and codec.group == self.codec.group
        if not self.shape:
            yield self.parts if same else tuple(part.reshape(()) for part in codec.encode(self.read().reshape(1)))
            return
        step = max(1, NUMBERS_AT_ONCE // max(1, prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            yield self.rows(rows) if same else codec.encode(self.read(rows))

    def reordered(self, order: Part) -> "StoredTensor":
        """The same with its rows in another order, still encoded: a copy of this one tensor."""
        return StoredTensor(self.shape, self.codec, self.rows(order))


Rotary = Literal["halves", "adjacent"]
"""Which rows of a head's queries and keys turn together: i and i + K/2 (`transformers`, and our own models), or 2i and
2i + 1 (Meta, llama2.c, GGUF)."""


@dataclass(frozen=True)
class Checkpoint:
    """A model in a file or folder.

    Attributes:
        spec: the architecture.
        tensors: by our names (those of `Transformer.state_dict()`), rows of q_proj and k_proj in the order `rotary`.
        rotary: the order of the rows of q_proj and k_proj.
        origin: the file or folder, for messages.
        load_tokenizer: gives the tokenizer that came with the model; None where there is none.
        chat_template: a jinja template that came with the model.
        stop_ids: tokens that end a text or a reply; empty where the file does not say.
        adds_bos: whether BOS stands before the model's texts; None: where its tokenizer puts it.
        notes: what else the file says of itself, for people: its name, licence, steps of training.
    """

    spec: ModelSpec
    tensors: Mapping[str, StoredTensor]
    rotary: Rotary
    origin: str
    load_tokenizer: Callable[[], Tokenizer] | None = None
    chat_template: str | None = None
    stop_ids: tuple[int, ...] = ()
    adds_bos: bool | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the model is called: as its file says, else as what it lies in is called."""
        if noted := self.notes.get("name"):
            return str(noted)
        path = Path(os.path.abspath(self.origin))  # noqa: PTH100 (a link keeps its name, and `.` gets one)
        if cached := re.search(r"/models--[^/]*--([^/]+)/snapshots/[^/]+$", str(path)):  # the Hub's cache, by commits
            return cached[1]
        return path.stem if path.suffix in SUFFIXES else path.name

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that came with the model.

        Raises:
            UserError: it is damaged, or has more tokens than the model.
        """
        tokenizer = self.load_tokenizer() if self.load_tokenizer else None
        if tokenizer is not None and tokenizer.vocab_size > self.spec.vocab_size:
            raise UserError(
                f"{self.origin}: its tokenizer has {tokenizer.vocab_size} tokens, and the model only "
                f"{self.spec.vocab_size}: they belong to different models"
            )
        return tokenizer

    @property
    def begins_with_bos(self) -> bool | None:
        """Whether a text that the model is to continue begins with BOS; None where nothing that came with it says."""
        if self.adds_bos is not None or self.tokenizer is None:
            return self.adds_bos
        return self.tokenizer.adds_bos

    def in_rotary(self, rotary: Rotary, name: str) -> StoredTensor:
        """The tensor of that name, its rows in the order that `rotary` asks for."""
        tensor = self.tensors[name]
        heads = rotary_heads(self.spec, name)
        if heads is None or rotary == self.rotary:
            return tensor
        return tensor.reordered(rotary_order(tensor.shape[0], heads, rotary))


def rotary_heads(spec: ModelSpec, name: str) -> int | None:
    """How many heads' rows a tensor holds that rotary positions turn; None where they do not turn it.

    With grouped queries keys have fewer heads than queries; a bias is turned as its matrix is.
    """
    heads = {"q_proj": spec.n_heads, "k_proj": spec.kv_heads}
    return next((count for module, count in heads.items() if f".{module}." in name), None)


def rotary_order(rows: int, heads: int, to: Rotary) -> Part:
    """Where in the other order the rows of queries or keys lie: `w[rotary_order(rows, heads, "adjacent")]`.

    Returns:
        int64 (rows,), a permutation.
    """
    numbers = np.arange(rows).reshape(heads, 2, -1) if to == "adjacent" else np.arange(rows).reshape(heads, -1, 2)
    return numbers.swapaxes(1, 2).reshape(rows)
