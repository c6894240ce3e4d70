"""Encodes batches of documents on all cores, in order."""

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shearling.data.manifest import SPLITS, Split
from shearling.data.sampling import document_hash
from shearling.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Batch:
    """Some documents of one source."""

    source: int
    texts: list[str]


@dataclass(frozen=True)
class Rows:
    """Encoded documents of one split: their tokens in one row, and the tokens and bytes of each."""

    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    n_bytes: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """What became of a batch."""

    source: int
    documents: int
    n_bytes: int
    lowest_hash: int
    rows: Mapping[Split, Rows]


def encode_all(
    batches: Iterator[Batch], tokenizer: Tokenizer, threshold: int, workers: int
) -> Generator[Encoded, None, None]:
    """Encode batches on all workers and give them back in order; at most two a worker are under way."""
    under_way: deque[Future[Encoded]] = deque()
    with _library_threads_off():
        pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
        try:
            for batch in batches:
                under_way.append(pool.submit(_encode, tokenizer, threshold, batch))
                if len(under_way) > 2 * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _encode(tokenizer: Tokenizer, threshold: int, batch: Batch) -> Encoded:
    encoded = [text.encode() for text in batch.texts]
    hashes = [document_hash(text) for text in encoded]
    tokens = tokenizer.encode_batch(batch.texts)
    bos = np.array([tokenizer.bos_id], dtype=np.int32)
    rows: dict[Split, Rows] = {}
    for split in SPLITS:
        members = [i for i, key in enumerate(hashes) if (key < threshold) == (split == "validation")]
        if members:
            rows[split] = Rows(
                tokens=np.concatenate([part for i in members for part in (bos, tokens[i])]),
                lengths=np.array([len(tokens[i]) + 1 for i in members], dtype=np.int64),
                n_bytes=np.array([len(encoded[i]) for i in members], dtype=np.int64),
            )
    return Encoded(batch.source, len(encoded), sum(map(len, encoded)), min(hashes), rows)


@contextmanager
def _library_threads_off() -> Iterator[None]:
    """Let `tokenizers` encode a batch on the thread that asks for it; this is the switch that it has for that."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
