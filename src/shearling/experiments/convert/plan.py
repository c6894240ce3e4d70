"""What a conversion is to do, settled before anything is written."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shearling.errors import UserError
from shearling.formats import FORMATS, Checkpoint, Format
from shearling.quantization import CODECS, QUANTIZED, Codec, parse_codec

DTYPES = {"f32": "f32", "fp32": "f32", "f16": "f16", "fp16": "f16", "bf16": "bf16"}
"""What `--dtype` takes, and the codec that it is."""

LLAMA2C_NAMES = {"q8_0": "int8"}
"""llama2.c calls its 8-bit integers Q8_0; they lie in groups of another size than GGUF's, with another scale."""

ABBREVIATED = {
    "hf": "huggingface",
    "transformers": "huggingface",
    "safetensors": "huggingface",
    "llama.cpp": "gguf",
    "ggml": "gguf",
    "bin": "llama2c",
    "llama2.c": "llama2c",
}
"""What formats are called elsewhere, and their names here. Suggested and not taken: a `.bin` may be other programs'."""


@dataclass(frozen=True)
class Plan:
    """One conversion.

    Attributes:
        kind: the destination's format, a name in FORMATS.
        codec: of the matrices; None: each keeps its own where the format can hold it, and is f32 elsewhere.
        options: what only this format's writer takes.
    """

    source: Path
    dest: Path
    kind: str
    codec: Codec | None
    options: dict[str, int]

    @property
    def format(self) -> Format:
        """The destination's format."""
        return FORMATS[self.kind]


def make_plan(
    source: Path,
    dest: Path,
    checkpoint: Checkpoint,
    *,
    to: str | None,
    dtype: str | None,
    quantize: str | None,
    group_size: int | None,
    version: int | None,
    overwrite: bool,
    others: Sequence[Path],
) -> Plan:
    """Settle what is asked for; the arguments are those of `convert`.

    Args:
        others: what is read besides the source.

    Raises:
        UserError: it cannot be done, or something is in the way.
    """
    kind = _kind(dest, to)
    _check_model(checkpoint, kind, source)
    try:
        _check_place(source, dest, FORMATS[kind], overwrite, others)
    except (OSError, RuntimeError) as error:  # the latter: a loop of links, before Python 3.13
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{dest}: cannot be written ({reason}): name another destination") from error
    codec = _codec(kind, dtype, quantize, group_size)
    options = _options(kind, version, codec, checkpoint)
    if kind == "llama2c" and group_size is None and codec and codec.name == "int8":
        codec = None  # the writer knows which groups fit
    return Plan(source, dest, kind, codec, options)


def _kind(dest: Path, to: str | None) -> str:
    """The destination's format: what is asked for, or what its name says.

    A suffix of letters alone is a file's, `.gguf` as `.guff`; a folder's name may have dots before other things, as
    `mine-v1.5` and `SmolLM2-1.7B` have.
    """
    written = [name for name, known in FORMATS.items() if known.write]
    by_suffix = {suffix: name for name in written if (suffix := FORMATS[name].suffix)}
    suffix = dest.suffix.lower()
    if to is None:
        if suffix in by_suffix or not suffix[1:].isalpha() or dest.is_dir():
            return by_suffix.get(suffix, "huggingface")
        near = difflib.get_close_matches(suffix, by_suffix, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"{dest}: no model is written as {dest.suffix}{meant}: name a file {' or '.join(by_suffix)}, or a folder; "
            f"with --to {', '.join(written[:-1])} or {written[-1]} any name will do"
        )
    if to not in written:
        name = to.lower().removeprefix(".")
        near = [ABBREVIATED[name]] if name in ABBREVIATED else difflib.get_close_matches(name, written, 1)
        meant = f"did you mean {near[0]}?" if near else f"one of {', '.join(written)}"
        raise UserError(f"--to {to}: no format that is written here: {meant}")
    if by_suffix.get(suffix, to) != to:
        title = FORMATS[by_suffix[suffix]].title
        raise UserError(f"--to {to}: {dest} is named as {title}: name it otherwise, or leave --to out")
    return to


def _check_model(checkpoint: Checkpoint, kind: str, source: Path) -> None:
    spec = checkpoint.spec
    if spec.placement.residual_warmup is not None:
        raise UserError(
            f"{source}: model.placement.residual_warmup has not come to its end, and of {spec.placement.kind} no file "
            "can hold a branch that is not yet whole: train it further"
        )
    holds_all = kind == "run" or (kind == "huggingface" and spec.arch in ("gpt2", "bert"))
    if (beyond := spec.beyond_llama()) and not holds_all:
        raise UserError(
            f"{source}: {', '.join(f'model.{option}' for option in beyond)}: LLaMA's graph has no such thing, so "
            f"{FORMATS[kind].title} cannot hold this model: --to run can"
        )


def _check_place(source: Path, dest: Path, known: Format, overwrite: bool, others: Sequence[Path]) -> None:
    here = dest.resolve()
    if source.resolve() == here:
        raise UserError(f"{dest}: source and destination are one: name another destination")
    if not here.parent.is_dir():
        trouble = "is no folder: name another" if here.parent.exists() else "no such folder: make it first"
        raise UserError(f"{here.parent}: {trouble}")
    if not (dest.exists() or dest.is_symlink()):
        return
    if here in source.resolve().parents:
        raise UserError(f"{dest}: holds the source: name another destination")
    for other in others:
        if here in (other.resolve(), *other.resolve().parents):
            what = f"holds {other}, which is read" if dest.is_dir() else "is read, as tokenizer or data"
            raise UserError(f"{dest}: {what}: name another destination")
    if not overwrite:
        raise UserError(f"{dest}: is there already: name another destination, or give --overwrite")
    if dest.is_dir() != (known.suffix is None):
        kinds = ("folder", "file") if dest.is_dir() else ("file", "folder")
        raise UserError(f"{dest}: is a {kinds[0]}, and {known.title} is a {kinds[1]}: name another destination")
    if not _may_go(dest):
        raise UserError(f"{dest}: holds no model, so it is not overwritten: name another destination")


def _may_go(dest: Path) -> bool:
    """Whether a file or folder is a model, or empty; a device, or a pipe, is neither."""
    if dest.is_dir():
        empty = not any(dest.iterdir())
    else:
        empty = not dest.exists() or (dest.is_file() and not dest.stat().st_size)  # a link to nowhere holds nothing
    return empty or any(known.recognizes(dest) for known in FORMATS.values())


def _codec(kind: str, dtype: str | None, quantize: str | None, group_size: int | None) -> Codec | None:
    if dtype is not None and quantize is not None:
        raise UserError(f"--dtype {dtype} and --quantize {quantize}: both say how weights are stored: give one")
    if group_size is not None and quantize is None:
        raise UserError(f"--group-size {group_size}: has no effect without --quantize")
    if dtype is not None:
        if dtype not in DTYPES:
            floats = ", ".join(dict.fromkeys(DTYPES.values()))
            raise UserError(f"--dtype {dtype}: one of {floats}; for fewer bits there is --quantize")
        codec = CODECS[DTYPES[dtype]]
    elif quantize is not None:
        name = quantize.lower()
        if name not in (*QUANTIZED, *LLAMA2C_NAMES):
            raise UserError(f"--quantize {quantize}: one of {', '.join(QUANTIZED)}; for floats there is --dtype")
        codec = parse_codec(LLAMA2C_NAMES.get(name, name) if kind == "llama2c" else name, group_size)
    else:
        return None
    known = FORMATS[kind]
    if codec.name not in known.codecs:
        others = " or ".join(other.title for other in FORMATS.values() if codec.name in other.codecs)
        raise UserError(
            f"{codec.name}: {known.title} holds {', '.join(known.codecs)}; {codec.name} can go into {others}"
        )
    return codec


def _options(kind: str, version: int | None, codec: Codec | None, checkpoint: Checkpoint) -> dict[str, int]:
    """Which of its versions a format is written in: for llama2.c the one that holds 8-bit integers, else the first."""
    versions = FORMATS[kind].versions
    if not versions:
        if version is not None:
            raise UserError(f"--version {version}: has no effect: {FORMATS[kind].title} has one version")
        return {}
    stored = codec or next(tensor.codec for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2)
    integers = stored.name == "int8"
    chosen = (2 if integers else 0) if version is None else version
    if chosen not in versions:
        raise UserError(f"--version {version}: one of {', '.join(map(str, versions))}")
    if codec is not None and integers and chosen != 2:
        raise UserError(f"--version {version}: holds f32: leave --quantize out, or take version 2")
    if codec is not None and not integers and chosen == 2:
        raise UserError(f"--version {version}: holds 8-bit integers: leave --dtype out, or take version 0 or 1")
    return {"version": chosen}
