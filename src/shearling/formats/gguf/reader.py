"""A GGUF file of a LLaMA model as a checkpoint: memory-mapped, without torch and without the `gguf` package."""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.formats.gguf.container import Container, TensorEntry, Value, read_container
from shearling.formats.gguf.hyperparameters import ARCHITECTURE, read_spec
from shearling.formats.gguf.names import KINDS, OTHER_KINDS, ROPE_FACTORS, gguf_name
from shearling.formats.gguf.tokenizer import ADD_BOS, has_tokenizer, read_tokenizer, stop_ids
from shearling.formats.gguf.values import Metadata
from shearling.formats.specification import expected_shapes
from shearling.quantization import CODECS


def read_gguf(path: Path) -> Checkpoint:
    """The model in a GGUF file of architecture llama.

    Its tensors are views of the file. `notes` hold what `general.*` says in single values: `name`, `license`, …

    Raises:
        UserError: the file cannot be read or is damaged, or holds what our models cannot express.
    """
    container = read_container(path)
    metadata = Metadata(container.metadata, str(path))
    architecture = metadata.text("general.architecture")
    if architecture != ARCHITECTURE:
        raise UserError(f"{path}: general.architecture: {architecture!r:.40} is none that is read here: {ARCHITECTURE}")
    stored = _tensors(container, path)
    embedding = stored.get(gguf_name("embed.weight"))
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{path}: {gguf_name('embed.weight')}: no such matrix: fetch the model again")
    factors = stored.pop(ROPE_FACTORS, None)
    spec = read_spec(metadata, _options(stored, embedding.shape[0]), factors.read() if factors else None)
    tensors = {}
    for name, shape in expected_shapes(spec).items():
        theirs = gguf_name(name)
        if theirs not in stored:
            raise UserError(f"{path}: {theirs}: no such tensor: fetch the model again")
        tensors[name] = stored.pop(theirs)
        if tensors[name].shape != shape:
            raise UserError(f"{path}: {theirs}: its shape is {list(tensors[name].shape)}, and the metadata asks for "
                            f"{list(shape)}: convert the model anew with llama.cpp")  # fmt: skip
    if stored:
        raise UserError(f"{path}: {next(iter(stored))!r:.60}: LLaMA's graph has no place for this tensor "
                        f"({len(stored)} such): read are dense LLaMA models")  # fmt: skip
    template = metadata.text("tokenizer.chat_template", "")
    return Checkpoint(
        spec=spec,
        tensors=tensors,
        rotary="adjacent",
        origin=str(path),
        load_tokenizer=partial(read_tokenizer, metadata, spec.vocab_size) if has_tokenizer(metadata) else None,
        chat_template=template or None,
        stop_ids=stop_ids(metadata, spec.vocab_size),
        adds_bos=metadata.flag(ADD_BOS, False) if ADD_BOS in metadata.values else None,
        notes=_notes(container.metadata),
    )


def _options(stored: Mapping[str, StoredTensor], vocab_size: int) -> dict[str, Any]:
    """The options of ModelSpec that the tensors decide."""
    return {
        "vocab_size": vocab_size,
        "tie_embeddings": gguf_name("head.weight") not in stored,
        "attention_bias": gguf_name("layers.0.attention.branch.q_proj.bias") in stored,
        "feedforward_bias": gguf_name("layers.0.feedforward.branch.up_proj.bias") in stored,
    }


def _notes(metadata: Mapping[str, Value]) -> dict[str, Any]:
    return {
        key.removeprefix("general."): value
        for key, value in metadata.items()
        if key.startswith("general.") and isinstance(value, str | int | float)
    }


def _tensors(container: Container, path: Path) -> dict[str, StoredTensor]:
    """Views of all tensors, none beyond the file's end or upon another."""
    spans = []
    tensors = {}
    for name, entry in container.tensors.items():
        tensors[name] = tensor = _view(container, name, entry, path)
        spans.append((entry.offset, entry.offset + tensor.nbytes, name))
    for (_, end, before), (start, _, after) in pairwise(sorted(spans)):
        if start < end:
            raise UserError(f"{path}: {after!r:.60}: lies upon {before!r:.60}: fetch the file again")
    return tensors


def _view(container: Container, name: str, entry: TensorEntry, path: Path) -> StoredTensor:
    def refused(what: str) -> UserError:
        return UserError(f"{path}: {name!r:.60}: {what}")

    kind = KINDS.get(entry.kind)
    if kind is None:
        theirs = OTHER_KINDS.get(entry.kind, f"number {entry.kind}")
        raise refused(f"of kind {theirs}, which is not read here; read are {', '.join(KINDS.values()).upper()}")
    codec, (*rows, columns) = CODECS[kind], entry.shape
    if len(rows) > 1 or (codec.group > 1 and not rows):
        raise refused(f"{len(entry.shape)} dimensions of kind {kind.upper()} are no tensor of LLaMA's")
    if not codec.fits(columns):
        raise refused(f"rows of {columns} numbers are no whole blocks of {kind.upper()}: fetch the file again")
    ((dtype, row_shape),) = codec.parts(columns)
    end = entry.offset + prod(rows) * codec.row_bytes(columns)
    if end > container.data.size:
        raise refused(f"ends {end - container.data.size} bytes beyond the file: fetch the file again")
    part = container.data[entry.offset : end].view(dtype).reshape(*rows, *row_shape)
    tensor = StoredTensor(entry.shape, codec, (part,))
    codec.check(tensor.parts, f"{path}: {name}")
    return tensor
