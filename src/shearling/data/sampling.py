"""Which documents are held out, and which a tokenizer learns from: both decided by a document's hash alone."""

import hashlib
import heapq
from collections.abc import Iterable

SAMPLE_BYTES = 16 << 20
"""Text that a tokenizer is trained on at most. The trainer needs up to 30 times as much memory, where a script has no
spaces between words; English needs a few times as much."""
HASH_RANGE = 1 << 64


def document_hash(encoded: bytes) -> int:
    """64-bit hash of a document's UTF-8 text (BLAKE2b), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def hold_out_threshold(share: float) -> int:
    """Documents whose hash is below this are the validation split."""
    return int(share * HASH_RANGE)


def sample_documents(documents: Iterable[str], validation_share: float, budget: int = SAMPLE_BYTES) -> list[str]:
    """Training documents of at most `budget` bytes together, drawn by hash: the same however the sources are ordered.

    Keeps the distinct documents of the highest hashes (the validation split has the lowest). Where all documents fit,
    that is all of them. Memory stays within the budget and one document.
    """
    threshold = hold_out_threshold(validation_share)
    kept: list[tuple[int, bytes]] = []
    known: set[int] = set()
    size = 0
    for document in documents:
        encoded = document.encode()
        key = document_hash(encoded)
        if key < threshold or key in known or (size + len(encoded) > budget and kept and key < kept[0][0]):
            continue
        heapq.heappush(kept, (key, encoded))
        known.add(key)
        size += len(encoded)
        while size > budget and len(kept) > 1:
            lowest, dropped = heapq.heappop(kept)
            known.discard(lowest)
            size -= len(dropped)
    return [encoded.decode() for _, encoded in sorted(kept)]
