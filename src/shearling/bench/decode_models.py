"""What the contenders of `bench decode` run: one set of weights, in a file of each format that they read."""

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shearling.bench.shapes import load_shape
from shearling.data.tokenizers.llama2c import llama2c_tokenizer
from shearling.errors import UserError
from shearling.formats import FORMATS, Checkpoint, StoredTensor, format_of, open_checkpoint
from shearling.formats.specification import expected_shapes
from shearling.models.spec import ModelSpec
from shearling.quantization import CODECS, Codec

STORED = ("f32", "bf16", "q8_0", "q4_0", "q4_1")
"""What `--quantize` takes."""

USUAL = "q8_0"
"""Of a shape's random weights, where nothing is asked for."""

SHAPE_FILES = (".yaml", ".yml")
FIRST_WORDS = 259
"""Ids before it are llama2.c's: unknown, BOS, EOS and the bytes."""

EMBEDDING_STD = 0.02


@dataclass(frozen=True)
class Work:
    """One model for all.

    Attributes:
        name: as the user gave it.
        weights: how its matrices are stored, for tables.
        gguf: the file.
        checkpoint: what is in it.
    """

    name: str
    weights: str
    gguf: Path
    checkpoint: Checkpoint

    @property
    def bytes_per_token(self) -> int:
        """Of the matrices that each token is multiplied with, as the file has them."""
        return sum(tensor.nbytes for name, tensor in self.checkpoint.tensors.items() if self._multiplies(name))

    @property
    def prefill_flops_per_token(self) -> int:
        """Of the layers' matrices: attention's own products, and the head of the last token, come on top."""
        tensors = self.checkpoint.tensors.items()
        return sum(2 * int(np.prod(tensor.shape)) for name, tensor in tensors if len(tensor.shape) == 2
                   and name.startswith("layers."))  # fmt: skip

    def _multiplies(self, name: str) -> bool:
        is_looked_up = name == "embed.weight" and not self.checkpoint.spec.tie_embeddings
        return len(self.checkpoint.tensors[name].shape) == 2 and not is_looked_up


def prepare(model: str, quantize: str | None, folder: Path, say: Callable[[str], None]) -> Work:
    """The model as GGUF, in `folder` unless it is such a file already.

    Args:
        model: a shape of `configs/models`, whose weights are drawn here, or a model of any format.
        quantize: one of STORED; None: a model's own, and USUAL for a shape.

    Raises:
        UserError: there is no such model, or GGUF cannot hold it.
    """
    if quantize is not None and quantize not in STORED:
        raise UserError(f"--quantize {quantize}: one of {', '.join(STORED)}")
    path = Path(model)
    is_model = path.exists() and path.suffix not in SHAPE_FILES
    if is_model and quantize is None and format_of(path) == "gguf":
        return _opened(model, path)
    if is_model:
        source = open_checkpoint(path)
    else:
        spec = load_shape(model)
        if beyond := spec.beyond_llama():
            raise UserError(f"--model {model}: it has {', '.join(beyond)}, which LLaMA's graph has not: choose another")
        say(f"drawing weights for {model}")
        source, quantize = random_model(spec), quantize or USUAL
    gguf = folder / "model.gguf"
    write(gguf, "gguf", source, CODECS[quantize] if quantize else None, say)
    return _opened(model, gguf)


def for_peer(work: Work, kind: str, folder: Path, say: Callable[[str], None]) -> tuple[Path, str]:
    """The same weights in another format, and how they are stored there: fp32 stays, everything else becomes bf16."""
    if kind == "gguf":
        return work.gguf, work.weights
    stored = "f32" if work.weights == "f32" else "bf16"
    path = folder / kind
    if not path.exists():
        write(path, kind, replace(work.checkpoint, load_tokenizer=None), CODECS[stored], lambda _: None)
    return path, stored


def smallest(work: Work, folder: Path) -> Work:
    """A model of the same kind whose weights take next to no memory, for what a process needs besides them."""
    spec = work.checkpoint.spec
    few = {"d_model": 64, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "intermediate_size": 64, "vocab_size": 64}
    common = _most_common(work.checkpoint)
    path = folder / "smallest.gguf"
    tiny = ModelSpec.model_validate({**spec.model_dump(), **few})
    write(path, "gguf", random_model(tiny), CODECS[common if common in STORED else USUAL], lambda _: None)
    return _opened(str(path), path)


def write(path: Path, kind: str, source: Checkpoint, codec: Codec | None, say: Callable[[str], None]) -> None:
    """Write a checkpoint in a format of FORMATS."""
    writer = FORMATS[kind].write
    assert writer is not None, f"{kind} is written here"
    for note in writer(path, source, codec=codec, progress=lambda _: None):
        say(note)


def random_model(spec: ModelSpec, seed: int = 0) -> Checkpoint:
    """A model of LLaMA's graph with drawn weights, the same for each seed, and a made-up vocabulary to write text with.

    Layers keep the size of what goes through them, so that they, and not the embedding, decide what follows a token.
    """
    draw = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_shapes(spec).items():
        if len(shape) == 2:
            std = shape[1] ** -0.5 if name.startswith("layers.") else EMBEDDING_STD
            numbers = draw.standard_normal(shape, np.float32) * np.float32(std)
        else:
            numbers = np.full(shape, 0.0 if name.endswith(".bias") else 1.0, np.float32)
        tensors[name] = StoredTensor.of(numbers)
    tokenizer = None
    if spec.vocab_size > FIRST_WORDS:
        content = _vocabulary(spec.vocab_size)
        tokenizer = lambda: llama2c_tokenizer(content)  # noqa: E731
    return Checkpoint(spec, tensors, "adjacent", "random weights", tokenizer)


def _vocabulary(size: int) -> bytes:
    """A `tokenizer.bin` of numbers for words."""
    words = [f" {number}" for number in range(size - FIRST_WORDS)]
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    longest = max(len(text) for text in texts)
    pieces = [struct.pack("<fi", -float(rank), len(text)) + text.encode() for rank, text in enumerate(texts)]
    return struct.pack("<i", longest) + b"".join(pieces)


def _opened(name: str, gguf: Path) -> Work:
    checkpoint = open_checkpoint(gguf)
    return Work(name, _most_common(checkpoint), gguf, checkpoint)


def _most_common(checkpoint: Checkpoint) -> str:
    """The codec of most of the matrices' bytes."""
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        sizes[tensor.codec.name] += tensor.nbytes * (len(tensor.shape) == 2)
    return sizes.most_common(1)[0][0]
