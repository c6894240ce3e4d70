"""Folders that the `transformers` library reads and writes: `config.json` and weights in safetensors. No torch.

What each model_type calls its options and tensors is in `families`; the rest is the same for all, and both ways.
"""

from shearling.formats.huggingface.reader import read_huggingface
from shearling.formats.huggingface.writer import write_huggingface

__all__ = ["read_huggingface", "write_huggingface"]
