"""Meta's folders of LLaMA 1 to 3: `params.json` and `consolidated.00.pth`, `consolidated.01.pth` and so on, read only.

As github.com/meta-llama/llama-models has them (models/llama3/args.py, model.py). A model in several files is split as
it ran: w1, w3, wq, wk, wv and the head by rows, w2 and wo by columns, the embedding by columns (LLaMA 1 and 2) or by
rows (3); norms are in each. Rows of queries and keys that turn together are adjacent.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shearling.data.tokenizers import Tokenizer, load_tokenizer
from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.formats.specification import expected_shapes, specification
from shearling.formats.torch_archive import read_torch_archive
from shearling.models.spec import ModelSpec
from shearling.quantization import Part, Parts

PARAMS, SHARDS = "params.json", "consolidated.*.pth"
LARGEST_PARAMS = 1 << 20
"""Bytes; a published one has a few hundred."""

OUTER = {"embed": "tok_embeddings", "final_norm": "norm", "head": "output"}
BLOCK = {
    "attention.norm": "attention_norm",
    "attention.branch.q_proj": "attention.wq",
    "attention.branch.k_proj": "attention.wk",
    "attention.branch.v_proj": "attention.wv",
    "attention.branch.o_proj": "attention.wo",
    "feedforward.norm": "ffn_norm",
    "feedforward.branch.gate_proj": "feed_forward.w1",
    "feedforward.branch.up_proj": "feed_forward.w3",
    "feedforward.branch.down_proj": "feed_forward.w2",
}
"""What they call our modules."""
BY_COLUMNS = ("o_proj", "down_proj")
LEFT_OUT = "rope.freqs"
"""The end of the names of stored rotary frequencies."""

WORDS = {
    "d_model": "dim",
    "intermediate_size": "hidden_dim",
    "eps": "norm_eps",
    "theta": "rope_theta",
    "factor": "rope_scaling_factor",
    "high_freq_factor": "rope_high_freq_factor",
}
"""What `params.json` calls our options, where it has other words."""

Shard = dict[str, StoredTensor]


class Params(BaseModel):
    """`params.json`.

    `multiple_of` and `ffn_dim_multiplier` make the hidden width, and a vocab_size of -1 stands for the tokenizer's; the
    tensors themselves tell both.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None
    vocab_size: int = -1
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    use_scaled_rope: bool = False
    rope_scaling_factor: float | None = None
    rope_high_freq_factor: float = 4.0
    max_seq_len: int | None = Field(None, description="tokens; published ones do not say")
    max_batch_size: int | None = None

    @property
    def context(self) -> int:
        """Tokens: what was published for LLaMA 3.1, 3, Code Llama, LLaMA 1 and 2, known by what sets them apart."""
        told = (
            (self.max_seq_len is not None, self.max_seq_len or 0),
            (self.use_scaled_rope, 131072),
            (self.rope_theta == 500000, 8192),
            (self.rope_theta > 10000, 16384),
            (self.norm_eps == 1e-6, 2048),
        )
        return next((length for applies, length in told if applies), 4096)

    @property
    def scaling(self) -> dict[str, Any] | None:
        """LLaMA 3.1's slowed rotations: by 8, and by 32 in LLaMA 3.2's 1B and 3B, known by their widths alone."""
        if not self.use_scaled_rope:
            return None
        factor = 32.0 if self.dim in (2048, 3072) else 8.0
        return {
            "kind": "llama3",
            "factor": factor if self.rope_scaling_factor is None else self.rope_scaling_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": self.rope_high_freq_factor,
            "original_max_seq_len": 8192,
        }


def read_meta(folder: Path) -> Checkpoint:
    """The model in such a folder, memory-mapped; what is split over several files is joined when it is asked for.

    Raises:
        UserError: a file is missing or damaged, or holds what is not LLaMA's graph.
    """
    params = _params(folder / PARAMS)
    shards = [read_torch_archive(file) for file in _shard_files(folder)]
    vocab_size = params.vocab_size
    if vocab_size == -1:
        vocab_size = _rows(folder, shards, "tok_embeddings.weight", params.dim)
    spec = specification(
        {
            "d_model": params.dim,
            "n_layers": params.n_layers,
            "n_heads": params.n_heads,
            "n_kv_heads": params.n_kv_heads,
            "intermediate_size": _rows(folder, shards, "layers.0.feed_forward.w1.weight", params.dim),
            "vocab_size": vocab_size,
            "max_seq_len": params.context,
            "norm": {"kind": "rmsnorm", "eps": params.norm_eps},
            "position": {"kind": "rope", "theta": params.rope_theta, "scaling": params.scaling},
            "tie_embeddings": _is_tied(shards[0]),
        },
        WORDS,
        str(folder / PARAMS),
        "fetch the model's own",
    )
    return Checkpoint(
        spec=spec,
        tensors=_joined(folder, shards, spec),
        rotary="adjacent",
        origin=str(folder),
        load_tokenizer=_tokenizer(folder),
    )


class JoinedTensor(StoredTensor):
    """A tensor whose pieces lie in several files; rows of it are copied together when they are asked for, each time.

    Args:
        pieces: matrices of floats of one kind.
        axis: along which they follow each other.
    """

    _pieces: list[StoredTensor]
    _axis: int

    def __init__(self, pieces: list[StoredTensor], axis: int) -> None:
        shape = list(pieces[0].shape)
        shape[axis] = sum(piece.shape[axis] for piece in pieces)
        vars(self).update(shape=tuple(shape), codec=pieces[0].codec, _pieces=pieces, _axis=axis)  # it is frozen

    @property
    def parts(self) -> Parts:
        """The whole of it, a copy."""
        return (np.concatenate([piece.parts[0] for piece in self._pieces], self._axis),)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in its files."""
        return sum(piece.nbytes for piece in self._pieces)

    def rows(self, rows: "slice | Part") -> Parts:
        """What `codec` decodes, of some rows."""
        if self._axis == 1:
            return (np.concatenate([piece.parts[0][rows] for piece in self._pieces], 1),)
        if not isinstance(rows, slice):
            return (self.parts[0][rows],)
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1, "rows are read as they follow each other"
        found, first = [], 0
        for piece in self._pieces:
            found.append(piece.parts[0][max(start - first, 0) : max(stop - first, 0)])
            first += piece.shape[0]
        return (np.concatenate(found),)


def _params(file: Path) -> Params:
    if not file.is_file():
        raise UserError(f"{file}: not there: fetch the model's own")
    if file.stat().st_size > LARGEST_PARAMS:
        raise UserError(f"{file}: larger than any params.json ({LARGEST_PARAMS >> 20} MiB): fetch the model's own")
    try:
        return Params.model_validate_json(file.read_bytes())
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
    key = ".".join(map(str, finding["loc"]))
    if finding["type"] == "extra_forbidden":
        raise UserError(f"{file}: {key}: a plain LLaMA has no such option, and it may change what is computed")
    raise UserError(f"{file}: {f'{key}: ' if key else ''}{finding['msg'].replace('Input should', 'should')}")


def _shard_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob(SHARDS))
    expected = [f"consolidated.{index:02d}.pth" for index in range(max(1, len(files)))]
    missing = sorted(set(expected) - {file.name for file in files})
    if missing:
        raise UserError(f"{folder}: {missing[0]} is missing: fetch all of the model's files")
    return files


def _find(folder: Path, shards: list[Shard], name: str) -> list[StoredTensor]:
    if any(name not in shard or not shard[name].shape for shard in shards):
        raise UserError(f"{folder}: {name}: not in every {SHARDS}: fetch the model's files again")
    return [shard[name] for shard in shards]


def _rows(folder: Path, shards: list[Shard], name: str, columns: int) -> int:
    """The rows of a whole matrix of so many columns, whichever way it is split."""
    pieces = _find(folder, shards, name)
    by_rows = pieces[0].shape[1:] == (columns,)
    return sum(piece.shape[0] for piece in pieces) if by_rows else pieces[0].shape[0]


def _is_tied(shard: Shard) -> bool:
    """Whether there is no head, or it is the embedding's memory."""
    head, table = shard.get("output.weight"), shard.get("tok_embeddings.weight")
    return head is None or (table is not None and head.parts[0].ctypes.data == table.parts[0].ctypes.data)


def _names(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """Our names of modules, and theirs."""
    yield from ((ours, theirs) for ours, theirs in OUTER.items() if ours != "head" or not spec.tie_embeddings)
    for layer in range(spec.n_layers):
        yield from ((f"layers.{layer}.{ours}", f"layers.{layer}.{theirs}") for ours, theirs in BLOCK.items())


def _joined(folder: Path, shards: list[Shard], spec: ModelSpec) -> dict[str, StoredTensor]:
    shapes = expected_shapes(spec)
    tensors, placed = dict[str, StoredTensor](), {"output.weight"}
    for module, their_module in _names(spec):
        ours, theirs = f"{module}.weight", f"{their_module}.weight"
        found, wanted = _find(folder, shards, theirs), shapes[ours]
        by_columns = module.endswith(BY_COLUMNS) or (module == "embed" and found[0].shape[1:] != wanted[1:])
        if len(wanted) == 1:
            found = found[:1]
        if not _joins(found, int(by_columns), wanted):
            theirs_are = " and ".join(str(list(piece.shape)) for piece in found)
            raise UserError(f"{folder}: {theirs}: of shape {theirs_are}, and {PARAMS} asks for {list(wanted)} in all")
        tensors[ours] = found[0] if len(found) == 1 else JoinedTensor(found, int(by_columns))
        placed.add(theirs)
    stray = next((name for shard in shards for name in shard if not (name in placed or name.endswith(LEFT_OUT))), None)
    if stray is not None:
        raise UserError(f"{folder}: {stray}: no place for this tensor in LLaMA's graph, as {PARAMS} describes it")
    return tensors


def _joins(pieces: list[StoredTensor], axis: int, wanted: tuple[int, ...]) -> bool:
    """Whether pieces of one kind make a tensor of that shape."""
    if len({piece.codec.name for piece in pieces}) > 1 or any(len(piece.shape) != len(wanted) for piece in pieces):
        return False
    along = sum(piece.shape[axis] for piece in pieces)
    across = {(*piece.shape[:axis], along, *piece.shape[axis + 1 :]) for piece in pieces}
    return across == {wanted}


def _tokenizer(folder: Path) -> Callable[[], Tokenizer] | None:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (file := folder / name).is_file():
            return partial(load_tokenizer, file)
    return None
