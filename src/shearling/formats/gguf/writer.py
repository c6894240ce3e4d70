"""A checkpoint as a GGUF file that llama.cpp runs. The `gguf` package writes the header, we the tensors, in pieces."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.formats.gguf.container import ALIGNMENT
from shearling.formats.gguf.hyperparameters import ARCHITECTURE, write_spec
from shearling.formats.gguf.names import FILE_TYPES, KINDS, ROPE_FACTORS, WRITTEN, gguf_name
from shearling.formats.gguf.rope import rope_factors
from shearling.formats.gguf.tokenizer import end_of_turn, without_tokenizer, write_tokenizer
from shearling.formats.specification import expected_shapes
from shearling.models.spec import ModelSpec, RoPESpec, YarnScalingSpec
from shearling.quantization import CODECS, Codec

CARRIED = ("author", "basename", "description", "finetune", "license", "organization", "size_label", "url", "version")
"""Notes that become `general.*`, besides the name."""

QUANTIZATION_VERSION = 2
"""Of GGML's blocks."""

NUMBERS = {kind: number for number, kind in KINDS.items() if kind != "f64"}
"""GGML's number of each codec that llama.cpp computes with."""


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: its name there, its codec there, and what gives it when its turn has come."""

    name: str
    codec: Codec
    shape: tuple[int, ...]
    load: Callable[[], StoredTensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.codec.row_bytes(self.shape[-1])


def write_gguf(
    path: Path, checkpoint: Checkpoint, *, codec: Codec | None = None, progress: Callable[[int], None]
) -> list[str]:
    """Write a model, with its tokenizer and chat template where it has them, in the memory of one tensor.

    Args:
        path: of the file; an old one is overwritten.
        codec: of the matrices; None: each keeps its own where GGUF has it, and is f32 elsewhere. One whose rows are no
            whole groups becomes f16, as in llama.cpp. Vectors are f32.
        progress: is called with the number of bytes that were written since it was last called.

    Returns:
        What the user should know, a line each.

    Raises:
        UserError: GGUF's LLaMA cannot hold the model or its tokenizer, or `codec` is none of GGUF's that are written
            here (nothing was written then); a weight is beyond what the codec can hold; the `gguf` package is missing.
        OSError: the disk is full or failing.
    """
    _refuse(checkpoint.spec, codec)
    tensors, notes = _plan(checkpoint, codec)
    tokenizer = checkpoint.tokenizer
    if tokenizer is None:
        notes.append("no tokenizer came with the model: llama.cpp will run it on ids alone")
        entries = without_tokenizer()
    else:
        entries, known = write_tokenizer(tokenizer, checkpoint.spec.vocab_size, checkpoint.adds_bos)
        notes += known
        entries |= end_of_turn(checkpoint.stop_ids, entries)
    if checkpoint.chat_template:
        entries["tokenizer.chat_template"] = checkpoint.chat_template
    _write_header(path, {**_general(checkpoint, tensors), **write_spec(checkpoint.spec), **entries}, tensors)
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % ALIGNMENT))
        for planned in tensors:
            for content in _encoded(planned):
                file.write(content.data)
                progress(content.nbytes)
            file.write(bytes(-planned.nbytes % ALIGNMENT))
    return notes


def _refuse(spec: ModelSpec, codec: Codec | None) -> None:
    if beyond := spec.beyond_llama():
        raise UserError(f"GGUF's LLaMA has no {', '.join(beyond)} as in this model: no other program would run it")
    if spec.placement.kind != "pre":
        raise UserError(
            f"GGUF's LLaMA has plain norms before its branches, and placement.kind is {spec.placement.kind}"
        )
    if spec.sliding_window is not None and spec.sliding_window < spec.max_seq_len:
        raise UserError(f"GGUF's LLaMA has no sliding window, and this model's is {spec.sliding_window} tokens: write "
                        "a Hugging Face folder")  # fmt: skip
    scaling = spec.position.scaling if isinstance(spec.position, RoPESpec) else None
    if isinstance(scaling, YarnScalingSpec) and (scaling.beta_fast, scaling.beta_slow) != (32, 1):
        raise UserError("llama.cpp takes YaRN's beta_fast as 32 and beta_slow as 1 in LLaMA models, and here they are "
                        f"{scaling.beta_fast:g} and {scaling.beta_slow:g}: write a Hugging Face folder")  # fmt: skip
    if codec is not None and codec.name not in WRITTEN:
        raise UserError(f"{codec.name}: no codec that GGUF is written with: take one of {', '.join(WRITTEN)}")


def _plan(checkpoint: Checkpoint, codec: Codec | None) -> tuple[list[Planned], list[str]]:
    """All tensors in their order, and what their user should know of their codecs."""
    tensors = []
    changed: Counter[str] = Counter()
    for name, shape in expected_shapes(checkpoint.spec).items():
        own = checkpoint.tensors[name].codec
        asked = codec or (own if own.name in NUMBERS else CODECS["f32"])
        chosen = CODECS["f32"] if len(shape) == 1 else asked if asked.fits(shape[-1]) else CODECS["f16"]
        if len(shape) > 1 and chosen.name != (codec or own).name:
            changed[f"{(codec or own).name} became {chosen.name}"] += 1
        tensors.append(Planned(gguf_name(name), chosen, shape, partial(checkpoint.in_rotary, "adjacent", name)))
    factors = rope_factors(checkpoint.spec)
    if factors is not None:
        tensor = StoredTensor.of(factors)
        tensors.append(Planned(ROPE_FACTORS, tensor.codec, tensor.shape, lambda: tensor))
    return tensors, [f"{what} in {count} matrices" for what, count in changed.items()]


def _general(checkpoint: Checkpoint, tensors: list[Planned]) -> dict[str, Any]:
    """`general.*`: what the file is, and what it says of itself."""
    weights: Counter[str] = Counter()
    for planned in tensors:
        if len(planned.shape) > 1:
            weights[planned.codec.name] += prod(planned.shape)
    carried = {key: checkpoint.notes[key] for key in CARRIED if isinstance(checkpoint.notes.get(key), str)}
    return {
        "general.type": "model",
        "general.name": checkpoint.name,
        **{f"general.{key}": value for key, value in carried.items()},
        "general.file_type": FILE_TYPES[weights.most_common(1)[0][0]],
        "general.quantization_version": QUANTIZATION_VERSION,
    }


def _write_header(path: Path, metadata: dict[str, Any], tensors: list[Planned]) -> None:
    try:
        from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
    except ImportError as error:
        raise UserError(
            "GGUF is written with the `gguf` package, which is missing: pip install 'shearling[gguf]'"
        ) from error
    types = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
        list: GGUFValueType.ARRAY,
    }
    writer = GGUFWriter(path, ARCHITECTURE)
    for key, value in metadata.items():
        writer.add_key_value(key, value, types[type(value)])
    for planned in tensors:
        writer.add_tensor_info(
            planned.name,
            planned.shape,
            np.dtype(np.float32),  # passed over for the number that follows
            planned.nbytes,
            raw_dtype=GGMLQuantizationType(NUMBERS[planned.codec.name]),
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _encoded(planned: Planned) -> Iterator[npt.NDArray[np.uint8]]:
    """The tensor's bytes, some MiB at a time."""
    for (part,) in planned.load().encoded(planned.codec):
        yield np.ascontiguousarray(part).view(np.uint8)
