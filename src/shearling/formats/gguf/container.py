"""GGUF's container: metadata, and where each tensor lies. What a key means is no matter here.

Layout (little-endian; the specification is `docs/gguf.md` of ggml-org/ggml): magic `GGUF`, uint32 version, uint64 count
of tensors, uint64 count of metadata entries; each entry a key, uint32 type, value; each tensor a name, uint32 count of
dimensions, uint64 each (the fastest first), uint32 kind, uint64 offset; zeros up to a multiple of `general.alignment`;
the tensors' bytes. A string is a uint64 length and UTF-8. Version 3 differs from 2 only in that it may be big-endian.

Files are hostile until parsed: each count is held against the bytes that are left before anything is made of it, and
what is made of strings is at most as large as they are.
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shearling.errors import UserError
from shearling.formats.signs import GGUF_MAGIC

VERSIONS = (2, 3)
ALIGNMENT = 32
"""Of tensors, in bytes, where `general.alignment` is not given."""
LARGEST_ALIGNMENT = 1 << 20
LONGEST_NAME = 65535
"""Bytes of a key or of a tensor's name."""
MOST_DIMENSIONS = 4
MOST_NAMES = 1 << 16
"""Tensors, or metadata entries: what Python makes of one may be larger than it is in the file."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_NUMBERS: dict[int, np.dtype[np.generic]] = {
    code: np.dtype(kind)
    for code, kind in {
        0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_SMALLEST_ENTRY = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8

Bytes = npt.NDArray[np.uint8]


class Strings:
    """An array of strings as it lies in the file; decoded when they are asked for."""

    def __init__(self, content: memoryview, starts: "array[int]") -> None:
        self._content = content
        self._starts = starts
        """Where each string's length stands, and where the last string ends."""

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __repr__(self) -> str:
        return f"{len(self)} strings"

    def decoded(self) -> list[str]:
        """All of them.

        Raises:
            UnicodeDecodeError: one is not UTF-8.
        """
        first = self._starts[0]
        content = bytes(self._content[first : self._starts[-1]])
        return [content[start - first + 8 : end - first].decode() for start, end in pairwise(self._starts)]

    def place(self, text: str) -> int | None:
        """The index of the string that equals `text`; None where there is none."""
        first, wanted = self._starts[0], _U64.pack(len(text.encode())) + text.encode()
        content = bytes(self._content[first : self._starts[-1]])
        found = content.find(wanted)
        while found >= 0:  # the same bytes may stand within another string
            index = bisect_left(self._starts, first + found, hi=len(self))
            if index < len(self) and self._starts[index] == first + found:
                return index
            found = content.find(wanted, found + 1)
        return None


Value = int | float | bool | str | npt.NDArray[np.generic] | Strings
"""A metadata value; a float32 as the shortest decimal that means it, so that 1e-5 is 1e-5."""


@dataclass(frozen=True)
class TensorEntry:
    """What a file says of a tensor.

    Attributes:
        shape: as numpy counts, slowest dimension first.
        kind: GGML's number for how its numbers are stored.
        offset: of its first byte within the tensors' bytes.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Container:
    """A parsed file.

    Attributes:
        metadata: by key.
        tensors: by name, in the file's order.
        data: the tensors' bytes, memory-mapped.
    """

    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorEntry]
    data: Bytes


def read_container(path: Path) -> Container:
    """Parse a file's metadata and the list of its tensors; their bytes stay on the disk.

    Raises:
        UserError: it cannot be read, is no GGUF of version 2 or 3, or is damaged.
    """
    try:
        content: Bytes = np.asarray(np.memmap(path, np.uint8, "r")) if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from None
    parser = _Parser(path, content)
    tensor_count, entry_count = parser.header()
    metadata = parser.entries(entry_count)
    alignment = parser.alignment(metadata.get("general.alignment", ALIGNMENT))
    tensors = parser.tensors(tensor_count, alignment)
    return Container(metadata, tensors, parser.data(alignment))


class _Parser:
    """Reads a file from front to back; `position` is the byte that comes next."""

    def __init__(self, path: Path, content: Bytes) -> None:
        self.path = path
        self.content = content
        self.bytes = content.data.toreadonly()
        self.size = content.size
        self.position = 0

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.path}: no whole GGUF file: {what}: fetch it again")

    def header(self) -> tuple[int, int]:
        """How many tensors and metadata entries there are."""
        if bytes(self.bytes[:4]) != GGUF_MAGIC:
            raise UserError(f"{self.path}: no GGUF file: it does not begin with {GGUF_MAGIC.decode()}")
        self.position = 4
        version = self.unsigned(_U32, "its version")
        if version not in VERSIONS:
            swapped = int.from_bytes(_U32.pack(version), "big")
            kind = f"big-endian, version {swapped}" if swapped in VERSIONS else f"of version {version}"
            raise UserError(f"{self.path}: GGUF {kind}; read are little-endian files of version "
                            f"{' and '.join(map(str, VERSIONS))}: convert the model anew with llama.cpp")  # fmt: skip
        tensors = self.unsigned(_U64, "the number of tensors")
        entries = self.unsigned(_U64, "the number of metadata entries")
        self.must_fit(tensors, _SMALLEST_TENSOR, "tensors")
        self.must_fit(entries, _SMALLEST_ENTRY, "metadata entries")
        if max(tensors, entries) > MOST_NAMES:
            raise self.damaged(f"{tensors} tensors and {entries} metadata entries: more than {MOST_NAMES}")
        return tensors, entries

    def entries(self, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(count):
            key = self.name("a metadata key")
            if key in metadata:
                raise self.damaged(f"the metadata key {_shown(key)} is there twice")
            metadata[key] = self.value(key)
        return metadata

    def alignment(self, value: Value) -> int:
        if not isinstance(value, int) or not 8 <= value <= LARGEST_ALIGNMENT or value & (value - 1):
            raise self.damaged(f"general.alignment {value!r:.40} is no power of two from 8 to {LARGEST_ALIGNMENT}")
        return value

    def tensors(self, count: int, alignment: int) -> dict[str, TensorEntry]:
        tensors: dict[str, TensorEntry] = {}
        for _ in range(count):
            name = self.name("a tensor's name")
            if name in tensors:
                raise self.damaged(f"the tensor {_shown(name)} is there twice")
            dimensions = self.unsigned(_U32, f"the dimensions of {_shown(name)}")
            if not 1 <= dimensions <= MOST_DIMENSIONS:
                raise self.damaged(f"{_shown(name)} would have {dimensions} dimensions")
            shape = tuple(self.unsigned(_U64, f"the shape of {_shown(name)}") for _ in range(dimensions))[::-1]
            # A number takes a quarter of a byte at least; Python's integers do not overflow.
            if not 0 < prod(shape) <= 4 * self.size:
                raise self.damaged(f"{_shown(name)} would have the shape {shape}")
            kind = self.unsigned(_U32, f"the kind of {_shown(name)}")
            offset = self.unsigned(_U64, f"the place of {_shown(name)}")
            if offset % alignment:
                raise self.damaged(f"{_shown(name)} would lie at byte {offset}, no multiple of {alignment}")
            tensors[name] = TensorEntry(shape, kind, offset)
        return tensors

    def data(self, alignment: int) -> Bytes:
        start = -(-self.position // alignment) * alignment
        return self.content[min(start, self.size) :]

    def value(self, key: str) -> Value:
        kind = self.unsigned(_U32, f"the type of {_shown(key)}")
        if kind == _STRING:
            return self.text(self.unsigned(_U64, _shown(key)), f"the value of {_shown(key)}")
        if kind != _ARRAY:
            return self.numbers(kind, 1, key)[0].item() if kind != 6 else float(str(self.numbers(kind, 1, key)[0]))
        item = self.unsigned(_U32, f"the type of {_shown(key)}")
        count = self.unsigned(_U64, f"the length of {_shown(key)}")
        return self.strings(count, key) if item == _STRING else self.numbers(item, count, key)

    def numbers(self, kind: int, count: int, key: str) -> npt.NDArray[np.generic]:
        """A view of the file."""
        if kind == _ARRAY:
            raise self.damaged(f"{_shown(key)} is an array of arrays")
        if kind not in _NUMBERS:
            raise self.damaged(f"{_shown(key)} is of type {kind}, which there is not")
        dtype = _NUMBERS[kind]
        self.must_fit(count, dtype.itemsize, f"items of {_shown(key)}")
        content = self.content[self.position : self.position + count * dtype.itemsize]
        self.position += content.size
        if dtype == np.bool_ and (content > 1).any():
            raise self.damaged(f"{_shown(key)} is neither true nor false")
        return content.view(dtype)

    def strings(self, count: int, key: str) -> Strings:
        self.must_fit(count, 8, f"strings of {_shown(key)}")
        starts = array("q", [self.position])
        content, unpack, position, last = self.bytes, _U64.unpack_from, self.position, self.size - 8
        for _ in range(count):  # tight, for vocabularies have 100,000 strings
            if position > last:
                break
            position += 8 + unpack(content, position)[0]
            if position > self.size:
                break
            starts.append(position)
        if len(starts) <= count:
            raise self.damaged(f"it ends within string {len(starts) - 1} of {_shown(key)}")
        self.position = position
        return Strings(content, starts)

    def name(self, what: str) -> str:
        length = self.unsigned(_U64, what)
        if not 0 < length <= LONGEST_NAME:
            raise self.damaged(f"{what} would be {length} bytes long")
        return self.text(length, what)

    def text(self, length: int, what: str) -> str:
        self.must_fit(length, 1, f"bytes of {what}")
        content = bytes(self.bytes[self.position : self.position + length])
        self.position += length
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not UTF-8") from None

    def unsigned(self, kind: struct.Struct, what: str) -> int:
        if self.position + kind.size > self.size:
            raise self.damaged(f"it ends within {what}")
        (value,) = kind.unpack_from(self.bytes, self.position)
        self.position += kind.size
        return int(value)

    def must_fit(self, count: int, size: int, what: str) -> None:
        if count * size > self.size - self.position:
            raise self.damaged(f"{count} {what} do not fit into the {self.size - self.position} bytes that are left")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:57]}...")
