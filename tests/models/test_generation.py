"""Drawing tokens: against exact probabilities, another library's filter, and passes without a cache."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from shearling.errors import UserError
from shearling.models.generation import generate, sample
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

LOGITS = torch.tensor([1.0, 2.5, -1.0, 2.0, 0.0, 1.5])
DRAWS = 5_000


def make(**options) -> Transformer:
    spec = {
        "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "intermediate_size": 64, "vocab_size": 40,
        "max_seq_len": 24, "init_std": 0.3, "dropout": 0.5,
    }  # fmt: skip
    return Transformer(ModelSpec(**{**spec, **options}), seed=1)


def frequencies(logits: torch.Tensor, temperature: float, top_p: float) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    drawn = [sample(logits, temperature, top_p, generator) for _ in range(DRAWS)]
    return torch.bincount(torch.tensor(drawn), minlength=len(logits)).tolist()


def kept(logits: torch.Tensor, top_p: float) -> set[int]:
    """Tokens that top-p leaves, by transformers' own filter."""
    from transformers import TopPLogitsWarper

    return set(TopPLogitsWarper(top_p)(None, logits[None])[0].isfinite().nonzero().flatten().tolist())


class TestSampling:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_draws_with_the_probabilities_of_the_softmax_at_that_temperature(self, temperature):
        weights = [math.exp(logit / temperature) for logit in LOGITS.tolist()]
        expected = [DRAWS * weight / sum(weights) for weight in weights]
        assert chisquare(frequencies(LOGITS, temperature, 1.0), expected).pvalue > 1e-4

    @pytest.mark.parametrize("top_p", [0.3, 0.7, 0.9])
    def test_draws_from_what_top_p_keeps_in_proportion(self, top_p):
        keep = sorted(kept(LOGITS, top_p))
        assert 0 < len(keep) < len(LOGITS)
        counts = frequencies(LOGITS, 1.0, top_p)
        assert sum(counts[token] for token in keep) == DRAWS
        weights = [math.exp(LOGITS[token]) for token in keep]
        if len(keep) > 1:
            expected = [DRAWS * weight / sum(weights) for weight in weights]
            assert chisquare([counts[token] for token in keep], expected).pvalue > 1e-4

    @pytest.mark.parametrize("top_p", [0.0, 1.0])
    def test_cuts_nothing_where_top_p_is_no_share(self, top_p):
        assert all(frequencies(LOGITS, 2.0, top_p))

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**31), st.floats(0.01, 0.99), st.sampled_from([2, 17, 300]), st.sampled_from([0.5, 3.0]))
    def test_never_draws_what_another_library_cuts(self, seed, top_p, size, spread):
        logits = spread * torch.randn(size, generator=torch.Generator().manual_seed(seed))
        keep = kept(logits, top_p)
        generator = torch.Generator().manual_seed(seed)
        assert {sample(logits, 1.0, top_p, generator) for _ in range(30)} <= keep

    def test_a_tiny_top_p_leaves_the_likeliest(self):
        assert {sample(LOGITS, 1.0, 1e-12) for _ in range(50)} == {1}

    def test_at_zero_temperature_is_the_argmax(self):
        assert {sample(LOGITS, 0.0, 0.9) for _ in range(20)} == {1}

    @given(st.floats(5e-324, 1e-3))
    @example(1e-42)
    def test_at_temperatures_near_zero_is_the_argmax(self, temperature):
        assert sample(LOGITS, temperature, 0.9) == 1

    def test_at_a_huge_temperature_is_even(self):
        assert chisquare(frequencies(LOGITS, math.inf, 1.0)).pvalue > 1e-4

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_from_a_diverged_model_is_refused(self, temperature, bad):
        with pytest.raises(UserError, match="not finite"):
            sample(torch.tensor([0.0, bad, 1.0]), temperature, 0.9)


@torch.no_grad()
def continued(model: Transformer, prompt: list[int], n_tokens: int, choose=torch.argmax) -> list[int]:
    """What follows `prompt`, a full pass without a cache for each token."""
    tokens = list(prompt)
    model.eval()
    for _ in range(n_tokens):
        tokens.append(int(choose(model.logits(model(torch.tensor([tokens])))[0, -1])))
    return tokens[len(prompt) :]


class TestGenerating:
    @pytest.mark.parametrize("prompt", [[1], [7, 3, 3, 20, 39]])
    def test_greedily_is_the_argmax_of_full_passes_without_a_cache(self, prompt):
        model = make()
        model.train()  # whose dropout must not touch the draw
        drawn = list(generate(model, prompt, 15, temperature=0.0))
        assert drawn == continued(model, prompt, 15)
        assert len(set(drawn)) > 3

    def test_draws_the_same_from_the_same_seed_and_else_from_another(self):
        model = make()
        first, again, other = (list(generate(model, [1], 20, seed=seed)) for seed in (5, 5, 6))
        assert first == again != other

    def test_leaves_the_global_generator_alone(self):
        before = torch.get_rng_state()
        list(generate(make_once := make(), [1], 5))
        torch.set_rng_state(before)
        list(generate(make_once, [1], 5))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.5, 0.6)])
    def test_samples_as_from_full_passes_without_a_cache(self, temperature, top_p):
        model, generator = make(), torch.Generator().manual_seed(3)
        expected = continued(model, [2, 4], 20, lambda logits: sample(logits, temperature, top_p, generator))
        assert list(generate(model, [2, 4], 20, temperature=temperature, top_p=top_p, seed=3)) == expected

    @pytest.mark.parametrize("n_tokens", [0, 1, 7])
    def test_stops_after_n_tokens(self, n_tokens):
        assert len(list(generate(make(), [1, 2], n_tokens))) == n_tokens

    def test_stops_at_the_end_of_the_context(self):
        model = make()
        drawn = list(generate(model, [1] * 20, 10**12, temperature=0.0))
        assert drawn == continued(model, [1] * 20, 4)

    def test_stops_where_the_stop_token_is_drawn_and_keeps_it_back(self):
        model = make()
        whole = list(generate(model, [1], 20, temperature=0.0))
        stop = whole[6]
        assert list(generate(model, [1], 20, temperature=0.0, stop=stop)) == whole[: whole.index(stop)]

    def test_draws_no_token_that_the_vocabulary_does_not_have(self):
        drawn = list(generate(make(), [1], 20, temperature=5.0, top_p=1.0, vocab_size=3))
        assert set(drawn) == {0, 1, 2}

    @pytest.mark.parametrize("length", [0, 24, 30])
    def test_from_a_prompt_without_room_is_refused_at_once(self, length):
        with pytest.raises(UserError, match=rf"a prompt of {length} tokens: the model's context takes 1 to 23"):
            generate(make(), [1] * length, 1)

    def test_from_a_model_that_reads_both_ways_is_refused_at_once(self):
        with pytest.raises(UserError, match="arch bert fills in masked tokens and continues no text"):
            generate(make(arch="bert"), [1], 1)

    def test_takes_memory_for_the_tokens_asked_for_and_not_for_the_context(self):
        assert len(list(generate(make(max_seq_len=2**28, d_model=256, n_kv_heads=4), [1], 3))) == 3

    def test_keeps_no_graph(self):
        model = make()
        list(generate(model, [1], 3))
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.is_grad_enabled()
