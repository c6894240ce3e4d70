"""GGUF, llama.cpp's format: models of the LLaMA graph, both ways."""

from shearling.formats.gguf.reader import read_gguf
from shearling.formats.gguf.writer import write_gguf

__all__ = ["read_gguf", "write_gguf"]
