"""Drawing tokens: against llama2.c's steps taken one by one, exact probabilities, and another library's filters."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from shearling.engine.sampling import SEQUENTIAL, Sampler, Sampling, sampling_of
from shearling.errors import UserError

LOGITS = np.array([1.0, 2.5, -1.0, 2.0, 0.0, 1.5], np.float32)
DRAWS = 4_000


def draw(logits, text=(), **options) -> int:
    return Sampler(Sampling(**{"seed": 1, **options})).draw(logits, text)


def frequencies(logits, **options) -> list[int]:
    sampler = Sampler(Sampling(**{"seed": 7, "top_p": 1.0, **options}))
    return np.bincount([sampler.draw(logits) for _ in range(DRAWS)], minlength=len(logits)).tolist()


def proportions(logits, keep, temperature=1.0) -> list[float]:
    weights = [math.exp(logits[token] / temperature) for token in keep]
    return [DRAWS * weight / sum(weights) for weight in weights]


class Steps:
    """llama2.c's sampler one operation after another, each rounded to float32."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.top_p, self.state = np.float32(temperature), np.float32(top_p), np.uint64(seed)

    def coin(self):
        for shift, up in ((12, False), (25, True), (27, False)):
            moved = self.state << np.uint64(shift) if up else self.state >> np.uint64(shift)
            self.state ^= moved
        with np.errstate(over="ignore"):
            value = (self.state * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(32)
        return np.float32(int(value) >> 8) / np.float32(16777216)

    def draw(self, logits) -> int:
        scaled = [np.float32(x / self.temperature) for x in logits]
        weights = [np.float32(math.exp(x - max(scaled))) for x in scaled]
        total = self.add(weights)[-1]
        p = [np.float32(weight / total) for weight in weights]
        coin, order = self.coin(), range(len(p))
        if 0 < self.top_p < 1:
            least = (np.float32(1) - self.top_p) / np.float32(len(p) - 1)
            order = sorted((token for token in order if p[token] >= least), key=lambda token: -p[token])
            sums = self.add([p[token] for token in order])
            cut = next((place for place, mass in enumerate(sums) if mass > self.top_p), len(sums) - 1)
            order, coin = order[: cut + 1], coin * sums[cut]
        sums = self.add([p[token] for token in order])
        return next((token for token, mass in zip(order, sums, strict=True) if coin < mass), order[-1])

    @staticmethod
    def add(values):
        sums = [np.float32(0)]
        for value in values:
            sums.append(np.float32(sums[-1] + value))
        return sums[1:]


class TestAgainstLlama2C:
    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(1, 2**64 - 1),
        size=st.sampled_from([2, 7, 300]),
        spread=st.sampled_from([0.5, 3.0]),
        temperature=st.sampled_from([0.3, 1.0, 1.7]),
        top_p=st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]),
        rounded=st.booleans(),
    )
    def test_the_same_seed_gives_the_same_tokens(self, seed, size, spread, temperature, top_p, rounded):
        """Rounded logits have many equals, which stay in the tokens' order."""
        rng = np.random.default_rng(seed)
        sampler, steps = Sampler(Sampling(temperature, top_p, seed=seed)), Steps(temperature, top_p, seed)
        for _ in range(4):
            logits = (spread * rng.standard_normal(size)).astype(np.float32)
            logits = np.round(logits) if rounded else logits
            if 0 < top_p < 1 / size:
                continue  # there llama2.c reads before its list where no token has the least share
            assert sampler.draw(logits) == steps.draw(logits)

    def test_a_coin_is_thrown_away_for_each_token_that_is_not_drawn(self):
        sampler, steps = Sampler(Sampling(seed=9)), Steps(1.0, 0.9, 9)
        sampler.skip(5)
        for _ in range(5):
            steps.coin()
        flat = np.linspace(0, 1, 100, dtype=np.float32)
        assert [sampler.draw(flat) for _ in range(20)] == [steps.draw(flat) for _ in range(20)]

    def test_no_coin_is_flipped_where_nothing_is_drawn_by_chance(self):
        sampler = Sampler(Sampling(temperature=0.0, seed=9))
        before = vars(sampler).copy()
        sampler.skip(5)
        sampler.draw(LOGITS)
        assert vars(sampler) == before


class TestALargeVocabulary:
    """Sums go by blocks there, so that a draw may end on a neighbour."""

    SIZE = 8 * SEQUENTIAL - 300

    @pytest.mark.parametrize("top_p", [0.7, 1.0])
    @pytest.mark.parametrize("spread", [0.1, 3.0])
    def test_a_coin_falls_where_exact_sums_say(self, top_p, spread):
        logits = (spread * np.random.default_rng(0).standard_normal(self.SIZE)).astype(np.float32)
        p = np.exp(logits.astype(np.float64))
        p /= p.sum()
        order = np.argsort(-p, kind="stable") if top_p < 1 else np.arange(self.SIZE)
        sums = np.cumsum(p[order])
        kept = sums[np.searchsorted(sums, top_p)] if top_p < 1 else 1.0
        sampler, steps = Sampler(Sampling(top_p=top_p, seed=3)), Steps(1.0, top_p, 3)
        for _ in range(200):
            place = int(np.flatnonzero(order == sampler.draw(logits))[0])
            mass = float(steps.coin()) * kept
            assert sums[place] - p[order[place]] - 2e-4 <= mass <= sums[place] + 2e-4

    def test_its_last_token_can_be_drawn(self):
        logits = np.full(self.SIZE, -30, np.float32)
        logits[-1] = 30
        assert draw(logits, top_p=1.0) == self.SIZE - 1


class TestProbabilities:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_are_those_of_the_softmax_at_that_temperature(self, temperature):
        expected = proportions(LOGITS, range(6), temperature)
        assert chisquare(frequencies(LOGITS, temperature=temperature), expected).pvalue > 1e-4

    @pytest.mark.parametrize(
        ("option", "value", "keep"),
        [("top_p", 0.3, [1]), ("top_p", 0.6, [1, 3]), ("top_k", 3, [1, 3, 5]), ("min_p", 0.3, [1, 3, 5])],
    )
    def test_of_what_a_filter_keeps_stay_in_proportion(self, option, value, keep):
        counts = frequencies(LOGITS, **{option: value})
        assert sum(counts[token] for token in keep) == DRAWS
        if len(keep) > 1:
            assert chisquare([counts[token] for token in keep], proportions(LOGITS, keep)).pvalue > 1e-4

    @pytest.mark.parametrize("options", [{"top_p": 0.0}, {"top_p": 1.0}, {"top_k": 0}, {"top_k": 6}, {"min_p": 0.0}])
    def test_are_not_cut_by_values_that_say_so(self, options):
        assert all(frequencies(LOGITS, temperature=2.0, **options))

    def test_at_zero_temperature_leave_the_first_of_the_likeliest(self):
        assert draw(np.array([0, 3, 1, 3], np.float32), temperature=0.0) == 1

    @given(st.floats(5e-324, 1e-3))
    @example(1e-42)
    def test_at_temperatures_near_zero_leave_the_likeliest(self, temperature):
        assert draw(LOGITS, temperature=temperature) == 1

    def test_at_a_huge_temperature_are_even(self):
        assert chisquare(frequencies(LOGITS, temperature=math.inf)).pvalue > 1e-4

    def test_of_equals_survive_a_tiny_top_p(self):
        assert draw(np.zeros(50, np.float32), top_p=1e-9) == 0

    def test_of_tokens_beyond_the_tokenizer_s_are_none(self):
        sampler = Sampler(Sampling(temperature=5.0, top_p=1.0, seed=1), vocab_size=3)
        assert {sampler.draw(LOGITS) for _ in range(100)} == {0, 1, 2}


class TestAgainstTransformers:
    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(0, 2**31),
        st.sampled_from([("top_p", "TopP"), ("min_p", "MinP")]),
        st.floats(0.01, 0.99),
        st.sampled_from([2, 17, 300]),
    )
    def test_what_its_filters_cut_is_never_drawn(self, seed, names, value, size):
        import transformers

        logits = 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
        cut = getattr(transformers, f"{names[1]}LogitsWarper")(value)
        keep = set(cut(None, logits[None])[0].isfinite().nonzero().flatten().tolist())
        sampler = Sampler(Sampling(**{"top_p": 1.0, names[0]: value}, seed=seed + 1))
        assert {sampler.draw(logits.numpy()) for _ in range(30)} <= keep

    @given(st.integers(0, 2**31), st.floats(0.2, 5.0))
    def test_penalized_logits_are_its_own(self, seed, penalty):
        from transformers import RepetitionPenaltyLogitsProcessor

        rng = np.random.default_rng(seed)
        logits, text = (3 * rng.standard_normal(12)).astype(np.float32), rng.integers(0, 12, 9).tolist()
        scores = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([text]), torch.tensor(logits[None]))[0].numpy()
        options = {"top_p": 1.0, "seed": seed + 1}
        penalized = Sampler(Sampling(repetition_penalty=penalty, **options))
        plain = Sampler(Sampling(**options))
        assert [penalized.draw(logits, text) for _ in range(20)] == [plain.draw(scores) for _ in range(20)]


class TestRepetition:
    def test_beyond_the_window_is_not_penalized(self):
        options = {"temperature": 0.0, "repetition_penalty": 9.0}
        assert draw(LOGITS, [1, 4], repetition_window=2, **options) == 3
        assert draw(LOGITS, [1, 4], repetition_window=1, **options) == 1
        assert draw(LOGITS, [1, 4], repetition_window=0, **options) == 1

    def test_leaves_the_caller_s_logits_as_they_are(self):
        logits = LOGITS.copy()
        draw(logits, [1], repetition_penalty=2.0)
        assert np.array_equal(logits, LOGITS)


class TestRefusals:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_of_a_diverged_model_s_logits(self, temperature, bad):
        with pytest.raises(UserError, match="not finite"):
            draw(np.array([0.0, bad, 1.0], np.float32), temperature=temperature)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("temperature", -0.1), ("temperature", math.nan), ("top_p", 1.1), ("top_p", math.nan), ("top_k", -1),
            ("min_p", -0.1), ("repetition_penalty", 0.0), ("repetition_penalty", math.nan), ("repetition_window", -1),
            ("seed", -1), ("seed", 2**64),
        ],
    )  # fmt: skip
    def test_of_values_out_of_range_naming_them(self, name, value):
        with pytest.raises(UserError, match=f"^{name} "):
            Sampling(**{name: value})

    @pytest.mark.parametrize("value", [0.0, math.inf])
    def test_of_a_penalty_say_that_it_is_finite(self, value):
        with pytest.raises(UserError, match=r"should be above 0, and finite$"):
            Sampling(repetition_penalty=value)

    def test_of_options_that_there_are_not_name_those_that_there_are(self):
        with pytest.raises(UserError, match=r"^max_tokens: no such option: known are max_new_tokens, .*top_p.*seed$"):
            sampling_of({"max_tokens": 5, "top_k": 3})


def test_options_by_name_are_those_of_the_class():
    assert sampling_of({"top_k": 3, "seed": 5}) == Sampling(top_k=3, seed=5)


def test_without_a_seed_the_clock_gives_one():
    assert len({Sampler(Sampling(seed=seed)).seed for seed in (None, 0, None, 0)}) > 1
