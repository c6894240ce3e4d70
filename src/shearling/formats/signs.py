"""What shows of which format a path is: names in a folder, or a file's first bytes. Imports nothing heavy."""

import struct
from collections.abc import Callable
from pathlib import Path

GGUF_MAGIC = b"GGUF"
LLAMA2C_MAGIC = b"24ka"
"""Of llama2.c's versions 1 and 2; version 0 has none."""

LLAMA2C_INTEGERS = struct.Struct("<7i")
"""dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: a head of its own), seq_len."""

LARGEST_INTEGER = 1 << 28


def holds(name: str) -> Callable[[Path], bool]:
    """Whether a folder has a file of that name."""
    return lambda folder: (folder / name).is_file()


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic."""
    return path.is_file() and _head(path).startswith(GGUF_MAGIC)


def is_llama2c(path: Path) -> bool:
    """Whether a file begins with llama2.c's magic, or, as in version 0, with seven integers that can be a model's."""
    head = _head(path) if path.is_file() else b""
    if head.startswith(LLAMA2C_MAGIC) or len(head) < LLAMA2C_INTEGERS.size:
        return head.startswith(LLAMA2C_MAGIC)
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = LLAMA2C_INTEGERS.unpack(head)
    sizes = (dim, hidden_dim, n_layers, n_heads, n_kv_heads, abs(vocab_size), seq_len)
    return all(0 < size <= LARGEST_INTEGER for size in sizes) and dim % n_heads == 0 and n_heads % n_kv_heads == 0


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LLAMA2C_INTEGERS.size)
