"""Files of the `safetensors` library, mapped and not copied. No torch.

The format (github.com/huggingface/safetensors#format): 8 bytes with the header's length, the header as JSON, then the
tensors' bytes, one after the other without holes. A file is foreign until its header has been checked as a whole; no
byte of a tensor is read before.
"""

import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from shearling.errors import UserError
from shearling.formats.checkpoint import StoredTensor
from shearling.quantization import CODECS, Part

LARGEST_HEADER = 100_000_000
"""Bytes; the library's own limit."""

LARGEST_COUNT = 1 << 59
"""Numbers in a tensor; numpy counts their bytes in 63 bits, those of an empty tensor's other dimensions too."""

MOST_DIMENSIONS = 32
"""All that numpy before version 2 takes."""

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
"""What numpy has for each dtype. It has no bfloat16: those come as their 16 bits."""

FLOATS = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16"}
"""The codec of each dtype that holds weights."""

NARROW_BITS = {"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6,
               "F6_E3M2": 6, "C64": 64}  # fmt: skip
"""Dtypes that numpy has nothing for: their bytes are counted and not read."""

Described = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a tensor to be written."""


@dataclass(frozen=True)
class Entry:
    """What a header says of one tensor: its dtype as the format calls it, shape, and place behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose header is sound.

    Attributes:
        path: the file, for messages.
        entries: what it holds, by name.
        metadata: what else its writer put into the header.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    _bytes: Part

    def array(self, name: str) -> Part:
        """A tensor as a read-only view of the file; bfloat16 as uint16, booleans as uint8.

        Raises:
            UserError: its dtype is none that numpy has.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise UserError(f"{self.path}: {named(name)}: {entry.dtype} is not read here: {', '.join(DTYPES)} are")
        return self._bytes[entry.start : entry.stop].view(DTYPES[entry.dtype]).reshape(entry.shape)

    def tensor(self, name: str) -> StoredTensor:
        """A tensor of floats.

        Raises:
            UserError: its dtype is another.
        """
        entry = self.entries[name]
        if entry.dtype not in FLOATS:
            readable = ", ".join(FLOATS)
            raise UserError(
                f"{self.path}: {named(name)}: {entry.dtype} is no dtype of weights that is read here: {readable}"
            )
        return StoredTensor(entry.shape, CODECS[FLOATS[entry.dtype]], (self.array(name),))


def open_safetensors(file: Path) -> SafetensorsFile:
    """Map a file and check its header.

    Raises:
        UserError: it is not there, is cut short, or its header breaks a rule of the format.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER):
                raise _damaged(file, f"a header of {length} bytes in a file of {size}")
            header = opened.read(length)
            # A view of the map itself: `numpy.memmap` would make every slice of it one more of its own kind.
            everything = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise _damaged(file, error.strerror or str(error)) from None
    entries, metadata = _parse(file, header, size - 8 - length)
    return SafetensorsFile(file, entries, metadata, everything[8 + length :])


def named(name: str) -> str:
    """A foreign name as messages can take it: in one line, and not long."""
    return name if name.isprintable() and len(name) <= 100 else f"{name[:100]!r}"


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file}: no whole safetensors file ({reason}): fetch it again")


def _parse(file: Path, header: bytes, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries and the metadata of a header before `size` bytes of tensors."""
    try:
        parsed = json.loads(header.decode(), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is no JSON: {str(error)[:80]}") from None
    if not isinstance(parsed, dict):
        raise _damaged(file, "its header is no map")
    metadata = parsed.pop("__metadata__", None)
    if metadata is None:  # some write a null
        metadata = {}
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise _damaged(file, "__metadata__ is no map from texts to texts")
    entries = {name: _entry(file, name, described) for name, described in parsed.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise _damaged(file, f"{named(name)} begins at {entry.start}, where the tensors before it end at {end}")
        end = entry.stop
    if end != size:
        raise _damaged(file, f"its tensors take {end} bytes, and {size} are there")
    return entries, metadata


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    for name in found:
        name.encode()  # half of a surrogate pair is no text
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _entry(file: Path, name: str, described: Any) -> Entry:
    if isinstance(described, dict) and described.keys() == {"dtype", "shape", "data_offsets"}:
        dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
        sound = isinstance(dtype, str) and _counts(shape) and _counts(offsets) and len(offsets) == 2
        if sound and len(shape) <= MOST_DIMENSIONS and prod(max(length, 1) for length in shape) < LARGEST_COUNT:
            bits = DTYPES[dtype].itemsize * 8 if dtype in DTYPES else NARROW_BITS.get(dtype)
            if bits is None:
                raise _damaged(file, f"{named(name)} has the unknown dtype {dtype[:20]!r}")
            start, stop = offsets
            if prod(shape) * bits == 8 * (stop - start):
                return Entry(dtype, tuple(shape), start, stop)
            raise _damaged(file, f"{named(name)} has {stop - start} bytes, and its dtype and shape need others")
    raise _damaged(file, f"{named(name)} is described by no dtype, shape and offsets")


def _counts(values: Any) -> bool:
    """Whether these are integers that can be sizes."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < LARGEST_COUNT for value in values)


def write_safetensors(
    file: Path,
    tensors: Iterable[Described],
    data: Callable[[str], Iterator[Part]],
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write tensors that are made while they are written, so that no more than a piece of one is in memory.

    Args:
        tensors: name, dtype (a key of DTYPES) and shape of each.
        data: gives the numbers of a tensor as arrays, one after the other; bfloat16 as uint16. It is asked for each
            name once, wide dtypes before narrow ones: so each tensor lies at a multiple of its numbers' size.
        metadata: texts for the header; `transformers` wants `{"format": "pt"}`.
        progress: takes the number of bytes just written.
    """
    ordered = sorted(tensors, key=lambda tensor: -DTYPES[tensor[1]].itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in ordered:
        start, end = end, end + prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        progress(8 + len(text))
        for name, dtype, _ in ordered:
            start, stop = header[name]["data_offsets"]
            for piece in data(name):
                assert piece.dtype == DTYPES[dtype], f"{name}: {piece.dtype}, and not {dtype}"
                opened.write(np.ascontiguousarray(piece).data)
                start += piece.nbytes
                progress(piece.nbytes)
            assert start == stop, f"{name}: {start - stop} bytes too many"
