"""Ways for positions to enter, against independent formulas."""

import math

import pytest
import torch

from shearling.models.layers.position import build_position, rotate
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

SMALL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "intermediate_size": 24, "vocab_size": 50, "max_seq_len": 64}


def position(n_heads=2, **options):
    return build_position(ModelSpec(d_model=16 * n_heads, n_heads=n_heads, position=options))


class TestRoPE:
    def test_rotation_is_multiplication_by_complex_phases(self):
        x = torch.randn(2, 10, 3, 16)
        positions = torch.arange(5, 15)
        turned = rotate(x, *position(kind="rope", theta=100.0).rotation(positions)).double()
        phases = torch.polar(
            torch.ones(10, 8, dtype=torch.double),
            positions[:, None].double() * 100.0 ** (-torch.arange(8).double() / 8),
        )
        expected = torch.complex(x[..., :8].double(), x[..., 8:].double()) * phases[:, None, :]
        torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1), rtol=1e-5, atol=1e-5)

    def test_scores_depend_on_distance_alone(self):
        q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
        rope = position(kind="rope")

        def score(i: int, j: int) -> torch.Tensor:
            turned_q = rotate(q, *rope.rotation(torch.tensor([i])))
            return (turned_q * rotate(k, *rope.rotation(torch.tensor([j])))).sum()

        torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-4, atol=1e-4)
        assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_sinusoids_are_those_of_the_paper():
    table = build_position(ModelSpec(d_model=6, n_heads=1, position={"kind": "sinusoidal"})).embedding(torch.arange(4))
    for pos in range(4):
        for i in range(3):
            angle = pos / 10000 ** (2 * i / 6)
            assert table[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize(("heads", "first_slopes"), [(8, [1 / 2, 1 / 4, 1 / 8]), (12, [1 / 2, 1 / 4, 1 / 8])])
def test_alibi_takes_slope_times_distance(heads, first_slopes):
    bias = position(kind="alibi", n_heads=heads).bias(torch.arange(5), torch.arange(5))
    assert bias.shape == (heads, 5, 5)
    for head, slope in enumerate(first_slopes):
        assert bias[head, 4, 1].item() == pytest.approx(-slope * 3)


def test_alibi_s_slopes_equal_transformers():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    for heads in (2, 6, 8, 12):
        theirs = build_alibi_tensor(torch.ones(1, 5), heads, torch.float32)  # slope · key position
        ours = position(kind="alibi", n_heads=heads).bias(torch.tensor([4]), torch.arange(5))
        # They differ by a constant a head, which softmax does not see.
        torch.testing.assert_close(ours[:, 0] - ours[:, 0, :1], theirs[:, 0] - theirs[:, 0, :1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["rope", "learned", "sinusoidal", "alibi", "none"])
def test_cached_decoding_gives_the_hidden_states_of_one_pass(kind):
    model = Transformer(ModelSpec(**SMALL, init_std=0.3, position={"kind": kind}), seed=1).eval()
    x = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(0))
    caches = model.new_caches(2, 32)
    with torch.no_grad():
        pieces = [model(x[:, start:stop], caches=caches) for start, stop in ((0, 9), (9, 10), (10, 16), (16, 20))]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["rope", "learned", "sinusoidal", "alibi"])
def test_order_is_seen_and_later_tokens_are_not(kind):
    model = Transformer(ModelSpec(**SMALL, init_std=0.3, position={"kind": kind}), seed=1).eval()
    x = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:, :3], model(torch.tensor([[5, 6, 7, 9]]))[:, :3])
        swapped = model(torch.tensor([[6, 5, 7, 8]]))
        assert (model(x)[:, 3] - swapped[:, 3]).abs().max() > 1e-4


def test_without_positions_a_single_layer_sees_a_set_of_earlier_tokens():
    model = Transformer(ModelSpec(**{**SMALL, "n_layers": 1}, init_std=0.3, position={"kind": "none"}), seed=1).eval()
    with torch.no_grad():
        a, b = model(torch.tensor([[5, 6, 7, 8]])), model(torch.tensor([[6, 5, 7, 8]]))
    torch.testing.assert_close(a[:, 3], b[:, 3])


def test_alibi_is_a_penalty_in_a_plain_attention_of_our_own():
    model = Transformer(ModelSpec(**{**SMALL, "n_layers": 1}, init_std=0.3, position={"kind": "alibi"}), seed=1).eval()
    block, x = model.layers[0], torch.tensor([[5, 6, 7, 8]])
    h = block.attention.norm(model.embed(x))[0].double()
    a = block.attention.branch
    q, k, v = (h @ w.weight.double().T for w in (a.q_proj, a.k_proj, a.v_proj))
    heads = []
    for head, slope in enumerate((2**-4, 2**-8)):
        part = slice(8 * head, 8 * head + 8)
        distance = torch.arange(4)[:, None] - torch.arange(4)[None, :]
        scores = q[:, part] @ k[:, part].T / 8**0.5 - slope * distance
        heads.append(scores.masked_fill(distance < 0, -torch.inf).softmax(-1) @ v[:, part])
    expected = model.embed(x)[0].double() + torch.cat(heads, -1) @ a.o_proj.weight.double().T
    stream, context = model.enter(model.embed(x))
    torch.testing.assert_close(block.attention(stream, context)[0].double(), expected, rtol=1e-5, atol=1e-5)
