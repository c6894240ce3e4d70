"""GGUF's super-blocks of 256, the "K quants": Q4_K, Q5_K and Q6_K, read only.

Groups of 32 or 16 have small integer scales, which share an fp16 scale of their own (ggml's `block_q4_K` and its like).
"""

import numpy as np

from shearling.quantization.affine import rows_of
from shearling.quantization.codec import Part, Parts, Unpacked
from shearling.quantization.gguf_blocks import ReadOnly


class Q4_K(ReadOnly):  # noqa: N801 (their names)
    """x = d·s·q - dmin·m, q in 0..15, s and m of 6 bits for each of 8 groups; 4.5 bits a weight."""

    name = "q4_k"
    group = 256
    block = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("q", "u1", 128)])
    floats = ("d", "dmin")

    def unpacked(self, parts: Parts) -> Unpacked:
        blocks = self.blocks(parts)
        return _with_minimums(blocks, _low_bits(blocks, 32))


class Q5_K(ReadOnly):  # noqa: N801
    """As Q4_K with q in 0..31, bit i of `high` being the fifth of group i; 5.5 bits a weight."""

    name = "q5_k"
    group = 256
    block = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("high", "u1", 32), ("q", "u1", 128)])
    floats = ("d", "dmin")

    def unpacked(self, parts: Parts) -> Unpacked:
        blocks = self.blocks(parts)
        high_RNG32 = (blocks["high"][:, :, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
        return _with_minimums(blocks, _low_bits(blocks, 32) | (high_RNG32 << 4))


class Q6_K(ReadOnly):  # noqa: N801
    """x = d·s·(q - 32), q in 0..63, s an int8 for each of 16 groups of 16; 6.5625 bits a weight."""

    name = "q6_k"
    group = 256
    block = np.dtype([("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])

    def unpacked(self, parts: Parts) -> Unpacked:
        blocks = self.blocks(parts)
        rows, count = blocks.shape
        shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        # Two halves of 128 weights: the bytes' two bits, lowest first, are those of four runs of 32 weights.
        high_RN8x32 = ((blocks["high"].reshape(rows, count, 2, 1, 32) >> shifts) & 3).reshape(rows, count, 8, 32)
        q = _low_bits(blocks, 64).reshape(rows, count, 8, 32) | (high_RN8x32 << 4)
        with np.errstate(invalid="ignore"):  # a damaged d, times zero
            scales = blocks["d"].astype(np.float32)[..., None] * blocks["scales"]
        return Unpacked(rows_of(q).view(np.int8) - np.int8(32), rows_of(scales), None, 16)


def _low_bits(blocks: Part, run: int) -> Part:
    """Four bits of each weight: a run of bytes has those of one run of weights below, of the next above."""
    runs = blocks["q"].shape[-1] // run
    q = blocks["q"].reshape(*blocks.shape, runs, run)
    return np.stack((q & 15, q >> 4), axis=-2).reshape(*blocks.shape, 2 * runs, run)


def _with_minimums(blocks: Part, q: Part) -> Unpacked:
    """Groups of 32 with 6-bit scales and minimums, packed into 12 bytes.

    Bytes 0..3 and 4..7 have those of groups 0..3 in their lower 6 bits, and above them the upper 2 bits of groups 4..7,
    whose lower 4 bits share bytes 8..11: the scale below, the minimum above.
    """
    first, second, third = np.split(blocks["scales"], 3, axis=-1)
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 2) & 48)), axis=-1)
    minimums = np.concatenate((second & 63, (third >> 4) | ((second >> 2) & 48)), axis=-1)
    with np.errstate(invalid="ignore"):  # a damaged d, times zero
        scales = blocks["d"].astype(np.float32)[..., None] * scales
        minimums = -blocks["dmin"].astype(np.float32)[..., None] * minimums
    return Unpacked(rows_of(q).view(np.int8), rows_of(scales), rows_of(minimums), 32)
