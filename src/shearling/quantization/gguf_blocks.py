"""GGUF's plain blocks of 32: Q8_0, Q4_0, Q4_1, written and read, and Q5_0, Q5_1, read.

A row is a run of packed blocks, fp16 scale and integers side by side, exactly as the file has them (ggml's
`block_q8_0` and its like). The roundings are those of ggml's reference quantizers, to the last bit.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from shearling.errors import UserError
from shearling.quantization.affine import Affine, inverse, nibbles, rows_of
from shearling.quantization.codec import FloatArray, Part, Parts, Unpacked

BLOCKS_AT_ONCE = 4096
"""Blocks that are encoded at a time: 512 KiB of float32, which stay in a core's cache from one step to the next."""


class GgufBlocks(Affine):
    """Rows of packed blocks: one part, uint8 (R, bytes of a row).

    Attributes:
        block: a block's bytes, as a structured dtype.
        floats: the fields of `block` that are fp16.
    """

    group = 32
    block: ClassVar[np.dtype[Any]]
    floats: ClassVar[tuple[str, ...]] = ("d",)

    def parts(self, columns: int) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        return ((np.dtype("u1"), (columns // self.group * self.block.itemsize,)),)

    def encode(self, x_RC: FloatArray) -> Parts:
        groups_Ng = self._groups(x_RC)
        blocks_N = np.empty(len(groups_Ng), self.block)
        with np.errstate(all="ignore"):  # what overflows, or was not finite, is refused below
            for start in range(0, len(blocks_N), BLOCKS_AT_ONCE):
                now = slice(start, start + BLOCKS_AT_ONCE)
                self.encode_blocks(groups_Ng[now], blocks_N[now])
        self._refuse_beyond(tuple(blocks_N[name] for name in self.floats), x_RC)
        return (blocks_N.view(np.uint8).reshape(*x_RC.shape[:-1], self.row_bytes(x_RC.shape[-1])),)

    def float_fields(self, parts: Parts) -> Parts:
        blocks_RN = self.blocks(parts)
        return tuple(blocks_RN[name] for name in self.floats)

    def blocks(self, parts: Parts) -> Part:
        """The row's blocks, a view: `block` (R, C / group)."""
        return parts[0].view(self.block)

    @abstractmethod
    def encode_blocks(self, x_Ng: FloatArray, out_N: Part) -> None:
        """Write groups of weights into blocks."""


class ReadOnly(GgufBlocks):
    """Blocks that published files have, and that we do not write."""

    writable = False

    def encode_blocks(self, x_Ng: FloatArray, out_N: Part) -> None:
        raise UserError(f"{self.name} is read, not written: use q8_0, q4_1 or q4_0")


class Q8_0(GgufBlocks):  # noqa: N801 (their names)
    """x = d · q, q in -127..127; 8.5 bits a weight.

    d is the fp16 nearest to δ = max |x| / 127, and |x - x'| ≤ δ / 2 + 127 |d - δ|. Above 8.3e6 a scale overflows.
    """

    name = "q8_0"
    block = np.dtype([("d", "<f2"), ("q", "i1", 32)])

    def encode_blocks(self, x_Ng: FloatArray, out_N: Part) -> None:
        d_N = np.abs(x_Ng).max(axis=1) / np.float32(127)
        q_Ng = x_Ng * inverse(d_N)[:, None]
        # Half away from zero. The float below 1/2: 1/2 itself would carry 0.49999997 up to 1.
        q_Ng += np.copysign(np.float32(0.49999997), q_Ng)
        out_N["d"] = d_N
        out_N["q"] = q_Ng.astype(np.int8)

    def unpacked(self, parts: Parts) -> Unpacked:
        blocks = self.blocks(parts)
        return Unpacked(rows_of(blocks["q"]), blocks["d"], None, 32)


class Q4_0(GgufBlocks):  # noqa: N801
    """x = d · (q - 8), q in 0..15; 4.5 bits a weight.

    d is the fp16 nearest to δ = m / -8, m the weight of largest magnitude, with its sign;
    |x - x'| ≤ |δ| / 2 + 8 |d - δ|, but up to |δ| / 2 more near -m, which would be 8 where 7 is the last. Above 5.2e5 a
    scale overflows.
    """

    name = "q4_0"
    block = np.dtype([("d", "<f2"), ("q", "u1", 16)])

    def encode_blocks(self, x_Ng: FloatArray, out_N: Part) -> None:
        largest_N1 = np.take_along_axis(x_Ng, np.abs(x_Ng).argmax(axis=1)[:, None], axis=1)
        d_N1 = largest_N1 / np.float32(-8)
        out_N["d"] = d_N1[:, 0]
        out_N["q"] = _pack4(_integers(x_Ng * inverse(d_N1), 8.5, 15))

    def unpacked(self, parts: Parts) -> Unpacked:
        blocks = self.blocks(parts)
        return Unpacked(rows_of(nibbles(blocks["q"])) - np.int8(8), blocks["d"], None, 32)


class Q4_1(GgufBlocks):  # noqa: N801
    """x = d · q + m, q in 0..15; 5 bits a weight.

    m is the fp16 nearest to the least weight μ and d that nearest to δ = (greatest - μ) / 15;
    |x - x'| ≤ δ / 2 + 15 |d - δ| + |m - μ|. Above 65504 a minimum overflows, and a scale where a range is beyond 9.8e5.
    """

    name = "q4_1"
    block = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
    floats = ("d", "m")

    def encode_blocks(self, x_Ng: FloatArray, out_N: Part) -> None:
        m_N1 = x_Ng.min(axis=1, keepdims=True)
        d_N1 = (x_Ng.max(axis=1, keepdims=True) - m_N1) / np.float32(15)
        out_N["d"] = d_N1[:, 0]
        out_N["m"] = m_N1[:, 0]
        out_N["q"] = _pack4(_integers((x_Ng - m_N1) * inverse(d_N1), 0.5, 15))

    def unpacked(self, parts: Parts) -> Unpacked:
        blocks = self.blocks(parts)
        return Unpacked(rows_of(nibbles(blocks["q"])), blocks["d"], blocks["m"], 32)


class Q5_0(ReadOnly):  # noqa: N801
    """x = d · (q - 16), q in 0..31, the fifth bits of all 32 in a field of their own; 5.5 bits a weight."""

    name = "q5_0"
    block = np.dtype([("d", "<f2"), ("high", "u1", 4), ("q", "u1", 16)])

    def unpacked(self, parts: Parts) -> Unpacked:
        blocks = self.blocks(parts)
        return Unpacked(_five_bits(blocks) - np.int8(16), blocks["d"], None, 32)


class Q5_1(ReadOnly):  # noqa: N801
    """x = d · q + m, q in 0..31; 6 bits a weight."""

    name = "q5_1"
    block = np.dtype([("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("q", "u1", 16)])
    floats = ("d", "m")

    def unpacked(self, parts: Parts) -> Unpacked:
        blocks = self.blocks(parts)
        return Unpacked(_five_bits(blocks), blocks["d"], blocks["m"], 32)


def _integers(scaled_Ng: FloatArray, offset: float, most: int) -> Part:
    """Rounded by adding `offset` and cutting off: nothing here is negative."""
    scaled_Ng += np.float32(offset)
    return np.minimum(scaled_Ng.astype(np.uint8), most)


def _pack4(q_Ng: Part) -> Part:
    """Weight i in the low half of byte i, weight i + 16 in its high half."""
    return q_Ng[:, :16] | (q_Ng[:, 16:] << 4)


def _five_bits(blocks: Part) -> Part:
    high = np.unpackbits(blocks["high"], axis=-1, bitorder="little").view(np.int8)
    low = nibbles(blocks["q"])
    return rows_of(low) | (rows_of(high) << 4)
