"""`model.safetensors` of our own run folders: floats as the format has them, and quantized matrices in parts.

The parts of a quantized matrix lie there as `NAME.part0`, `NAME.part1` and so on, each a tensor of bytes, integers or
scales whose rows are the matrix's. The metadata's `shearling.codecs` say what they are: by name, the codec, its group
and the matrix's shape. Imports no torch.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.formats.safetensors import (
    DTYPES,
    FLOATS,
    Described,
    SafetensorsFile,
    open_safetensors,
    write_safetensors,
)
from shearling.quantization import Codec, Part, Parts, parse_codec

CODECS_KEY = "shearling.codecs"

DTYPE_OF = {codec: dtype for dtype, codec in FLOATS.items()}
"""The dtypes of what is one tensor of the file, by codec."""

OF_PARTS = {DTYPES[name]: name for name in ("U8", "I8", "F16", "F32")}


def read_weights(file: Path) -> dict[str, StoredTensor]:
    """The tensors in a file, memory-mapped.

    Raises:
        UserError: the file is damaged, its parts are not those of their codec, or a scale is not finite.
    """
    opened = open_safetensors(file)
    quantized = {name: one.read(opened, name) for name, one in _described(opened).items()}
    parts = {part for name, tensor in quantized.items() for part in _part_names(name, len(tensor.parts))}
    return quantized | {name: opened.tensor(name) for name in opened.entries if name not in parts}


def write_weights(
    file: Path, checkpoint: Checkpoint, codecs: Mapping[str, Codec], progress: Callable[[int], None]
) -> None:
    """Write the tensors of a model, in our own rotary order, in pieces of a few MiB.

    Args:
        codecs: of each tensor, by name.
        progress: takes the number of bytes just written.
    """
    described: list[Described] = []
    sources: dict[str, tuple[str, int]] = {}
    quantized: dict[str, _Quantized] = {}
    for name, codec in codecs.items():
        shape = checkpoint.tensors[name].shape
        if codec.name in DTYPE_OF:
            described.append((name, DTYPE_OF[codec.name], shape))
            sources[name] = name, 0
            continue
        quantized[name] = _Quantized(codec.name, codec.group, shape)
        layout = codec.parts(shape[1])
        for number, part in enumerate(_part_names(name, len(layout))):
            dtype, of_row = layout[number]
            described.append((part, OF_PARTS[dtype], (shape[0], *of_row)))
            sources[part] = name, number

    def pieces(part: str) -> Iterator[Part]:
        # Scales are wider than what they scale, and so stand elsewhere in the file: a matrix is encoded for each part.
        name, number = sources[part]
        return (encoded[number] for encoded in checkpoint.in_rotary("halves", name).encoded(codecs[name]))

    metadata = {"format": "pt"} | ({CODECS_KEY: json.dumps(quantized)} if quantized else {})
    write_safetensors(file, described, pieces, metadata=metadata, progress=progress)


class _Quantized(NamedTuple):
    """What the metadata say of a matrix."""

    codec: str
    group: int
    shape: tuple[int, ...]

    def read(self, file: SafetensorsFile, name: str) -> StoredTensor:
        origin = f"{file.path}: {name}"
        codec = parse_codec(self.codec, self.group)
        if len(self.shape) != 2 or min(self.shape) < 1 or not codec.fits(self.shape[1]):
            raise UserError(f"{origin}: {self.codec} stores no matrix of shape {self.shape}: convert the model again")
        rows, columns = self.shape
        expected = [(OF_PARTS[dtype], (rows, *shape)) for dtype, shape in codec.parts(columns)]
        names = _part_names(name, len(expected))
        found = [(entry.dtype, entry.shape) for part in names if (entry := file.entries.get(part))]
        if found != expected:
            raise UserError(f"{origin}: its parts are not those of {self.codec}: convert the model again")
        parts: Parts = tuple(file.array(part) for part in names)
        codec.check(parts, origin)
        return StoredTensor(self.shape, codec, parts)


def _described(file: SafetensorsFile) -> dict[str, _Quantized]:
    try:
        table = json.loads(file.metadata.get(CODECS_KEY, "{}"))
        return {
            name: _Quantized(str(codec), int(group), tuple(int(length) for length in shape))
            for name, (codec, group, shape) in table.items()
        }
    except (AttributeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file.path}: {CODECS_KEY}: no table of codecs ({error}): convert the model again") from None


def _part_names(name: str, count: int) -> list[str]:
    return [f"{name}.part{number}" for number in range(count)]
