"""Memory straight from the system: zeros that take none before they are touched."""

import math
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt


def anonymous(n_bytes: int, *, large_pages: bool) -> mmap.mmap:
    """So many bytes of zeros.

    Args:
        large_pages: ask for pages of 2 MiB, which are found with less ado, where all will be used: whatever is touched
            brings a whole one.

    Raises:
        OSError, OverflowError: the system does not have so much.
    """
    memory = mmap.mmap(-1, n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE if large_pages else mmap.MADV_NOHUGEPAGE)
    return memory


def reserved(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeros of which only those take memory that are touched, by the page of a few KB. Raises as `anonymous`."""
    n_bytes = math.prod(shape) * dtype.itemsize
    return np.frombuffer(anonymous(n_bytes, large_pages=False), dtype).reshape(shape)
