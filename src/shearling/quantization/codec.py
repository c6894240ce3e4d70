"""What a codec is: how a matrix of numbers is stored in fewer bits, row by row. Imports no torch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from shearling.errors import UserError

FloatArray = npt.NDArray[np.float32]
Part = npt.NDArray[Any]
Parts = tuple[Part, ...]
"""The arrays that hold an encoded matrix. The first axis of each is the matrix's rows, so that slices of rows, and rows
in another order, are those of the parts."""


@dataclass(frozen=True)
class Unpacked:
    """A matrix as small integers and what each group of them is worth: x = values · scales + minimums.

    In float32 that is to the last bit what `Codec.decode` gives.

    Attributes:
        values: int8 (R, C).
        scales: float16 or float32 (R, C / group).
        minimums: float16 or float32 (R, C / group); None where they are zero.
        group: weights along a row that share a scale.
    """

    values: Part
    scales: Part
    minimums: Part | None
    group: int


class Codec(ABC):
    """A way to store rows of float32.

    Each row is encoded for itself: `encode(x_RC[rows])` is those rows of `encode(x_RC)`.

    Attributes:
        name: what it is called on the command line and in files.
        writable: whether `encode` writes it; some formats are only read.
        group: weights along a row that are stored together; a row's length must be a multiple of it.
    """

    name: ClassVar[str]
    writable: ClassVar[bool] = True
    group: int = 1

    @abstractmethod
    def parts(self, columns: int) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        """The dtype of each part, and its shape for one row of `columns` numbers."""

    @abstractmethod
    def encode(self, x_RC: FloatArray) -> Parts:
        """Rows (R, C) of finite float32 as parts.

        Raises:
            UserError: a finite number is too large for f16 or a quantized codec; of the latter: a number is NaN or
                infinite, or C is no multiple of `group`.
        """

    @abstractmethod
    def decode(self, parts: Parts) -> FloatArray:
        """The rows (R, C) that the parts hold."""

    def row_bytes(self, columns: int) -> int:
        """Bytes that one row of `columns` numbers takes."""
        return sum(dtype.itemsize * prod(shape) for dtype, shape in self.parts(columns))

    def fits(self, columns: int) -> bool:
        """Whether a row of so many numbers is a whole number of groups."""
        return columns % self.group == 0

    def unpacked(self, parts: Parts) -> Unpacked | None:
        """The integers and scales that the parts hold, for a kernel that works on them; None where there are none."""
        return None

    def float_fields(self, parts: Parts) -> Parts:
        """The floats that whole groups hang on, scales and minimums, in any shape."""
        return ()

    def check(self, parts: Parts, origin: str) -> None:
        """Refuse parts of a file whose scales would spoil whole groups. Looks at every scale, and at no weight.

        Raises:
            UserError: a scale is NaN or infinite; the text begins with `origin`.
        """
        if not all(np.isfinite(field).all() for field in self.float_fields(parts)):
            raise UserError(f"{origin}: a scale of its {self.name} weights is NaN or infinite: the file is damaged")

    def _groups(self, x_RC: FloatArray) -> FloatArray:
        """Rows as (N, group), in their order."""
        if not self.fits(x_RC.shape[-1]):
            raise UserError(
                f"rows of {x_RC.shape[-1]} weights are not whole groups of {self.group}, as {self.name} asks"
            )
        return np.ascontiguousarray(x_RC, np.float32).reshape(x_RC.size // self.group, self.group)

    def _refuse_beyond(self, fields: Parts, x_RC: FloatArray) -> None:
        """Refuse what became infinite or NaN in the scales: cheaper than a look at every weight beforehand."""
        if all(np.isfinite(field).all() for field in fields):
            return
        if np.isfinite(x_RC).all():
            raise UserError(
                f"weights of up to {np.abs(x_RC).max():.3g} are beyond {self.name}'s scales: write f32 or bf16"
            )
        raise UserError(f"a weight is NaN or infinite, which {self.name} cannot hold: mend the model, or write f32")
