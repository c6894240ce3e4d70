"""Models on a Hub of this machine, and what downloads of them bring or are refused for."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hub_server import Repository

from shearling.errors import UserError
from shearling.formats.download import Download, Meter, download
from shearling.formats.hub import Hub
from shearling.progress import Advance

TINY = "some/tiny"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
}


def offline(hub: Hub) -> Hub:
    """The same cache, and an address where nobody listens."""
    return Hub("http://127.0.0.1:9", hub.cache, offline=True, say=lambda text: None)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def folder_of(config: dict[str, Any] | bytes | None = None, **files: bytes) -> Repository:
    """A repository as `transformers` makes it, with what else lies in such."""
    described = config if isinstance(config, bytes) else json.dumps(LLAMA if config is None else config).encode()
    held = {
        "README.md": b"a model",
        "config.json": described,
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"a": 1}',
        "modeling_own.py": b"import os",
        "pytorch_model.bin": noise(900, 7),
        "model.safetensors": noise(5_000),
        **files,
    }
    return Repository(held, large={name for name in held if name.endswith((".safetensors", ".bin", ".gguf"))})


def refusal(name: str, hub: Hub, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        download(name, hub, **options)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def brought(result: Download) -> dict[str, bytes]:
    assert result.model is not None
    folder = result.model if result.model.is_dir() else result.model.parent
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def counter(taken: list[int], totals: list[tuple[int, int]] | None = None) -> Meter:
    """Puts down the bytes that came, and what was to come and was there before."""

    @contextmanager
    def meter(what: str, total: int, done: int) -> Iterator[Advance]:
        if totals is not None:
            totals.append((total, done))
        yield taken.append

    return meter
