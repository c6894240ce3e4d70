"""Attention with normed queries and keys, against formulas in float64."""

import pytest
import torch

from shearling.models.layers.attention import Attention, Context
from shearling.models.spec import ModelSpec

D, H, KV, K, T = 24, 4, 2, 6, 7


def context(causal: bool = True, short: bool = False) -> Context:
    return Context(rotation=None, mask=None, causal=causal, short=short, dtype=torch.float32)


def made(**options) -> Attention:
    spec = ModelSpec(d_model=D, n_heads=H, n_kv_heads=KV, position={"kind": "none"}, **options)
    attention = Attention(spec, 0).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in attention.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.4 * drawn if name.endswith("_proj.weight") else parameter.data * (1 + 0.3 * drawn)
    return attention


def x() -> torch.Tensor:
    return torch.randn(2, T, D, generator=torch.Generator().manual_seed(1))


def projected(attention: Attention) -> list[torch.Tensor]:
    """Queries, keys and values before anything is done to them, (2, T, heads, K) in float64."""
    matrices = (attention.q_proj, attention.k_proj, attention.v_proj)
    return [(x().double() @ m.weight.double().T).unflatten(-1, (-1, K)) for m in matrices]


def rms(values: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return gain.double() * values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def result(attention: Attention, q, k, v, scale: float = K**-0.5, causal: bool = True) -> torch.Tensor:
    """Attention's output from its queries, keys and values, head by head."""
    heads = []
    for head in range(H):
        group = head // (H // KV)
        scores = scale * q[:, :, head] @ k[:, :, group].transpose(1, 2)
        if causal:
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[:, :, group])
    return torch.cat(heads, -1) @ attention.o_proj.weight.double().T


def test_without_a_norm():
    attention = made()
    expected = result(attention, *projected(attention))
    torch.testing.assert_close(attention(x(), context()).double(), expected, rtol=1e-5, atol=1e-5)


def test_per_head_norms_share_one_gain_among_heads():
    attention = made(qk_norm={"kind": "per_head"})
    q, k, v = projected(attention)
    expected = result(attention, rms(q, attention.q_norm.weight), rms(k, attention.k_norm.weight), v)
    torch.testing.assert_close(attention(x(), context()).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_of_the_whole_projection_is_taken_before_it_is_cut_into_heads():
    attention = made(qk_norm={"kind": "projection"})
    q, k, v = projected(attention)
    q = rms(q.flatten(2), attention.q_norm.weight).unflatten(-1, (H, K))
    k = rms(k.flatten(2), attention.k_norm.weight).unflatten(-1, (KV, K))
    expected = result(attention, q, k, v)
    torch.testing.assert_close(attention(x(), context()).double(), expected, rtol=1e-5, atol=1e-5)


def test_l2_norms_make_scores_cosines_times_a_learned_scale_a_head():
    attention = made(qk_norm={"kind": "l2", "scale": 4.0})
    q, k, v = projected(attention)
    q, k = (values / values.norm(dim=-1, keepdim=True) for values in (q, k))
    expected = result(attention, attention.qk_scale.double() * q, k, v, scale=1.0)
    torch.testing.assert_close(attention(x(), context()).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["per_head", "projection", "l2"])
def test_normed_queries_and_keys_do_not_see_the_input_s_scale(kind):
    attention = made(qk_norm={"kind": kind})
    for one, other in zip(
        attention.queries_keys(x(), context()), attention.queries_keys(50 * x(), context()), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_both_kernels_agree_in_both_directions(causal):
    attention = made()
    expected = result(attention, *projected(attention), causal=causal)
    for short in (False, True):
        got = attention(x(), context(causal, short)).double()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
