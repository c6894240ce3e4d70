"""NF4, four bits placed by the quantiles of a normal distribution, its scales in 32 bits or in 8 (arXiv 2305.14314).

Codes, their order in a byte, and scales are those of bitsandbytes, whose blocks run along the flattened tensor:
rows of whole blocks make that the same.
"""

from typing import Any

import numpy as np

from shearling.errors import UserError
from shearling.quantization.codec import Codec, FloatArray, Part, Parts

LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""What the sixteen codes are worth, in units of a block's largest magnitude (QLoRA's appendix E)."""

MIDPOINTS = (LEVELS[1:] + LEVELS[:-1]) / np.float32(2)
PAIRS = np.stack((np.repeat(LEVELS, 16), np.tile(LEVELS, 16)), axis=-1)
"""What the two codes of each byte are worth: (256, 2)."""

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
SCALES_AT_ONCE = 256
"""Scales that share one of their own under double quantization."""
FLOATS_AT_ONCE = 1 << 15
"""Numbers that are encoded at a time: fifteen comparisons pass over them in a core's cache."""


class NF4(Codec):
    """x = a · level, a = max |x| of the block in float32; 4 + 32 / group bits a weight: 4.5 for blocks of 64.

    Two parts: uint8 (R, C / 2), weight 2i in the *high* half of byte i, and float32 a (R, C / group). A weight becomes
    the level nearest to it, so that |x - x'| ≤ 0.152 a, half the widest gap, and less where levels are dense. Blocks
    below 1e-38, whose reciprocal float32 can hardly hold, are coded as if a were that, as they are in bitsandbytes.
    """

    name = "nf4"

    def __init__(self, group: int = 64) -> None:
        if group not in BLOCKS:
            raise UserError(f"{self.name} has blocks of {', '.join(map(str, BLOCKS))}, not {group}")
        self.group = group

    def parts(self, columns: int) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        return (np.dtype("u1"), (columns // 2,)), (np.dtype("<f4"), (columns // self.group,))

    def encode(self, x_RC: FloatArray) -> Parts:
        blocks_Ng = self._groups(x_RC)
        scales_N = np.abs(blocks_Ng).max(axis=1)
        self._refuse_beyond((scales_N,), x_RC)
        inverse_N = np.float32(1) / np.maximum(scales_N, np.float32(1e-38))
        packed_Nb = np.empty((len(blocks_Ng), self.group // 2), np.uint8)
        step = FLOATS_AT_ONCE // self.group
        for start in range(0, len(blocks_Ng), step):
            now = slice(start, start + step)
            codes_Ng = _nearest_levels(blocks_Ng[now] * inverse_N[now, None])
            packed_Nb[now] = (codes_Ng[:, ::2] << 4) | codes_Ng[:, 1::2]
        rows, columns = x_RC.shape[:-1], x_RC.shape[-1]
        return packed_Nb.reshape(*rows, columns // 2), scales_N.reshape(*rows, columns // self.group)

    def decode(self, parts: Parts) -> FloatArray:
        packed, scales = parts
        x_RNg = PAIRS[packed].reshape(*scales.shape, self.group)
        with np.errstate(invalid="ignore", over="ignore"):  # of damaged scales, which `check` is there to refuse
            x_RNg *= scales[..., None]
        return x_RNg.reshape(*packed.shape[:-1], 2 * packed.shape[-1])

    def float_fields(self, parts: Parts) -> Parts:
        return parts[1:]


class NF4Double(NF4):
    """NF4 with its scales in 8 bits: what bitsandbytes makes of each row with `compress_statistics`.

    Four parts: the bytes of NF4; uint8 codes (R, C / group) of the scales less their mean; float32
    (R, ⌈C / group / 256⌉), for every 256 of those differences the largest magnitude; and the mean, float32 (R, 1). With
    blocks of 64 that is 4.125 + 32 (⌈C / 16384⌉ + 1) / C bits a weight: 4.14 for rows of 4096, 4.21 for 768.
    bitsandbytes takes one mean of the whole tensor, 4.127 bits; with one each, a row is read without the others.

    To NF4's error comes that of a scale, at most 0.0071 of the largest distance of 256 scales from their mean.
    """

    name = "nf4-double"

    def parts(self, columns: int) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        scales = columns // self.group
        return (
            (np.dtype("u1"), (columns // 2,)),
            (np.dtype("u1"), (scales,)),
            (np.dtype("<f4"), (-(-scales // SCALES_AT_ONCE),)),
            (np.dtype("<f4"), (1,)),
        )

    def encode(self, x_RC: FloatArray) -> Parts:
        packed, scales_RN = super().encode(x_RC)
        mean_R1 = scales_RN.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        centred_RN = scales_RN - mean_R1
        starts = np.arange(0, scales_RN.shape[-1], SCALES_AT_ONCE)
        outer_RM = np.maximum.reduceat(np.abs(centred_RN), starts, axis=-1)
        spread_RN = _spread(outer_RM, scales_RN.shape[-1])
        spread_RN[spread_RN == 0] = 1  # equal scales: they are their mean
        codes_RN = np.searchsorted(_DYNAMIC_MIDPOINTS, centred_RN / spread_RN).astype(np.uint8)
        encoded = packed, codes_RN, outer_RM, mean_R1
        with np.errstate(over="ignore"):
            self._refuse_beyond((self.scales(encoded),), x_RC)
        return encoded

    def decode(self, parts: Parts) -> FloatArray:
        return super().decode((parts[0], self.scales(parts)))

    def scales(self, parts: Parts) -> FloatArray:
        """NF4's scales as they come back: float32 (R, C / group)."""
        _, codes_RN, outer_RM, mean_R1 = parts
        with np.errstate(invalid="ignore", over="ignore"):
            return DYNAMIC[codes_RN] * _spread(outer_RM, codes_RN.shape[-1]) + mean_R1

    def float_fields(self, parts: Parts) -> Parts:
        # Not the floats as they are stored: two that are finite can make a scale that is not.
        return (self.scales(parts),)


def _nearest_levels(x: FloatArray) -> Part:
    """Codes, uint8, of numbers in -1..1; of one that lies in the middle the lower."""
    codes = np.zeros(x.shape, np.uint8)
    for midpoint in MIDPOINTS:
        codes += x > midpoint
    return codes


def _dynamic() -> FloatArray:
    """The 256 levels of the signed dynamic data type (arXiv 1511.04561), ascending from -0.993 to 1.

    Seven decades down from 1, each with twice the levels of the one below, in the middle of equal steps; 0; and 1.
    """
    edges = (np.linspace(0.1, 1, 2**bits + 1) for bits in range(7))
    decades = [10.0 ** (bits - 6) * (edge[1:] + edge[:-1]) / 2 for bits, edge in enumerate(edges)]
    positive = np.concatenate(decades)
    return np.concatenate((-positive[::-1], [0], positive, [1])).astype(np.float32)


DYNAMIC = _dynamic()
_DYNAMIC_MIDPOINTS = (DYNAMIC[1:].astype(np.float64) + DYNAMIC[:-1]) / 2


def _spread(outer_RM: FloatArray, scales: int) -> FloatArray:
    """The outer scale of each of so many scales: (R, scales)."""
    return np.repeat(outer_RM, SCALES_AT_ONCE, axis=-1)[..., :scales]
