"""Reads token shards: one long row of tokens per split, whatever files it lies in. Imports no torch."""

from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shearling.data.manifest import TOKENIZER_FOLDER, Manifest, ShardRecord, Split, load_manifest
from shearling.data.tokenizers import Tokenizer, load_tokenizer
from shearling.errors import UserError
from shearling.files import sha256_file

__all__ = ["Manifest", "TokenDataset", "load_manifest", "load_tokenizer_of", "open_dataset"]

Int64Array = npt.NDArray[np.int64]


class TokenDataset:
    """The tokens of one split, memory-mapped; each document is BOS and the tokens of its text.

    Attributes:
        path: the data folder.
        split: which split of it.
        manifest: the folder's manifest.
        total_tokens: length of the row of tokens.
        n_documents: documents in it.
    """

    def __init__(self, path: Path, split: Split, manifest: Manifest) -> None:
        self.path = path
        self.split = split
        self.manifest = manifest
        record = manifest.splits[split]
        self.total_tokens = record.tokens
        self.n_documents = record.documents
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._shards = [_map(path / shard.file, dtype, shard.tokens) for shard in record.shards]
        self._documents = [
            _map(path / shard.docs_file, np.dtype("<u4"), 2 * shard.documents) for shard in record.shards
        ]
        self._starts = np.cumsum([0, *(shard.tokens for shard in record.shards)])

    def tokens(self, start: int, stop: int) -> Int64Array:
        """Tokens start ... stop - 1 of the row, as int64 [stop - start].

        Raises:
            IndexError: the range is not within the row.
        """
        if not 0 <= start <= stop <= self.total_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.total_tokens}")
        result = np.empty(stop - start, np.int64)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        position = start
        while position < stop:
            base = int(self._starts[shard])
            end = min(stop, int(self._starts[shard + 1]))
            result[position - start : end - start] = self._shards[shard][position - base : end - base]
            position, shard = end, shard + 1
        return result

    @cached_property
    def document_starts(self) -> Int64Array:
        """Positions of the documents' first tokens, ascending, int64 [n_documents]."""
        starts = np.zeros(self.n_documents, np.int64)
        lengths = np.concatenate([documents[0::2] for documents in self._documents])
        np.cumsum(lengths[:-1], out=starts[1:])
        return starts

    @cached_property
    def document_bytes(self) -> npt.NDArray[np.uint32]:
        """UTF-8 bytes of each document's text, uint32 [n_documents]."""
        return np.concatenate([documents[1::2] for documents in self._documents])


def open_dataset(path: Path, split: Split, *, verify: bool = False) -> TokenDataset:
    """Open one split of a data folder.

    Args:
        path: folder written by `shearling prepare`.
        split: "train" or "validation".
        verify: read every shard and compare its hash with the manifest's.

    Raises:
        UserError: the folder is missing, unfinished or damaged.
    """
    manifest = load_manifest(path)
    if verify:
        verify_shards(path, manifest.splits[split].shards)
    return TokenDataset(path, split, manifest)


def load_tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer that a data folder's tokens are of.

    Raises:
        UserError: it is missing, or is not the one that the manifest tells of.
    """
    expected = load_manifest(path).tokenizer.sha256
    tokenizer = load_tokenizer(path / TOKENIZER_FOLDER)
    if tokenizer.sha256 != expected:
        raise UserError(
            f"{path / TOKENIZER_FOLDER}: not the tokenizer that these tokens were made with (its hash differs)"
        )
    return tokenizer


def verify_shards(path: Path, shards: tuple[ShardRecord, ...]) -> None:
    """Compare files with the hashes in their records.

    Raises:
        UserError: a file is missing or differs.
    """
    for shard in shards:
        for name, expected in ((shard.file, shard.sha256), (shard.docs_file, shard.docs_sha256)):
            if not (path / name).is_file():
                raise UserError(f"{path / name}: missing; prepare the data again with --overwrite")
            if sha256_file(path / name) != expected:
                raise UserError(
                    f"{path / name}: damaged (its hash is not the manifest's); prepare the data again with --overwrite"
                )


def _map(file: Path, dtype: np.dtype[np.generic], count: int) -> npt.NDArray[np.generic]:
    """Map a file of `count` numbers, after a look at its size."""
    if not file.is_file():
        raise UserError(f"{file}: missing; prepare the data again with --overwrite")
    size, expected = file.stat().st_size, count * dtype.itemsize
    if size != expected:
        raise UserError(
            f"{file}: {size:,} bytes, where the manifest tells of {expected:,}; prepare the data again with --overwrite"
        )
    return np.memmap(file, dtype=dtype, mode="r") if count else np.empty(0, dtype)
