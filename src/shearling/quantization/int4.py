"""Affine INT4: four bits, a scale and a whole zero point for each group, as GPTQ, AWQ and torchao store them."""

from typing import Any

import numpy as np

from shearling.errors import UserError
from shearling.quantization.affine import Affine, inverse, rows_of
from shearling.quantization.codec import FloatArray, Part, Parts, Unpacked

GROUPS = (32, 64, 128)
FLOATS_AT_ONCE = 1 << 17
"""Numbers that are encoded at a time: 512 KiB of float32, which stay in a core's cache."""


class Int4(Affine):
    """x = s · (q - z), q and z in 0..15; 4 + 24 / group bits a weight: 4.75, 4.375, 4.1875 for 32, 64, 128.

    Three parts: uint8 (R, C / 2), weight 2i in the low half of byte i; fp16 scales (R, C / group), and as many zero
    points, uint8.

    A group's range is widened to hold zero, and s is (greatest - least) / 15 rounded up to fp16, z = round(-least / s),
    q = clip(round(x / s) + z, 0, 15). Since s is not rounded down, the 16 points reach both ends, or end half a step
    short of one, and |x - x'| ≤ (1/2 + 2^-20) s with the s that is stored. Zero is always exact. Of a constant group s
    is the constant's magnitude rounded up to fp16, so that one that fp16 holds comes back exactly. Ranges beyond 9.8e5
    overflow.
    """

    name = "int4"

    def __init__(self, group: int = 64) -> None:
        if group not in GROUPS:
            raise UserError(f"int4 has groups of {', '.join(map(str, GROUPS))}, not {group}")
        self.group = group

    def parts(self, columns: int) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        groups = (columns // self.group,)
        return (np.dtype("u1"), (columns // 2,)), (np.dtype("<f2"), groups), (np.dtype("u1"), groups)

    def encode(self, x_RC: FloatArray) -> Parts:
        groups_Ng = self._groups(x_RC)
        packed_Nb = np.empty((len(groups_Ng), self.group // 2), np.uint8)
        scales_N = np.empty(len(groups_Ng), np.float16)
        zeros_N = np.empty(len(groups_Ng), np.uint8)
        step = FLOATS_AT_ONCE // self.group
        with np.errstate(all="ignore"):  # what overflows, or was not finite, is refused below
            for start in range(0, len(groups_Ng), step):
                now = slice(start, start + step)
                packed_Nb[now], scales_N[now], zeros_N[now] = _encoded(groups_Ng[now])
        self._refuse_beyond((scales_N,), x_RC)
        rows, groups = x_RC.shape[:-1], x_RC.shape[-1] // self.group
        return (
            packed_Nb.reshape(*rows, x_RC.shape[-1] // 2),
            scales_N.reshape(*rows, groups),
            zeros_N.reshape(*rows, groups),
        )

    def unpacked(self, parts: Parts) -> Unpacked:
        packed, scales, zeros = parts
        values = rows_of(np.stack((packed & 15, packed >> 4), axis=-1))
        scales = scales.astype(np.float32)
        with np.errstate(invalid="ignore"):  # a damaged scale, times zero
            return Unpacked(values.view(np.int8), scales, -scales * zeros, self.group)

    def float_fields(self, parts: Parts) -> Parts:
        return (parts[1],)


def _encoded(x_Ng: FloatArray) -> tuple[Part, Part, Part]:
    """Bytes (N, g / 2), scales (N,) and zero points (N,) of groups."""
    least_N, greatest_N = x_Ng.min(axis=1), x_Ng.max(axis=1)
    # In float64 no range overflows, nor does its fifteenth underflow.
    low_N, high_N = np.minimum(least_N, 0).astype(np.float64), np.maximum(greatest_N, 0).astype(np.float64)
    constant_N = (least_N == greatest_N) & (high_N - low_N <= np.finfo(np.float16).max)
    scales_N = _rounded_up(np.where(constant_N, high_N - low_N, (high_N - low_N) / 15))
    inverse_N = inverse(scales_N.astype(np.float32))
    zeros_N = np.rint(-low_N * inverse_N).astype(np.float32)
    points_Ng = np.rint(x_Ng * inverse_N[:, None]) + zeros_N[:, None]
    q_Ng = np.clip(points_Ng, 0, 15).astype(np.uint8)
    return q_Ng[:, ::2] | (q_Ng[:, 1::2] << 4), scales_N, zeros_N.astype(np.uint8)


def _rounded_up(x: Part) -> Part:
    """The least fp16 that is no less than x ≥ 0."""
    nearest = x.astype(np.float16)
    return np.where(nearest < x, np.nextafter(nearest, np.float16(np.inf)), nearest)
