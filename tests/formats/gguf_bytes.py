"""GGUF files put together byte by byte, so that any number in them can be wrong."""

import struct
from pathlib import Path

TYPES = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "array": 9, "u64": 10,
         "i64": 11, "f64": 12}  # fmt: skip
FORMATS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "B", "u64": "Q",
           "i64": "q", "f64": "d"}  # fmt: skip


def string(text: "str | bytes", length: "int | None" = None) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content) if length is None else length) + content


def scalar(kind: str, value) -> bytes:
    return string(value) if kind == "str" else struct.pack(f"<{FORMATS[kind]}", value)


def entry(key: "str | bytes", kind: str, value) -> bytes:
    """A metadata entry."""
    return string(key) + struct.pack("<I", TYPES[kind]) + scalar(kind, value)


def array(key: str, kind: str, values, count: "int | None" = None) -> bytes:
    """A metadata entry of several values."""
    head = struct.pack("<IIQ", TYPES["array"], TYPES[kind], len(values) if count is None else count)
    return string(key) + head + b"".join(scalar(kind, value) for value in values)


def tensor(name: "str | bytes", dims=(32,), kind: int = 0, offset: int = 0, n_dims: "int | None" = None) -> bytes:
    """What a file says of a tensor; dimensions are GGML's, fastest first."""
    count = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def gguf(
    entries=(), tensors=(), data: bytes = b"", *, magic=b"GGUF", version=3, counts=(None, None), alignment: int = 32
) -> bytes:
    """A whole file."""
    n_tensors, n_entries = (
        len(given) if count is None else count for count, given in zip(counts, (tensors, entries), strict=True)
    )
    head = magic + struct.pack("<IQQ", version, n_tensors, n_entries) + b"".join((*entries, *tensors))
    return head + bytes(-len(head) % alignment) + data


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path
