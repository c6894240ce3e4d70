"""Tokens and vectors that are no text, for a warm-up before training; each a pure function of its generator's seed.

S sequences, T tokens each, V tokens in the vocabulary, D the width of an embedding. Imports no torch.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shearling.data.shards import TokenDataset

Tokens = npt.NDArray[np.int64]

_COUNTED = 2**22  # tokens at a time


def uniform_tokens(draw: np.random.Generator, shape: tuple[int, ...], vocab_size: int) -> Tokens:
    """Tokens drawn independently and uniformly from all V."""
    return draw.integers(vocab_size, size=shape)


def gaussian_vectors(draw: np.random.Generator, shape: tuple[int, ...], std: float) -> npt.NDArray[np.float32]:
    """fp32 values drawn independently from N(0, std²)."""
    values = draw.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    return values


def tokens_by_frequency(draw: np.random.Generator, shape: tuple[int, ...], counts: Tokens) -> Tokens:
    """Tokens drawn independently, each as often as `counts` (V,) says."""
    upto = np.cumsum(counts)
    return np.searchsorted(upto, draw.integers(upto[-1], size=shape), side="right")


def token_counts(dataset: TokenDataset, vocab_size: int) -> Tokens:
    """How often each token stands in a split: (V,). Reads all of it, a part at a time."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, dataset.total_tokens, _COUNTED):
        part = dataset.tokens(start, min(start + _COUNTED, dataset.total_tokens))
        counts += np.bincount(part, minlength=vocab_size)
    return counts


def shuffled(draw: np.random.Generator, tokens_ST: Tokens) -> Tokens:
    """Each sequence's own tokens in a uniformly random order."""
    return draw.permuted(tokens_ST, axis=1)


def shuffle_dyck(
    draw: np.random.Generator, sequences: int, length: int, *, k: int, p_open: float, max_depth: int
) -> Tokens:
    """Sequences of k kinds of brackets, each kind balanced, the kinds interleaved: k-Shuffle Dyck.

    Bracket i opens as token i and closes as token k + i. At each place a bracket opens with probability `p_open`,
    always where none is open and never where `max_depth` are; its kind is uniform, among those that are open if it
    closes (arXiv 2502.19249, section 3.2 and its published generator). A sequence is cut at `length`, so that its
    last brackets may stay open.

    Returns:
        (sequences, length), below 2k.
    """
    opens_SL = draw.random((sequences, length)) < p_open
    kinds_SL = draw.integers(k, size=(sequences, length))
    lots_SL = draw.random((sequences, length))
    rows = [
        list(_brackets(opens, kinds, lots, k, max_depth))
        for opens, kinds, lots in zip(opens_SL.tolist(), kinds_SL.tolist(), lots_SL.tolist(), strict=True)
    ]
    return np.array(rows, np.int64)


def _brackets(opens: list[bool], kinds: list[int], lots: list[float], k: int, max_depth: int) -> Iterator[int]:
    """One sequence, from what was drawn for each of its places: whether to open, which kind, which one to close."""
    depth = 0
    counts: dict[int, int] = {}  # of the brackets that are open, by kind
    for opening, kind, lot in zip(opens, kinds, lots, strict=True):
        if depth == 0 or (opening and depth < max_depth):
            counts[kind] = counts.get(kind, 0) + 1
            depth += 1
            yield kind
            continue
        closing = list(counts)[int(lot * len(counts))]
        counts[closing] -= 1
        if not counts[closing]:
            del counts[closing]
        depth -= 1
        yield k + closing
