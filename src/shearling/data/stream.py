"""The batch stream: which tokens a step trains on, as a pure function of (seed, step).

The documents of a split form one ring of tokens. In each epoch the ring is cut, at an offset of that epoch's own,
into windows of `seq_len`, which are visited in a pseudo-random order. The order is a keyed bijection on window
numbers (a Feistel network, cycle-walking into range), so that no permutation of the corpus is kept and any step can
be asked for directly, by any number of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shearling.data.shards import TokenDataset
from shearling.errors import UserError
from shearling.seeding import derive_seed

_ROUNDS = 6


def permute(indices: np.ndarray, n: int, key: int) -> np.ndarray:
    """The images of `indices` (integers in [0, n)) under a pseudo-random permutation of [0, n) chosen by `key`.

    A balanced Feistel network over the next even power of two, applied again to whatever falls outside the range
    (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    round_keys = [np.uint64(derive_seed(key, "round", i)) for i in range(_ROUNDS)]

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << half) | right

    result = encrypt(indices.astype(np.uint64))
    while (outside := result >= n).any():
        result[outside] = encrypt(result[outside])
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Batch:
    """Sequences of one step.

    Attributes:
        tokens: (sequences, seq_len + 1) int64; inputs are all but the last column, targets all but the first.
        document_ids: (sequences, seq_len) int64, equal where two inputs belong to one document; None unless asked for.
    """

    tokens: np.ndarray
    document_ids: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> "Batch":
        return Batch(self.tokens[rows], None if self.document_ids is None else self.document_ids[rows])


class BatchStream:
    """Batches of `sequences` windows of `seq_len` tokens from a dataset, each a pure function of (seed, step).

    Raises:
        UserError: the split holds fewer tokens than one sequence.
    """

    def __init__(
        self, dataset: TokenDataset, seq_len: int, sequences: int, seed: int, document_ids: bool = False
    ) -> None:
        if dataset.total_tokens <= seq_len:
            raise UserError(
                f"{dataset.path}: the {dataset.split} split has {dataset.total_tokens:,} tokens, too few for "
                f"a sequence of data.seq_len {seq_len}: prepare more text or shorten data.seq_len"
            )
        self.dataset = dataset
        self.seq_len = seq_len
        self.sequences = sequences
        self.seed = seed
        self.windows_per_epoch = dataset.total_tokens // seq_len
        self._with_documents = document_ids

    def epoch(self, step: int) -> float:
        """How many times the data has been seen before `step`."""
        return step * self.sequences / self.windows_per_epoch

    def starts(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Positions on the ring of the first tokens of rank's share of `step`, in order."""
        if self.sequences % world:
            raise UserError(f"{self.sequences} sequences a step cannot be shared by {world} processes")
        share = self.sequences // world
        first = step * self.sequences + rank * share
        epochs, within = np.divmod(np.arange(first, first + share), self.windows_per_epoch)
        starts = np.empty(share, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            windows = permute(within[here], self.windows_per_epoch, derive_seed(self.seed, "order", int(epoch)))
            offset = derive_seed(self.seed, "offset", int(epoch)) % self.seq_len
            starts[here] = (windows * self.seq_len + offset) % self.dataset.total_tokens
        return starts

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The sequences of `step` that process `rank` of `world` trains on."""
        starts = self.starts(step, rank, world)
        tokens = np.stack([self._ring(int(start), self.seq_len + 1) for start in starts])
        if not self._with_documents:
            return Batch(tokens)
        positions = starts[:, None] + np.arange(self.seq_len)
        laps, within = np.divmod(positions, self.dataset.total_tokens)
        documents = np.searchsorted(self.dataset.document_starts, within, side="right")
        return Batch(tokens, documents + laps * (self.dataset.n_documents + 1))

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches of `step`, step + 1, … without end."""
        while True:
            yield self.batch(step)
            step += 1

    def _ring(self, start: int, count: int) -> np.ndarray:
        total = self.dataset.total_tokens
        if start + count <= total:
            return self.dataset.tokens(start, start + count)
        return np.concatenate([self.dataset.tokens(start, total), self.dataset.tokens(0, start + count - total)])


@dataclass(frozen=True)
class EvaluationSet:
    """Whole documents of a split, packed: the same tokens at every evaluation.

    Attributes:
        tokens: (n,) int64; all but the first are predicted.
        document_ids: (n,) int64.
        n_bytes: UTF-8 bytes of the documents' text, for bits per byte.
    """

    tokens: np.ndarray
    document_ids: np.ndarray
    n_bytes: int

    @classmethod
    def take(cls, dataset: TokenDataset, at_least: int) -> "EvaluationSet":
        """Documents from all over the split, by a fixed draw, until they hold `at_least` tokens, or all of them."""
        starts = dataset.document_starts
        lengths = np.diff(starts, append=dataset.total_tokens)
        order = permute(np.arange(len(starts)), len(starts), key=0)
        count = min(int(np.searchsorted(np.cumsum(lengths[order]), at_least)) + 1, len(starts))
        chosen = np.sort(order[:count])
        tokens = np.concatenate([dataset.tokens(int(starts[i]), int(starts[i] + lengths[i])) for i in chosen])
        n_bytes = int(np.sum(dataset.document_bytes[chosen], dtype=np.int64))
        return cls(tokens, np.repeat(np.arange(count), lengths[chosen]), n_bytes)

    def batches(self, seq_len: int, sequences: int, document_ids: bool = True) -> Iterator[tuple[Batch, int]]:
        """Consecutive windows in batches of at most `sequences`, and how many targets each batch has.

        Every token but the first is a target exactly once; the last window may be shorter.

        Args:
            document_ids: whether the batches have them.
        """
        n_targets = len(self.tokens) - 1
        whole = n_targets // seq_len
        for first in range(0, whole, sequences):
            rows = [slice(i * seq_len, (i + 1) * seq_len) for i in range(first, min(first + sequences, whole))]
            tokens = np.stack([self.tokens[row.start : row.stop + 1] for row in rows])
            documents = np.stack([self.document_ids[row] for row in rows]) if document_ids else None
            yield Batch(tokens, documents), len(rows) * seq_len
        if n_targets % seq_len:
            rest = slice(whole * seq_len, n_targets)
            documents = self.document_ids[None, rest] if document_ids else None
            yield Batch(self.tokens[None, rest.start :], documents), n_targets - rest.start
