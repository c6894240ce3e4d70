"""llama2.c's checkpoints, `.bin`: what github.com/karpathy/llama2.c's export.py writes, and its run.c and runq.c read.

All little-endian. The header's integers are int32 dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len.

| version | header                                                                  | body                        |
|---------|-------------------------------------------------------------------------|-----------------------------|
| 0       | the integers; vocab_size is negative where the classifier is not shared | float32, ORDERS[0]          |
| 1       | "24ka", int32 version, the integers, uint8 shared classifier; 256 bytes | float32, ORDERS[1]          |
| 2       | as 1, and int32 group_size after the flag                               | as 1, but of a matrix all   |
|         |                                                                         | int8 values, then float32   |
|         |                                                                         | scales, one for each group  |

Rows of queries and keys that turn together are adjacent. Epsilon and theta are constants of the programs. Groups run
along the flattened matrix, and along activations too, so that `group_size` should divide dim and hidden_dim: export.py
sees to the first alone, and runq computes such a file wrongly. It is read here as it was meant.
"""

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shearling.data.tokenizers import Tokenizer, load_tokenizer
from shearling.errors import UserError
from shearling.formats.checkpoint import NUMBERS_AT_ONCE, Checkpoint, StoredTensor
from shearling.formats.signs import LLAMA2C_INTEGERS, LLAMA2C_MAGIC
from shearling.formats.specification import expected_shapes, specification
from shearling.models.norm_spec import RMSNormSpec
from shearling.models.rope import inverse_frequencies
from shearling.models.spec import ModelSpec, RoPESpec
from shearling.quantization import CODECS, Codec, FloatArray, parse_codec

AFTER_MAGIC = struct.Struct("<i7iBi")
"""Version, the integers, shared classifier, group size (of version 2)."""
HEADER_BYTES = 256
EPS, THETA = 1e-5, 10000.0
BOS = 1
LARGEST_GROUP = 64
"""export.py's, which it halves until it divides dim; larger ones lose more."""
QUANTIZED = 2
"""The version that holds int8."""

WORDS = {
    "d_model": "dim",
    "intermediate_size": "hidden_dim",
    "n_layers": "n_layers",
    "n_heads": "n_heads",
    "n_kv_heads": "n_kv_heads",
    "vocab_size": "vocab_size",
    "max_seq_len": "seq_len",
}
"""What the header calls our options, in its order."""

TABLES = "rotary tables"
"""Of version 0: cosines (seq_len, head size / 2), then as many sines. Readers compute their own."""

_NORMS = ("layers.*.attention.norm.weight", "layers.*.feedforward.norm.weight", "final_norm.weight")
_ATTENTION = tuple(f"layers.*.attention.branch.{name}_proj.weight" for name in "qkvo")
_FEEDFORWARD = tuple(f"layers.*.feedforward.branch.{name}_proj.weight" for name in ("gate", "down", "up"))
_LATER = (*_NORMS, "embed.weight", *_ATTENTION, *_FEEDFORWARD, "head.weight")

ORDERS = {
    0: ("embed.weight", _NORMS[0], *_ATTENTION, _NORMS[1], *_FEEDFORWARD, _NORMS[2], TABLES, "head.weight"),
    1: _LATER,
    2: _LATER,
}
"""By version, the tensors of the body; * stands for all layers, `head.weight` is left out where it is shared."""


def read_llama2c(path: Path, tokenizer: Path | None = None) -> Checkpoint:
    """The model in a `.bin` of version 0, 1 or 2, memory-mapped.

    Args:
        tokenizer: its tokenizer, which llama2.c keeps in a file of its own. Without it the first of `tokenizer_names`
            beside the model is taken that has as many pieces.

    Raises:
        UserError: the header is damaged or of another version, the file is longer or shorter than its header says, a
            scale is not finite, or a tokenizer beside it is damaged.
    """
    with path.open("rb") as file:
        header = _header(file.read(HEADER_BYTES), path)
        _check_size(header, path, path.stat().st_size)
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    position = header.start
    for name, shape in _body(header.spec, header.version).items():
        if name != TABLES:
            tensors[name] = _tensor(content, position, shape, header.group, f"{path}: {name}")
        position += _size(shape, header.group)
    return Checkpoint(
        spec=header.spec,
        tensors=tensors,
        rotary="adjacent",
        origin=str(path),
        load_tokenizer=_tokenizer(path, tokenizer, header.spec.vocab_size),
        stop_ids=(BOS,),
        adds_bos=True,
        notes={"version": header.version} | ({} if header.group is None else {"group_size": header.group}),
    )


def write_llama2c(
    path: Path,
    checkpoint: Checkpoint,
    *,
    version: int,
    codec: Codec | None = None,
    progress: Callable[[int], None],
) -> None:
    """Write a model as a `.bin`, a few MiB at a time.

    Args:
        version: 0 or 1 hold float32, 2 holds int8.
        codec: `int8` with a group that divides dim and hidden_dim, or `f32`; None: what the version holds, int8 in the
            groups that the model's own matrices have, if all have the same, or else in those of `group_size`.
        progress: takes the number of bytes just written.

    Raises:
        UserError: llama2.c's programs cannot run such a model, or the version does not hold the codec; nothing was
            written.
    """
    spec = checkpoint.spec
    if version not in ORDERS:
        raise UserError(f"{path}: version {version}: llama2.c's files are of version {', '.join(map(str, ORDERS))}")
    _refuse(spec, checkpoint.origin)
    codec = _int8(checkpoint, codec) if version == QUANTIZED else _float32(checkpoint, codec, version)
    with path.open("wb") as file:
        progress(file.write(_packed(spec, version, codec.group)))
        for name, shape in _body(spec, version).items():
            if name == TABLES:
                for table in _rotary_tables(spec):
                    progress(file.write(table.data))
            else:
                tensor = checkpoint.in_rotary("adjacent", name)
                assert tensor.shape == shape, "a reader checks what it gives"
                _write(file, tensor, codec if len(tensor.shape) > 1 else CODECS["f32"], progress)


def tokenizer_name(vocab_size: int) -> str:
    """What a tokenizer of so many pieces is called beside a model that is its own."""
    return f"tok{vocab_size}.bin"


def tokenizer_names(vocab_size: int) -> tuple[str, ...]:
    """The names under which a model's tokenizer is looked for beside it, in this order."""
    return "tokenizer.bin", tokenizer_name(vocab_size), "tokenizer.model"


def group_size(spec: ModelSpec) -> int:
    """The largest power of two, up to LARGEST_GROUP, that divides rows of dim and of hidden_dim numbers; it may be 1.

    Other groups are read and written too, but programs compute in vectors, whose lengths are powers of two.
    """
    return math.gcd(spec.d_model, spec.intermediate_size, LARGEST_GROUP)


@dataclass(frozen=True)
class _Header:
    """What stands before the body, which begins at byte `start`; `group` is None where nothing is quantized."""

    version: int
    spec: ModelSpec
    group: int | None
    start: int


def _header(head: bytes, path: Path) -> _Header:
    legacy = not head.startswith(LLAMA2C_MAGIC)
    needed = LLAMA2C_INTEGERS.size if legacy else HEADER_BYTES
    if len(head) < needed:
        raise UserError(f"{path}: it ends within its header, after {len(head)} bytes of {needed}: fetch it again")
    if legacy:
        version, group = 0, 0
        *integers, vocab_size, seq_len = LLAMA2C_INTEGERS.unpack_from(head)
        shared = vocab_size > 0
        integers += [abs(vocab_size), seq_len]
    else:
        version, *integers, shared, group = AFTER_MAGIC.unpack_from(head, len(LLAMA2C_MAGIC))
        if version not in ORDERS or version == 0:
            raise UserError(
                f"{path}: version {version} of llama2.c's files is not known here: export version 0, 1 or 2"
            )
        if shared not in (0, 1):
            raise UserError(f"{path}: shared classifier: {shared} is neither 0 nor 1: the file is damaged")
    options = dict(zip(WORDS, integers, strict=True))
    fixed = {
        "norm": {"kind": "rmsnorm", "eps": EPS},
        "position": {"kind": "rope", "theta": THETA},
        "tie_embeddings": bool(shared),
    }
    spec = specification(options | fixed, WORDS, str(path), "the file is damaged, or no model: export it again")
    if version != QUANTIZED:
        return _Header(version, spec, None, needed)
    if group < 1 or spec.d_model % group or math.gcd(group, spec.intermediate_size) == 1:
        raise UserError(
            f"{path}: group_size: {group} does not divide dim {spec.d_model}, or shares no factor with hidden_dim "
            f"{spec.intermediate_size}: export the model again, with groups of {group_size(spec)}"
        )
    return _Header(version, spec, group, needed)


def _packed(spec: ModelSpec, version: int, group: int) -> bytes:
    integers = {option: getattr(spec, option) for option in WORDS} | {"n_kv_heads": spec.kv_heads}
    if version == 0:
        integers["vocab_size"] *= 1 if spec.tie_embeddings else -1
        return LLAMA2C_INTEGERS.pack(*integers.values())
    flags = AFTER_MAGIC.pack(version, *integers.values(), spec.tie_embeddings, group if version == QUANTIZED else 0)
    return (LLAMA2C_MAGIC + flags).ljust(HEADER_BYTES, b"\0")


def _body(spec: ModelSpec, version: int) -> dict[str, tuple[int, ...]]:
    """What follows the header, in its order, and the shape of each."""
    shapes = expected_shapes(spec) | {TABLES: (2 * spec.max_seq_len, spec.head_dim // 2)}
    return {name: shapes[name] for name in _names(spec, version)}


def _names(spec: ModelSpec, version: int) -> Iterator[str]:
    for name in ORDERS[version]:
        if "*" in name:
            yield from (name.replace("*", str(layer)) for layer in range(spec.n_layers))
        elif name != "head.weight" or not spec.tie_embeddings:
            yield name


def _size(shape: tuple[int, ...], group: int | None) -> int:
    """Bytes of a tensor in the file."""
    numbers = math.prod(shape)
    return 4 * numbers if group is None or len(shape) == 1 else numbers + 4 * (numbers // group)


def _check_size(header: _Header, path: Path, size: int) -> None:
    body = sum(_size(shape, header.group) for shape in _body(header.spec, header.version).values())
    if (missing := header.start + body - size) == 0:
        return
    what = f"it ends {missing} bytes early" if missing > 0 else f"it is {-missing} bytes too long"
    raise UserError(f"{path}: {what}: its header asks for {header.start + body} bytes, not {size}: fetch it again")


def _tensor(content: mmap.mmap, position: int, shape: tuple[int, ...], group: int | None, origin: str) -> StoredTensor:
    numbers = math.prod(shape)
    if group is None or len(shape) == 1:
        return StoredTensor.of(np.frombuffer(content, "<f4", numbers, position).reshape(shape))
    values = np.frombuffer(content, np.int8, numbers, position)
    scales = np.frombuffer(content, "<f4", numbers // group, position + numbers)
    # A group that runs on into the next row is told as smaller ones of the same scale, which do not.
    within = math.gcd(group, shape[1])
    if within < group:
        scales = scales.repeat(group // within)
    codec = parse_codec("int8", within)
    parts = values.reshape(shape), scales.reshape(shape[0], -1)
    codec.check(parts, origin)
    return StoredTensor(shape, codec, parts)


def _tokenizer(path: Path, given: Path | None, vocab_size: int) -> Callable[[], Tokenizer] | None:
    if given is not None:
        return partial(load_tokenizer, given)
    for name in tokenizer_names(vocab_size):
        if (file := path.with_name(name)).is_file() and (found := load_tokenizer(file)).vocab_size == vocab_size:
            return lambda: found
    return None


def _refuse(spec: ModelSpec, origin: str) -> None:
    if beyond := spec.beyond_llama():
        raise UserError(
            f"{origin}: {', '.join(beyond)}: llama2.c has LLaMA's graph and no other: keep the model in a run folder"
        )
    norm, position = spec.norm, spec.position
    assert isinstance(norm, RMSNormSpec), "LLaMA's graph has no other"
    assert isinstance(position, RoPESpec), "LLaMA's graph has no other"
    refused = {
        f"norm.eps {norm.eps:g}, where llama2.c computes with {EPS:g}": not math.isclose(norm.eps, EPS, rel_tol=1e-6),
        f"position.theta {position.theta:g}, where llama2.c computes with {THETA:g}": (
            not math.isclose(position.theta, THETA, rel_tol=1e-6)
        ),
        "position.scaling, where llama2.c turns by the plain frequencies": position.scaling is not None,
        "sliding_window, where llama2.c sees all tokens": spec.sliding_window is not None,
        "attention_bias, for which the file has no place": spec.attention_bias,
        "feedforward_bias, for which the file has no place": spec.feedforward_bias,
    }
    for reason, applies in refused.items():
        if applies:
            raise UserError(f"{origin}: it has {reason}: write a .gguf or a Hugging Face folder instead")


def _float32(checkpoint: Checkpoint, codec: Codec | None, version: int) -> Codec:
    if codec is not None and codec.name != "f32":
        raise UserError(
            f"{checkpoint.origin}: version {version} of llama2.c's files holds f32, not {codec.name}: version 2 holds "
            "int8, a .gguf holds others"
        )
    return CODECS["f32"]


def _int8(checkpoint: Checkpoint, codec: Codec | None) -> Codec:
    spec, origin = checkpoint.spec, checkpoint.origin
    if codec is not None and codec.name != "int8":
        raise UserError(
            f"{origin}: version 2 of llama2.c's files holds int8, not {codec.name}: version 1 holds f32, a .gguf "
            "holds others"
        )
    group = _own_group(checkpoint) if codec is None else codec.group
    largest = group_size(spec)
    if group not in (None, 1) and math.gcd(group, spec.d_model, spec.intermediate_size) == group:
        return parse_codec("int8", group)
    if largest == 1:
        raise UserError(
            f"{origin}: no power of two divides both {spec.d_model} (dim) and {spec.intermediate_size} (hidden_dim): "
            "write version 1, or a .gguf"
        )
    if codec is not None:
        raise UserError(
            f"{origin}: groups of {group}: llama2.c's runq needs two weights or more in a group, and groups that "
            f"divide both {spec.d_model} (dim) and {spec.intermediate_size} (hidden_dim): take groups of {largest}"
        )
    return parse_codec("int8", largest)


def _own_group(checkpoint: Checkpoint) -> int | None:
    """The group that all matrices have, where they are int8."""
    matrices = (tensor for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1)
    own = {(tensor.codec.name, tensor.codec.group) for tensor in matrices}
    kind, group = own.pop() if len(own) == 1 else ("", 1)
    return group if kind == "int8" else None


def _rotary_tables(spec: ModelSpec) -> Iterator[FloatArray]:
    """The cosines, then the sines, of all positions, some rows (T, K/2) at a time; float32 throughout, as in torch."""
    frequencies, _ = inverse_frequencies(spec)
    step = max(1, NUMBERS_AT_ONCE // len(frequencies))
    for function in (np.cos, np.sin):
        for start in range(0, spec.max_seq_len, step):
            positions = np.arange(start, min(start + step, spec.max_seq_len), dtype=np.float32)
            yield function(np.outer(positions, frequencies))


def _write(file: BinaryIO, tensor: StoredTensor, codec: Codec, progress: Callable[[int], None]) -> None:
    """All rows' values, and behind them all rows' scales: each piece of either goes to its own place."""
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    position = file.tell()
    places = []
    for dtype, shape in codec.parts(columns):
        places.append(position)
        position += rows * dtype.itemsize * math.prod(shape)
    for parts in tensor.encoded(codec):
        for index, part in enumerate(parts):
            file.seek(places[index])
            places[index] += file.write(np.ascontiguousarray(part).data)
            progress(part.nbytes)
    file.seek(position)
