"""Floats as they are: fp32, fp16, bf16 and fp64."""

from typing import Any, ClassVar

import numpy as np

from shearling.errors import UserError
from shearling.quantization.codec import Codec, FloatArray, Parts


class Float(Codec):
    """Numbers of a dtype that numpy has."""

    dtype: ClassVar[np.dtype[Any]]

    def parts(self, columns: int) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        return ((self.dtype, (columns,)),)

    def encode(self, x_RC: FloatArray) -> Parts:
        return (x_RC.astype(self.dtype),)

    def decode(self, parts: Parts) -> FloatArray:
        return parts[0].astype(np.float32)


class F32(Float):
    """IEEE single precision."""

    name = "f32"
    dtype = np.dtype("<f4")


class F16(Float):
    """IEEE half precision. A finite number that it cannot hold is refused."""

    name = "f16"
    dtype = np.dtype("<f2")

    def encode(self, x_RC: FloatArray) -> Parts:
        with np.errstate(over="ignore"):
            (half_RC,) = super().encode(x_RC)
        if (np.isinf(half_RC) & np.isfinite(x_RC)).any():
            raise UserError("a weight is beyond fp16, which ends at 65,504: write bf16 or f32")
        return (half_RC,)


class F64(Float):
    """IEEE double precision."""

    name = "f64"
    dtype = np.dtype("<f8")


class BF16(Codec):
    """The upper half of a single, rounded to nearest, ties to even; held as uint16, since numpy has no such dtype."""

    name = "bf16"

    def parts(self, columns: int) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        return ((np.dtype("<u2"), (columns,)),)

    def encode(self, x_RC: FloatArray) -> Parts:
        bits = np.ascontiguousarray(x_RC, np.float32).view(np.uint32)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        quiet = (bits >> 16) | 0x40  # a NaN stays one: rounding could carry it to infinity
        return (np.where(np.isnan(x_RC), quiet, rounded).astype(np.uint16),)

    def decode(self, parts: Parts) -> FloatArray:
        return (parts[0].astype(np.uint32) << 16).view(np.float32)
