"""INT8 in groups along a row, as llama2.c's version 2 has it (`export.py`, `quantize_q80`)."""

from typing import Any

import numpy as np

from shearling.errors import UserError
from shearling.quantization.affine import Affine
from shearling.quantization.codec import FloatArray, Parts, Unpacked

GROUPS_BYTES = 1 << 19
"""Of float32 that are encoded at a time: they stay in a core's cache."""


class Int8Groups(Affine):
    """x = s · q, q in -127..127, s = max |x| / 127 in float32; 8 + 32 / group bits a weight.

    Two parts: int8 (R, C), and float32 scales (R, C / group). |x - x'| ≤ s / 2, to within float32's rounding.
    """

    name = "int8"

    def __init__(self, group: int = 64) -> None:
        if group < 1:
            raise UserError(f"int8 cannot store groups of {group}: take a divisor of the rows' length, such as 64")
        self.group = group

    def parts(self, columns: int) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        return (np.dtype("i1"), (columns,)), (np.dtype("<f4"), (columns // self.group,))

    def encode(self, x_RC: FloatArray) -> Parts:
        groups_Ng = self._groups(x_RC)
        values_Ng = np.empty(groups_Ng.shape, np.int8)
        scales_N1 = np.empty((len(groups_Ng), 1), np.float32)
        step = max(1, GROUPS_BYTES // (4 * self.group))
        with np.errstate(all="ignore"):  # zeros divide zeros; what is not finite is refused below
            for start in range(0, len(groups_Ng), step):
                now = slice(start, start + step)
                scales_N1[now] = np.abs(groups_Ng[now]).max(axis=1, keepdims=True) / np.float32(127)
                q_Ng = np.rint(groups_Ng[now] / scales_N1[now])  # ties to even, as torch.round
                # Only where the scale is subnormal can q be beyond 127, or the scale be zero.
                np.clip(q_Ng, -127, 127, out=q_Ng)
                q_Ng[scales_N1[now, 0] == 0] = 0
                values_Ng[now] = q_Ng.astype(np.int8)
            # The largest float32 over 127 is rounded up: times 127 it is infinite.
            self._refuse_beyond((scales_N1 * np.float32(127),), x_RC)
        return values_Ng.reshape(x_RC.shape), scales_N1.reshape(*x_RC.shape[:-1], x_RC.shape[-1] // self.group)

    def unpacked(self, parts: Parts) -> Unpacked:
        return Unpacked(parts[0], parts[1], None, self.group)

    def float_fields(self, parts: Parts) -> Parts:
        return (parts[1],)
