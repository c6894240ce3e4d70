"""The batch stream: a pure function of (seed, step) that visits everything once an epoch."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shearling.data.stream import BatchStream, EvaluationSet, permute
from shearling.errors import UserError


@dataclass
class Ring:
    """Documents of given lengths whose tokens are their own positions."""

    lengths: tuple[int, ...]
    path: Path = Path("ring")
    split: str = "train"

    @property
    def total_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def n_documents(self) -> int:
        return len(self.lengths)

    @property
    def document_starts(self) -> np.ndarray:
        return np.cumsum((0, *self.lengths[:-1]))

    @property
    def document_bytes(self) -> np.ndarray:
        return 3 * np.array(self.lengths)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.total_tokens
        return np.arange(start, stop)


@settings(deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**63 - 1))
def test_permute_is_a_bijection(n, key):
    assert sorted(permute(np.arange(n), n, key)) == list(range(n))


def test_permute_looks_random():
    n = 50_000
    images = permute(np.arange(n), n, key=7)
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(n), images)[0, 1]) < 0.02
    first_of_many = [int(permute(np.array([0]), 16, key)[0]) for key in range(2000)]
    assert stats.chisquare(np.bincount(first_of_many, minlength=16)).pvalue > 1e-3


def test_permute_holds_no_permutation_of_a_huge_range():
    n = 10**12 + 39
    images = permute(np.arange(1000), n, key=1)
    assert len(set(images.tolist())) == 1000
    assert images.min() >= 0
    assert images.max() < n
    assert images.max() > n // 2


def test_the_millionth_step_is_the_same_directly_and_by_iteration():
    ring = Ring((50, 3, 200, 71))
    direct = BatchStream(ring, seq_len=8, sequences=4, seed=3).batch(1_000_000)
    iterated = next(islice(BatchStream(ring, seq_len=8, sequences=4, seed=3).from_step(999_990), 10, None))
    assert np.array_equal(direct.tokens, iterated.tokens)
    walked = BatchStream(ring, seq_len=8, sequences=4, seed=3)
    for step in (5, 0, 999_999):  # asking for other steps in between leaves no trace
        walked.batch(step)
    assert np.array_equal(direct.tokens, walked.batch(1_000_000).tokens)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    seq_len=st.integers(1, 16),
    sequences=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_an_epoch_visits_every_window_once(lengths, seq_len, sequences, seed):
    ring = Ring((*lengths, seq_len + 1))
    stream = BatchStream(ring, seq_len, sequences, seed)
    n = stream.windows_per_epoch
    rows = np.concatenate([stream.batch(step).tokens for step in range(-(-3 * n // sequences))])
    for epoch in range(3):
        inputs = rows[epoch * n : (epoch + 1) * n, :-1].flatten().tolist()
        assert len(set(inputs)) == len(inputs) == n * seq_len  # all but the ring's last total % seq_len tokens


def test_sequences_are_consecutive_on_the_ring_and_targets_follow_inputs():
    ring = Ring((40, 37))
    for batch in islice(BatchStream(ring, 10, 5, seed=0).from_step(0), 20):
        assert batch.tokens.shape == (5, 11)
        assert np.array_equal((batch.tokens[:, :1] + np.arange(11)) % 77, batch.tokens)


def test_epochs_differ_in_order_and_in_where_they_cut():
    stream = BatchStream(Ring((800,)), 8, 100, seed=0)
    first, second = stream.starts(0), stream.starts(1)
    assert set(first % 8) != set(second % 8)
    assert not np.array_equal(np.argsort(first), np.argsort(second))
    assert not np.array_equal(first, BatchStream(Ring((800,)), 8, 100, seed=1).starts(0))


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_any_number_of_processes_sees_the_same_sequences(world):
    stream = BatchStream(Ring((500,)), 7, 6, seed=2)
    shares = [stream.batch(11, rank, world).tokens for rank in range(world)]
    assert np.array_equal(np.concatenate(shares), stream.batch(11).tokens)


def test_processes_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(UserError, match="6 sequences a step cannot be shared by 4"):
        BatchStream(Ring((500,)), 7, 6, seed=2).batch(0, 0, 4)


def test_document_ids_change_exactly_where_documents_do():
    ring = Ring((5, 1, 30, 9))
    owner = np.repeat(np.arange(4), ring.lengths)
    stream = BatchStream(ring, 12, 4, seed=0, document_ids=True)
    for batch in islice(stream.from_step(0), 30):
        inputs = batch.tokens[:, :-1]
        borders = (np.diff(owner[inputs]) != 0) | (np.diff(inputs) != 1)  # the ring's own seam is a border too
        assert np.array_equal(np.diff(batch.document_ids) != 0, borders)


def test_too_little_text_is_refused_with_the_mend():
    with pytest.raises(UserError, match=r"8 tokens, too few for a sequence of data\.seq_len 8"):
        BatchStream(Ring((8,)), 8, 1, seed=0)


class TestEvaluationSet:
    @settings(deadline=None, max_examples=50)
    @given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20), at_least=st.integers(1, 500))
    def test_takes_whole_documents_and_no_more_than_needed(self, lengths, at_least):
        ring = Ring(tuple(lengths))
        held_out = EvaluationSet.take(ring, at_least)
        borders = np.flatnonzero(np.diff(held_out.document_ids, prepend=-1))
        documents = np.split(held_out.tokens, borders[1:])
        whole = [list(range(s, s + n)) for s, n in zip(ring.document_starts, lengths, strict=True)]
        assert all(document.tolist() in whole for document in documents)
        assert held_out.n_bytes == 3 * len(held_out.tokens)
        assert len(held_out.tokens) >= min(at_least, ring.total_tokens)
        assert len(held_out.tokens) - max(map(len, documents)) < at_least

    def test_draws_from_all_over_the_split(self):
        chosen = EvaluationSet.take(Ring((10,) * 1000), 1000).tokens // 2500
        assert set(chosen) == {0, 1, 2, 3}

    @pytest.mark.parametrize("seq_len", [1, 4, 7, 44, 60])
    @pytest.mark.parametrize("sequences", [1, 3])
    def test_every_token_but_the_first_is_a_target_once(self, seq_len, sequences):
        held_out = EvaluationSet.take(Ring((5, 1, 30, 9)), 999)
        targets = []
        for batch, n_targets in held_out.batches(seq_len, sequences):
            assert batch.tokens.shape[0] <= sequences
            assert batch.document_ids.shape == batch.tokens[:, :-1].shape
            assert np.array_equal(batch.tokens[:, 1:] - 1, batch.tokens[:, :-1])
            assert n_targets == batch.tokens[:, 1:].size
            targets += batch.tokens[:, 1:].flatten().tolist()
        assert targets == list(range(1, 45))
