"""Writes the shards of one split, so that an interrupted run can go on where its journal stands."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import Field

from shearling.config import Spec
from shearling.data.manifest import ShardRecord, Split, SplitRecord
from shearling.errors import UserError


class WriterState(Spec):
    """How far a writer is: what is on the disk for certain."""

    closed: tuple[ShardRecord, ...] = ()
    tokens: int = Field(default=0, ge=0)
    documents: int = Field(default=0, ge=0)
    bytes: int = Field(default=0, ge=0)


class SplitWriter:
    """Appends documents to shards of at most `tokens_per_shard` tokens; none is cut by a shard's end.

    The files lie under their final names, but nobody reads them before the manifest is there.

    Args:
        folder: the data folder.
        split: which split this is.
        dtype: of a token.
        tokens_per_shard: a longer document has a shard of its own.
        state: go on from here; what was written after it is dropped.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        dtype: np.dtype[np.unsignedinteger],
        tokens_per_shard: int,
        state: WriterState | None = None,
    ) -> None:
        state = state or WriterState()
        self._folder, self._split, self._dtype, self._limit = folder, split, dtype, tokens_per_shard
        self._closed = list(state.closed)
        self._tokens, self._documents, self._bytes = state.tokens, state.documents, state.bytes
        for path in folder.glob(f"{split}_*.*"):
            if path.stem > self._stem or (path.stem == self._stem and not state.documents):
                path.unlink()
        self._token_file = _HashedFile(folder / f"{self._stem}.bin", state.tokens * dtype.itemsize)
        self._docs_file = _HashedFile(folder / f"{self._stem}.docs", state.documents * 8)

    def append(
        self, tokens: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], n_bytes: npt.NDArray[np.int64]
    ) -> None:
        """Add documents: their tokens in one row [sum(lengths)], the tokens and the UTF-8 bytes of each."""
        ends = np.cumsum(lengths)
        first, start = 0, 0
        while first < len(lengths):
            count = int(np.searchsorted(ends, start + self._limit - self._tokens, side="right")) - first
            if count <= 0 and self._documents:
                self._roll()
                continue
            last = first + max(count, 1)
            end = int(ends[last - 1])
            self._token_file.write(tokens[start:end].astype(self._dtype).tobytes())
            pairs = np.stack([lengths[first:last], n_bytes[first:last]], axis=1)
            self._docs_file.write(pairs.astype("<u4").tobytes())
            self._tokens += end - start
            self._documents += last - first
            self._bytes += int(n_bytes[first:last].sum())
            first, start = last, end

    def sync(self) -> WriterState:
        """Bring all to the disk and tell how far that is."""
        self._token_file.sync()
        self._docs_file.sync()
        return WriterState(
            closed=tuple(self._closed), tokens=self._tokens, documents=self._documents, bytes=self._bytes
        )

    def finish(self) -> SplitRecord:
        """Close the last shard and return the record of the split."""
        if self._documents:
            self._close_shard()
        else:
            self._token_file.discard()
            self._docs_file.discard()
        return SplitRecord.of(tuple(self._closed))

    def close(self) -> None:
        """Let go of the files as they are."""
        self._token_file.close()
        self._docs_file.close()

    @property
    def _stem(self) -> str:
        return f"{self._split}_{len(self._closed):05d}"

    def _close_shard(self) -> None:
        self.sync()
        self.close()
        self._closed.append(
            ShardRecord(
                file=f"{self._stem}.bin",
                tokens=self._tokens,
                documents=self._documents,
                bytes=self._bytes,
                sha256=self._token_file.digest.hexdigest(),
                docs_sha256=self._docs_file.digest.hexdigest(),
            )
        )
        self._tokens = self._documents = self._bytes = 0

    def _roll(self) -> None:
        self._close_shard()
        self._token_file = _HashedFile(self._folder / f"{self._stem}.bin", 0)
        self._docs_file = _HashedFile(self._folder / f"{self._stem}.docs", 0)


class _HashedFile:
    """A file that grows, with the hash of what is in it. What lies beyond `size` bytes at the start is cut off."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        if size and (not path.is_file() or path.stat().st_size < size):
            raise UserError(f"{path}: shorter than when the work was interrupted; begin anew with --overwrite")
        self._file: BinaryIO = path.open("r+b" if size else "wb")
        self._file.truncate(size)
        self.digest = hashlib.sha256()
        while chunk := self._file.read(1 << 20) if size else b"":
            self.digest.update(chunk)

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self.digest.update(content)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def discard(self) -> None:
        self.close()
        self._path.unlink()
