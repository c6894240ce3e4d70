"""Attention with normed queries and keys, against formulas in float64."""

import pytest
import torch

from shearling.models.layers.attention import Attention, Context, short_attention
from shearling.models.layers.feedforward import build_feedforward
from shearling.models.layers.position import build_position
from shearling.models.spec import ModelSpec

D, H, KV, K, T = 24, 4, 2, 6, 7


def context(causal: bool = True, short: bool = False) -> Context:
    return Context(rotation=None, mask=None, causal=causal, short=short, dtype=torch.float32)


def made(inside: str = "", n_kv_heads: int = KV, **options) -> Attention:
    spec = ModelSpec(**{"d_model": D, "n_heads": H, "n_kv_heads": n_kv_heads, "position": {"kind": "none"}, **options})
    attention = Attention(spec, 0, frozenset(inside.split())).eval()
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


def results_of_heads(q, k, v, scale: float = K**-0.5, causal: bool = True) -> torch.Tensor:
    """What the heads give, side by side, from queries, keys and values."""
    heads = []
    for head in range(H):
        group = head // (H // k.size(2))
        scores = scale * q[:, :, head] @ k[:, :, group].transpose(1, 2)
        if causal:
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[:, :, group])
    return torch.cat(heads, -1)


def result(attention: Attention, q, k, v, **options) -> torch.Tensor:
    """Attention's output from its queries, keys and values, head by head."""
    return results_of_heads(q, k, v, **options) @ attention.o_proj.weight.double().T


def turned(values: torch.Tensor) -> torch.Tensor:
    """RoPE by complex phases, dimension i with i + K/2."""
    angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(K // 2).double() * 2 / K)
    pairs = torch.complex(values[..., : K // 2], values[..., K // 2 :])
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)[:, None, :]
    return torch.cat([pairs.real, pairs.imag], -1)


def rotary_context() -> Context:
    rotation = build_position(ModelSpec(d_model=D, n_heads=H)).rotation(torch.arange(T))
    return Context(rotation=rotation, mask=None, causal=True, short=False, dtype=torch.float32)


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


class TestWhatPlacementsPutInside:
    """Branches against formulas of their own, with rotary positions."""

    def test_norms_of_hybridnorm_come_before_the_rotation_and_norm_values_too(self):
        attention = made(inside="qkv_norm", position={"kind": "rope"})
        q, k, v = projected(attention)
        q, k = turned(rms(q, attention.q_norm.weight)), turned(rms(k, attention.k_norm.weight))
        expected = result(attention, q, k, rms(v, attention.v_norm.weight))
        torch.testing.assert_close(attention(x(), rotary_context()).double(), expected, rtol=1e-5, atol=1e-5)

    def test_subln_norms_all_heads_together_before_the_output_projection(self):
        attention = made(inside="output_norm", position={"kind": "rope"})
        q, k, v = projected(attention)
        heads = results_of_heads(turned(q), turned(k), v)
        expected = rms(heads, attention.output_norm.weight) @ attention.o_proj.weight.double().T
        torch.testing.assert_close(attention(x(), rotary_context()).double(), expected, rtol=1e-5, atol=1e-5)

    def test_normformer_weighs_the_heads(self):
        attention = made(inside="head_scale", position={"kind": "rope"})
        q, k, v = projected(attention)
        heads = results_of_heads(turned(q), turned(k), v).unflatten(-1, (H, K))
        expected = (attention.head_scale.double() * heads).flatten(2) @ attention.o_proj.weight.double().T
        torch.testing.assert_close(attention(x(), rotary_context()).double(), expected, rtol=1e-5, atol=1e-5)

    def test_ngpt_takes_cosines_after_the_rotation_times_a_gain_and_root_k(self):
        attention = made(inside="unit", n_kv_heads=H, position={"kind": "rope"})
        q, k, v = projected(attention)
        gain = D**0.5 * attention.unit_gain.weight.double()
        q, k = (gain * y / y.norm(dim=-1, keepdim=True) for y in (turned(q), turned(k)))
        expected = result(attention, q, k, v, scale=K**0.5)
        torch.testing.assert_close(attention(x(), rotary_context()).double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("activation", ["swiglu", "gelu"])
    @pytest.mark.parametrize("inside", ["hidden_norm", "unit"])
    def test_feedforwards_norm_or_scale_their_hidden_values(self, activation, inside):
        spec = ModelSpec(d_model=D, n_heads=H, intermediate_size=40, activation=activation)
        branch = build_feedforward(spec, frozenset({inside}))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in branch.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.3 * drawn if name.endswith("_proj.weight") else 1 + 0.3 * drawn
        matrix = {name: module.weight.double().T for name, module in branch.named_children() if name.endswith("_proj")}
        up, root = x().double() @ matrix["up_proj"], D**0.5
        if activation == "swiglu":
            gate = x().double() @ matrix["gate_proj"]
            if inside == "unit":
                up, gate = branch.up_gain.weight.double() * up, root * branch.gate_gain.weight.double() * gate
            hidden = gate * torch.sigmoid(gate) * up
        else:
            up = root * branch.up_gain.weight.double() * up if inside == "unit" else up
            hidden = 0.5 * up * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up**3)))
        if inside == "hidden_norm":
            hidden = rms(hidden, branch.hidden_norm.weight)
        expected = hidden @ matrix["down_proj"]
        torch.testing.assert_close(branch(x(), context()).double(), expected, rtol=1e-5, atol=1e-5)


def test_placements_ask_for_what_their_papers_put_inside():
    from shearling.models.layers.placement import Where
    from shearling.models.layers.placements import PLACEMENTS

    asked = {}
    for kind, placement in PLACEMENTS.items():
        for part in ("attention", "feedforward"):
            options = ModelSpec(placement={"kind": kind}, final_norm=kind != "ngpt").placement
            asked[kind, part] = set(placement.of(options, Where(2, 6, part)).inside)
    assert {place: inside for place, inside in asked.items() if inside} == {
        ("hybrid", "attention"): {"qkv_norm"},
        ("subln", "attention"): {"output_norm", "hidden_norm"},
        ("subln", "feedforward"): {"output_norm", "hidden_norm"},
        ("normformer", "attention"): {"head_scale"},
        ("normformer", "feedforward"): {"hidden_norm"},
        ("ngpt", "attention"): {"unit"},
        ("ngpt", "feedforward"): {"unit"},
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [7, 128, 300])
def test_short_attention_and_its_gradients_are_those_of_the_formula(length, causal, masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v, dy = (torch.randn(2, 3, length, 8, generator=generator) for _ in range(4))
    positions = torch.arange(length)
    seen = positions[:, None] >= positions if causal else torch.ones(length, length, dtype=torch.bool)
    mask = seen & ((positions[:, None] - positions).abs() < 50) if masked else None

    def formula(q, k, v):
        scores = (q @ k.transpose(-1, -2) * 0.3).masked_fill(~(seen if mask is None else mask), -torch.inf)
        return torch.softmax(scores, dim=-1) @ v

    exact = [x.double().requires_grad_() for x in (q, k, v)]
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    y, expected = short_attention(*ours, 0.3, causal, mask), formula(*exact)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(y, ours, dy)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, exact, dy.double()), strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-5)


def test_short_attention_tells_the_compiler_the_truth():
    q, k, v = (torch.randn(4, 200, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    torch.library.opcheck(torch.ops.shearling.short_attention, (q, k, v, 0.3, True, None))
