"""Codecs whose numbers are integers times a group's scale, plus its minimum."""

import math
from abc import abstractmethod

import numpy as np

from shearling.quantization.codec import Codec, FloatArray, Part, Parts, Unpacked


class Affine(Codec):
    """x = values · scales + minimums."""

    @abstractmethod
    def unpacked(self, parts: Parts) -> Unpacked: ...

    def decode(self, parts: Parts) -> FloatArray:
        unpacked = self.unpacked(parts)
        x_RC = unpacked.values.astype(np.float32)
        x_RGg = x_RC.reshape(*unpacked.scales.shape, unpacked.group)
        with np.errstate(invalid="ignore", over="ignore"):  # of damaged scales, which `check` is there to refuse
            x_RGg *= unpacked.scales[..., None].astype(np.float32)
            if unpacked.minimums is not None:
                x_RGg += unpacked.minimums[..., None].astype(np.float32)
        return x_RC


def inverse(scales: FloatArray) -> FloatArray:
    """1 / scale; zero where that is not finite, so that a group of zeros stays one."""
    with np.errstate(divide="ignore", over="ignore"):
        reciprocal = np.float32(1) / scales
    return np.where(np.isfinite(reciprocal), reciprocal, np.float32(0))


def rows_of(values_RX: Part) -> Part:
    """Groups or blocks of each row, (R, ...), one behind the other: (R, C)."""
    return values_RX.reshape(values_RX.shape[0], math.prod(values_RX.shape[1:]))


def nibbles(bytes_XB: Part) -> Part:
    """The low halves of bytes, then their high halves: uint8 (..., B) to int8 (..., 2, B)."""
    return np.stack((bytes_XB & 15, bytes_XB >> 4), axis=-2).view(np.int8)
