"""Models in the files of other programs, and in our own: one module a format, reader and writer side by side.

A format is one entry in FORMATS. What a file is shows in its content; its name decides nothing. Imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from shearling.data.tokenizers import load_tokenizer
from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, Rotary, StoredTensor
from shearling.formats.signs import holds, is_gguf, is_llama2c
from shearling.quantization import QUANTIZED, Codec

__all__ = [
    "FORMATS",
    "Checkpoint",
    "Format",
    "Progress",
    "Rotary",
    "StoredTensor",
    "format_of",
    "open_checkpoint",
]

Progress = Callable[[int], None]
"""Takes the number of bytes that were written since it was last called."""

Reader = Callable[[Path, Path | None], Checkpoint]
"""The model in a path; the second is a tokenizer's file or folder, to take in place of the model's own."""


class Writer(Protocol):
    """Writes a model to `path`, and gives back what its user should know, a line each.

    `version` is given where the format has several.

    Raises:
        UserError: the format cannot hold the model; nothing was written.
    """

    def __call__(
        self, path: Path, checkpoint: Checkpoint, *, codec: Codec | None, progress: Progress, **options: int
    ) -> list[str]: ...


@dataclass(frozen=True)
class Format:
    """How a format is known, read and written.

    Attributes:
        title: what it is called in messages.
        sign: what shows it, in messages.
        recognizes: whether a path holds it. It looks at names in a folder, or at a file's first bytes.
        read, write: see Reader and Writer; None where the format is only read.
        suffix: of its files; None where a model is a folder.
        codecs: what its matrices can be stored with, by name.
        versions: that the writer has to choose from.
        tokenizer_apart: whether a tokenizer is a file of its own beside the model.
    """

    title: str
    sign: str
    recognizes: Callable[[Path], bool]
    read: Reader
    write: Writer | None = None
    suffix: str | None = None
    codecs: tuple[str, ...] = ()
    versions: tuple[int, ...] = ()
    tokenizer_apart: bool = False


def open_checkpoint(path: Path, tokenizer: Path | None = None) -> Checkpoint:
    """The model in a file or folder of any format that is known here, memory-mapped.

    Args:
        tokenizer: a tokenizer's file or folder, to take in place of what came with the model.

    Raises:
        UserError: there is nothing, nothing that is known, or what is there is damaged.
    """
    try:
        return FORMATS[format_of(path)].read(path, tokenizer)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): check the path and its rights") from error


def format_of(path: Path) -> str:
    """The name in FORMATS of what a path holds.

    Raises:
        UserError: there is nothing, or nothing that is known.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder: check the path")
    found = next((name for name, known in FORMATS.items() if known.recognizes(path)), None)
    if found is None:
        empty = " (as an empty path is read)" if path == Path() else ""  # which "" becomes, and is not told from "."
        raise UserError(f"{path}{empty}: no model that is read here; {_mend(path)}")
    return found


def _mend(path: Path) -> str:
    signs = [known.sign for known in FORMATS.values() if (known.suffix is None) == path.is_dir()]
    looked = f"looked for {', '.join(signs)}"
    if not path.is_dir():
        within = path.parent.is_dir() and next((name for name, f in FORMATS.items() if f.recognizes(path.parent)), None)
        return f"its folder {path.parent} is {FORMATS[within].title}: give that" if within else looked
    inside = sorted(file for file in path.iterdir() if file.is_file() and _is_model_file(file))
    return f"it holds {inside[0].name}: give that file" if inside else looked


def _is_model_file(path: Path) -> bool:
    return any(known.recognizes(path) for known in FORMATS.values() if known.suffix)


def _of(module: str, action: str) -> Any:
    """`read_gguf` of the module `gguf`: imported when it is first asked for, since most commands need one format."""
    return getattr(import_module(f"shearling.formats.{module}"), f"{action}_{module}")


def _reads(module: str) -> Reader:
    def read(path: Path, tokenizer: Path | None) -> Checkpoint:
        checkpoint: Checkpoint = _of(module, "read")(path)
        if tokenizer is None:
            return checkpoint
        return replace(checkpoint, load_tokenizer=lambda: load_tokenizer(tokenizer))

    return read


def _reads_with_tokenizer(module: str) -> Reader:
    """Of a format whose reader has to know: it keeps tokenizers apart from models, or knows the model's by its hash."""
    return lambda path, tokenizer: _of(module, "read")(path, tokenizer)


def _writes(module: str) -> Writer:
    def write(
        path: Path, checkpoint: Checkpoint, *, codec: Codec | None, progress: Progress, **options: int
    ) -> list[str]:
        return _of(module, "write")(path, checkpoint, codec=codec, progress=progress, **options) or []

    return write


FLOATS = ("f32", "f16", "bf16")

FORMATS: dict[str, Format] = {
    "run": Format(
        "a run folder",
        "experiment_config.yaml (a run folder)",
        holds("experiment_config.yaml"),
        _reads_with_tokenizer("run_folder"),
        _writes("run_folder"),
        codecs=(*FLOATS, *QUANTIZED),
    ),
    "huggingface": Format(
        "a Hugging Face folder",
        "config.json (a Hugging Face folder)",
        holds("config.json"),
        _reads("huggingface"),
        _writes("huggingface"),
        codecs=FLOATS,
    ),
    "meta": Format("a Meta folder", "params.json (a Meta folder)", holds("params.json"), _reads("meta")),
    "gguf": Format(
        "GGUF",
        "GGUF's magic",
        is_gguf,
        _reads("gguf"),
        _writes("gguf"),
        suffix=".gguf",
        codecs=(*FLOATS, "q8_0", "q4_0", "q4_1"),
    ),
    "llama2c": Format(
        "llama2.c's .bin",
        "the header of a llama2.c .bin",
        is_llama2c,
        _reads_with_tokenizer("llama2c"),
        _writes("llama2c"),
        suffix=".bin",
        codecs=("f32", "int8"),
        versions=(0, 1, 2),
        tokenizer_apart=True,
    ),
}
"""By name, in the order in which they are tried."""
