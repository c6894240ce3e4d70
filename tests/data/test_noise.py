"""Data that are no text: each sort has the distribution that it says, and nothing but its seed decides it."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from shearling.data import noise


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_uniform_tokens_are_all_equally_frequent_and_independent_of_their_neighbours():
    tokens = noise.uniform_tokens(draw(), (200, 100), 50)
    assert stats.chisquare(np.bincount(tokens.ravel(), minlength=50)).pvalue > 1e-3
    pairs = np.histogram2d(tokens[:, :-1].ravel(), tokens[:, 1:].ravel(), bins=50)[0]
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_gaussian_vectors_are_normal_with_their_deviation():
    vectors = noise.gaussian_vectors(draw(), (20, 30, 40), 0.3)
    assert (vectors.shape, vectors.dtype) == ((20, 30, 40), np.float32)
    assert stats.kstest(vectors.ravel(), stats.norm(0, 0.3).cdf).pvalue > 1e-3


def test_tokens_by_frequency_are_as_frequent_as_they_were_counted():
    counts = np.array([0, 700, 0, 200, 100, 0])
    drawn = np.bincount(noise.tokens_by_frequency(draw(), (100, 100), counts).ravel(), minlength=6)
    assert drawn[[0, 2, 5]].tolist() == [0, 0, 0]
    assert stats.chisquare(drawn[[1, 3, 4]], 10 * counts[[1, 3, 4]]).pvalue > 1e-3


@dataclass
class Row:
    """A split that is a row of tokens."""

    row: np.ndarray

    @property
    def total_tokens(self) -> int:
        return len(self.row)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= len(self.row)
        return self.row[start:stop]


def test_token_counts_take_every_token_once_however_they_are_parted(monkeypatch):
    row = draw().integers(7, size=1000)
    monkeypatch.setattr(noise, "_COUNTED", 300)
    assert noise.token_counts(Row(row), 9).tolist() == [(row == token).sum() for token in range(9)]


def test_shuffled_sequences_keep_their_own_tokens_in_any_order():
    tokens = np.tile(np.arange(5), (2000, 1)) + 5 * np.arange(2000)[:, None]
    mixed = noise.shuffled(draw(), tokens)
    assert (np.sort(mixed, axis=1) == tokens).all()
    places = np.histogram2d(np.tile(np.arange(5), 2000), (mixed % 5).ravel(), bins=5)[0]
    assert stats.chisquare(places.ravel()).pvalue > 1e-3


def depths_of(row: np.ndarray, k: int) -> list[int]:
    """How many brackets are open before each place, and after the last; each kind must be balanced."""
    open_of_kind, depths = [0] * k, [0]
    for token in row:
        open_of_kind[token % k] += 1 if token < k else -1
        assert min(open_of_kind) >= 0, "a bracket closes that is not open"
        depths.append(sum(open_of_kind))
    return depths


class TestShuffleDyck:
    def test_closes_only_what_is_open_and_stays_within_its_depth(self):
        rows = noise.shuffle_dyck(draw(), 50, 300, k=5, p_open=0.5, max_depth=4)
        assert rows.shape == (50, 300)
        depths = {depth for row in rows for depth in depths_of(row, 5)}
        assert depths == {0, 1, 2, 3, 4}

    def test_opens_with_its_probability_where_it_may_do_either(self):
        rows = noise.shuffle_dyck(draw(), 100, 400, k=5, p_open=0.3, max_depth=6)
        opened = total = 0
        for row in rows:
            for token, depth in zip(row, depths_of(row, 5), strict=False):
                if 0 < depth < 6:
                    opened, total = opened + (token < 5), total + 1
        assert stats.binomtest(int(opened), total, 0.3).pvalue > 1e-3

    def test_opens_every_kind_alike_and_closes_every_open_kind_alike(self):
        rows = noise.shuffle_dyck(draw(), 200, 400, k=3, p_open=0.5, max_depth=8)
        opened, closed = [0] * 3, []
        for row in rows:
            counts = [0] * 3
            for token in row:
                if token < 3:
                    opened[token] += 1
                elif all(counts):
                    closed.append(token - 3)
                counts[token % 3] += 1 if token < 3 else -1
        assert stats.chisquare(opened).pvalue > 1e-3
        assert stats.chisquare(np.bincount(closed)).pvalue > 1e-3

    def test_of_depth_one_opens_and_closes_in_turn(self):
        rows = noise.shuffle_dyck(draw(), 10, 40, k=4, p_open=0.9, max_depth=1)
        assert (rows[:, 1::2] == rows[:, ::2] + 4).all()

    def test_interleaves_its_kinds(self):
        """In a Dyck word ( [ ) ] is no word: here it is."""
        rows = noise.shuffle_dyck(draw(), 50, 100, k=2, p_open=0.5, max_depth=8)
        assert any("0123" in "".join(map(str, row)) for row in rows)


@pytest.mark.parametrize(
    "make",
    [
        lambda d: noise.uniform_tokens(d, (3, 8), 100),
        lambda d: noise.gaussian_vectors(d, (3, 8, 2), 1.0),
        lambda d: noise.tokens_by_frequency(d, (3, 8), np.arange(100)),
        lambda d: noise.shuffled(d, np.arange(24).reshape(3, 8)),
        lambda d: noise.shuffle_dyck(d, 3, 8, k=9, p_open=0.5, max_depth=5),
    ],
    ids=["uniform", "gaussian", "by frequency", "shuffled", "dyck"],
)
def test_a_seed_gives_the_same_again_and_another_seed_another(make):
    assert (make(draw(3)) == make(draw(3))).all()
    assert (make(draw(3)) != make(draw(4))).any()
