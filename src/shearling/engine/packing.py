"""Stored tensors as the kernels take them: floats where they lie in the file, quantized weights in tiles of 16 rows."""

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shearling.engine.kernels.compiling import kernel
from shearling.engine.kernels.products import KERNELS
from shearling.engine.kernels.records import BLOCK, MATRIX
from shearling.engine.kernels.vectors import LANES
from shearling.engine.memory import anonymous
from shearling.formats.checkpoint import StoredTensor
from shearling.quantization import CODECS, Codec, Part, Unpacked

IN_PLACE = ("f32", "f16", "bf16")
"""Codecs whose numbers the kernels read as they are."""

FOUR_BITS = {"q4_0": 8, "q4_1": 0, "q4_k": 0, "int4": 0}
"""Codecs whose values fit into a nibble, and what makes those unsigned; those of all others are signed bytes."""

TILES_AT_ONCE = 16

Bytes = npt.NDArray[np.uint8]


SLAB = 32 << 20
"""Bytes that are asked of the system at a time: of so many it gives pages of 2 MiB, which are found with less ado."""


class _Arena:
    """Arrays one behind the other in few large pieces of memory; what no array has reached takes none."""

    def __init__(self) -> None:
        self._slab = anonymous(mmap.PAGESIZE, large_pages=True)
        self._used = mmap.PAGESIZE

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Part:
        """As numpy's, aligned to a line of the processor's cache."""
        size = int(np.prod(shape)) * dtype.itemsize
        if self._used + size > len(self._slab):
            self.trim()
            self._slab = anonymous(max(SLAB, size), large_pages=True)
            self._used = 0
        array = np.frombuffer(self._slab, np.uint8, size, self._used).view(dtype).reshape(shape)
        self._used += -(-size // 64) * 64
        return array

    def trim(self) -> None:
        """Give back what a large page holds behind the last array."""
        begin = -(-self._used // mmap.PAGESIZE) * mmap.PAGESIZE
        if begin < len(self._slab):
            self._slab.madvise(mmap.MADV_DONTNEED, begin, len(self._slab) - begin)


class Packed:
    """The matrices of a model as records of MATRIX, and the arrays that they lead to.

    Args:
        count: is told of bytes that were read and are not needed any more.

    Attributes:
        records: in the order in which they were added.
        quantized: whether any of them meets quantized vectors.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        self.records: list[npt.NDArray[Any]] = []
        self.quantized = False
        self._kept: list[Part] = []
        self._arena = _Arena()
        self._count = count

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices, those in mapped files included."""
        return sum(array.nbytes for array in self._kept)

    def address(self, array: Part) -> int:
        """Where an array lies, which stays there as long as this object."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def add(self, tensor: StoredTensor, bias: StoredTensor | None = None) -> None:
        """A matrix, and the bias on what it gives."""
        record = np.zeros(1, MATRIX)
        record["rows"], record["columns"] = tensor.shape
        codec = kernel_codec(tensor)
        if codec.name in IN_PLACE:
            parts = tensor.parts
            if codec.name != tensor.codec.name:
                parts = _encoded(tensor, codec)
                self._count(tensor.nbytes)
            kind = codec.name
            record["values"] = self.address(np.ascontiguousarray(parts[0]))
            record["unit_bytes"] = codec.row_bytes(tensor.shape[1]) * LANES
        else:
            kind = self._add_tiles(record, tensor)
        self.quantized |= kind not in IN_PLACE
        multiply, look_up, *kinds = KERNELS[kind]
        record["multiply"], record["look_up"] = kernel(multiply, *kinds), kernel(look_up, *kinds)
        if bias is not None:
            padded = np.zeros(_tiles(tensor.shape[0]) * LANES, np.float32)
            padded[: tensor.shape[0]] = bias.read()
            record["bias"] = self.address(padded)
        self.records.append(record)

    def finish(self) -> int:
        """The address of all records, when all matrices have been added."""
        self._arena.trim()
        return self.address(np.concatenate(self.records))

    def repeat(self, number: int) -> None:
        """The matrix of that number once more: a head that is tied to the embedding."""
        self.records.append(self.records[number])

    def _add_tiles(self, record: npt.NDArray[Any], tensor: StoredTensor) -> str:
        """Fill in a record; returns how its numbers are stored."""
        rows, columns = tensor.shape
        step, tiles, empty = TILES_AT_ONCE * LANES, _tiles(rows), self._arena.empty
        halves, offset = tensor.codec.name in FOUR_BITS, FOUR_BITS.get(tensor.codec.name, 128)
        sample = _unpacked(tensor, slice(1))
        values = empty((tiles, columns // BLOCK, 4 if halves else 8, 4 * LANES), np.dtype(np.uint8))
        scales = empty((tiles, columns // sample.group, LANES), sample.scales.dtype)
        minimums = None if sample.minimums is None else empty(scales.shape, scales.dtype)
        for first in range(0, rows, step):
            part = _unpacked(tensor, slice(first, first + step))
            place = slice(first // LANES, first // LANES + _tiles(len(part.values)))
            values[place] = _quads(part.values, halves, offset)
            scales[place] = _by_lane(part.scales)
            if minimums is not None and part.minimums is not None:
                minimums[place] = _by_lane(part.minimums)
            self._count(tensor.codec.row_bytes(columns) * len(part.values))
        record["offset"], record["unit_bytes"] = offset, values.strides[0]
        record["blocks_per_scale"] = sample.group // BLOCK
        record["values"], record["scales"] = self.address(values), self.address(scales)
        record["minimums"] = 0 if minimums is None else self.address(minimums)
        return f"{'nibbles' if halves else 'bytes'} {'f32' if scales.dtype == np.float32 else 'f16'}"


def kernel_codec(tensor: StoredTensor) -> Codec:
    """The tensor's own codec where there is a kernel for it; else fp32, or bf16 for what has few bits."""
    if tensor.codec.name in IN_PLACE:
        return tensor.codec
    if tensor.codec.name == "f64":
        return CODECS["f32"]
    first = tensor.codec.unpacked(tensor.rows(slice(1)))
    if first is not None and first.group % BLOCK == 0 and tensor.shape[1] % BLOCK == 0:
        return tensor.codec
    return CODECS["f32" if tensor.shape[1] % BLOCK else "bf16"]


def _unpacked(tensor: StoredTensor, rows: slice) -> Unpacked:
    part = tensor.codec.unpacked(tensor.rows(rows))
    assert part is not None, "kernel_codec has asked"
    return part


def _encoded(tensor: StoredTensor, codec: Codec) -> tuple[Part, ...]:
    pieces = list(tensor.encoded(codec))
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))


def _tiles(rows: int) -> int:
    return -(-rows // LANES)


def _quads(values: Part, halves: bool, offset: int) -> Bytes:
    """Values (R, C) as unsigned ones (tiles, blocks, 8 or 4, 64), four columns of sixteen rows side by side."""
    rows, columns = values.shape
    unsigned = np.zeros((_tiles(rows) * LANES, columns), np.uint8)
    np.add(values.view(np.uint8), np.uint8(offset), out=unsigned[:rows])  # modulo 256, as the sign bit asks
    words = unsigned.view(np.uint32).reshape(-1, LANES, columns // BLOCK, BLOCK // 4).transpose(0, 2, 3, 1)
    quads = np.ascontiguousarray(words)
    if halves:
        quads = quads[:, :, :4] | (quads[:, :, 4:] << np.uint32(4))
    return quads.view(np.uint8)


def _by_lane(scales: Part) -> Part:
    rows, groups = scales.shape
    padded = np.zeros((_tiles(rows) * LANES, groups), scales.dtype)
    padded[:rows] = scales
    return padded.reshape(-1, LANES, groups).transpose(0, 2, 1)
