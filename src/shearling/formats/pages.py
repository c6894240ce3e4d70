"""Pages of mapped files that a process has read and does not need any more."""

import mmap
from collections.abc import Collection
from typing import Any

from shearling.formats.checkpoint import StoredTensor

BYTES_HELD = 1 << 26
"""Of the files of a model that passes through, about so many stay in memory."""


class PagesHeld:
    """Counts what is read of the files that tensors lie in, and gives it back to the system when it becomes much.

    Whatever is read again comes from the system's cache, or from the disk: no number changes. Tensors that lie in
    memory, or in a map that can be written to, stay as they are.
    """

    def __init__(self, tensors: Collection[StoredTensor], at_most: int = BYTES_HELD) -> None:
        # No row of them: what is put together when it is asked for is not made here.
        parts = (part for tensor in tensors for part in (tensor.rows(slice(0)) if tensor.shape else tensor.parts))
        self._maps = {id(found): found for part in parts if (found := _map_behind(part)) is not None}
        self._bytes, self._at_most = 0, at_most

    def count(self, n_bytes: int) -> None:
        """So many bytes were read since this was last called."""
        self._bytes += n_bytes
        if self._bytes > self._at_most:
            self.let_go()

    def let_go(self) -> None:
        """Give back all that was read so far."""
        self._bytes = 0
        for found in self._maps.values():
            found.madvise(mmap.MADV_DONTNEED)


def _map_behind(part: Any) -> mmap.mmap | None:
    """The map that an array is a view of."""
    if part.flags.writeable:  # pages of a private copy would lose what was written
        return None
    while part is not None and not isinstance(part, mmap.mmap):
        part = part.obj if isinstance(part, memoryview) else getattr(part, "base", None)
    return part
