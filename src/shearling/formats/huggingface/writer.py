"""Writes a folder that `transformers` loads."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.formats.huggingface.config import config_of
from shearling.formats.huggingface.families import Family
from shearling.formats.huggingface.options import Options
from shearling.formats.huggingface.texts import CONFIG, GENERATION, TOKENIZER_CONFIG
from shearling.formats.huggingface.weights import INDEX, SINGLE, grouped, is_turned
from shearling.formats.safetensors import DTYPES as NUMPY
from shearling.formats.safetensors import write_safetensors
from shearling.formats.specification import expected_shapes
from shearling.models.spec import ModelSpec
from shearling.quantization import CODECS, Codec, Part

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
"""By codec: what weights are written with."""

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

SHARD_BYTES = 5_000_000_000
"""Of one file, before a second one is begun: what the Hub's tools use."""


def write_huggingface(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    codec: Codec | None = None,
    progress: Callable[[int], None] = lambda _: None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write a model in the graph of LLaMA, Mistral, GPT-2 or BERT, with its tokenizer and chat template.

    Args:
        codec: of matrices: f32, f16 or bf16; None keeps each tensor's own, f32 where it is another. Vectors are f32.
        progress: takes the number of bytes just written.
        shard_bytes: weights that take more are cut into several files.

    Returns:
        What the user should know, a line each.

    Raises:
        UserError: `transformers` has no such model, or no such weights (nothing was written then); a weight is beyond
            what the codec can hold.
    """
    if codec is not None and codec.name not in DTYPES:
        raise UserError(f"{codec.name}: a Hugging Face folder takes {', '.join(DTYPES)}: choose one, or write a .gguf")
    family, config = config_of(checkpoint.spec, checkpoint.origin)
    outputs = _outputs(family, checkpoint, codec)
    matrices = {output.dtype for output in outputs if len(output.shape) > 1}
    config["torch_dtype"] = TORCH_NAMES[matrices.pop() if len(matrices) == 1 else "F32"]
    tokens = _special_tokens(checkpoint)
    files = _tokenizer_files(checkpoint)
    files[CONFIG] = _json(config | tokens)
    if checkpoint.spec.causal:
        files[GENERATION] = _json(tokens)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        progress(len(content))
    _write_weights(folder, outputs, progress, shard_bytes)
    return [] if checkpoint.tokenizer else [f"{checkpoint.origin} has no tokenizer: put its files into the folder"]


@dataclass(frozen=True)
class _Output:
    """A tensor to be written.

    Attributes:
        name: the full one in the file.
        dtype, shape: as the file has them.
        pieces: gives its numbers.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Part]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * NUMPY[self.dtype].itemsize


def _outputs(family: Family, checkpoint: Checkpoint, codec: Codec | None) -> list[_Output]:
    spec, shapes = checkpoint.spec, expected_shapes(checkpoint.spec)
    if wrong := sorted(shapes.keys() ^ checkpoint.tensors.keys()):
        raise UserError(f"{checkpoint.origin}: {wrong[0]}: this tensor is missing, or is none of such a model")
    outputs = []
    stored = grouped(family, spec, shapes)
    for theirs, names in stored.items():
        shape = [sum(shapes[ours][0] for ours in names), *shapes[names[0]][1:]]
        turned = is_turned(family, theirs, shape)
        chosen = _codec_name([checkpoint.tensors[ours] for ours in names], codec)
        pieces = partial(_pieces, checkpoint, names, CODECS[chosen], turned)
        in_file = tuple(shape[::-1] if turned else shape)
        outputs.append(_Output(family.full_name(theirs, spec.head), DTYPES[chosen], in_file, pieces))
    for theirs, zero_shape in _zeros(family, spec, stored).items():
        outputs.append(_Output(family.full_name(theirs, spec.head), "F32", zero_shape, partial(_nothing, zero_shape)))
    return outputs


def _codec_name(tensors: list[StoredTensor], asked: Codec | None) -> str:
    """What one of their tensors is stored with, that holds these of ours."""
    own = {tensor.codec.name for tensor in tensors}
    name = asked.name if asked else own.pop() if len(own) == 1 else ""
    return name if name in DTYPES and len(tensors[0].shape) > 1 else "f32"


def _zeros(family: Family, spec: ModelSpec, stored: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors that `transformers` asks for and that add nothing, with their shapes.

    The first row of BERT's segments is in the positions already; beside an untied decoder BERT has a bias that nothing
    adds.
    """
    shapes: dict[str, tuple[int, ...]] = {family.segments: (1, spec.d_model)} if family.segments else {}
    return shapes | {
        theirs: (spec.vocab_size,) for theirs in family.tied.values() if spec.head and theirs not in stored
    }


def _nothing(shape: tuple[int, ...]) -> Iterator[Part]:
    yield np.zeros(shape, np.float32)


def _pieces(checkpoint: Checkpoint, names: list[str], codec: Codec, turned: bool) -> Iterator[Part]:
    """The numbers of our tensors, one after the other, in rows or, turned, in columns."""
    tensors = (checkpoint.in_rotary("halves", ours) for ours in names)
    if turned:
        yield from codec.encode(np.concatenate([tensor.read() for tensor in tensors]).T)
    else:
        for tensor in tensors:
            for (piece,) in tensor.encoded(codec):
                yield piece


def _write_weights(folder: Path, outputs: list[_Output], progress: Callable[[int], None], shard_bytes: int) -> None:
    shards: list[list[_Output]] = [[]]
    size = 0
    for output in outputs:
        size += output.nbytes
        if shards[-1] and size > shard_bytes:
            shards.append([])
            size = output.nbytes
        shards[-1].append(output)
    count = len(shards)
    names = (
        [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)] if count > 1 else [SINGLE]
    )
    by_name = {output.name: output for output in outputs}

    def pieces(name: str) -> Iterator[Part]:
        return by_name[name].pieces()

    for name, shard in zip(names, shards, strict=True):
        described = [(output.name, output.dtype, output.shape) for output in shard]
        write_safetensors(folder / name, described, pieces, metadata={"format": "pt"}, progress=progress)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(output.nbytes for output in outputs)},
            "weight_map": {output.name: name for name, shard in zip(names, shards, strict=True) for output in shard},
        }
        (folder / INDEX).write_bytes(_json(index))


def _special_tokens(checkpoint: Checkpoint) -> Options:
    """What begins a text, and what ends it: nulls where nobody knows, since `transformers` would take 1 and 2."""
    tokenizer, stops = checkpoint.tokenizer, list(checkpoint.stop_ids)
    if not stops and tokenizer:
        stops = [tokenizer.eos_id]
    ends: int | list[int] | None = stops if len(stops) > 1 else stops[0] if stops else None
    return {"bos_token_id": tokenizer.bos_id if tokenizer else None, "eos_token_id": ends}


def _tokenizer_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """By name: `tokenizer.json` with its options, and the tokenizer's own file, if that is another."""
    if checkpoint.tokenizer is None:
        return {}
    from shearling.data.tokenizers.conversion import to_tokenizer_json, tokenizer_config_json

    tokenizer = checkpoint.tokenizer
    return {
        tokenizer.file_name: tokenizer.serialized,
        "tokenizer.json": to_tokenizer_json(tokenizer, adds_bos=checkpoint.adds_bos),
        TOKENIZER_CONFIG: tokenizer_config_json(
            tokenizer,
            checkpoint.chat_template,
            max_length=checkpoint.spec.max_seq_len,
            adds_bos=checkpoint.adds_bos,
        ),
    }


def _json(value: Options) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
