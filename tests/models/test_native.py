"""What LLaMA's graph lacks: squared ReLU, capped logits and value embeddings, against formulas in float64."""

import pytest
import torch
import torch.nn.functional as F

from shearling.models.cost import parameters
from shearling.models.roles import role
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

V, D, L, K = 61, 24, 5, 12
OPTIONS = {
    "d_model": D, "n_layers": L, "n_heads": 2, "intermediate_size": 40, "vocab_size": V, "max_seq_len": 16,
    "init_std": 0.3,
}  # fmt: skip


def made(**options) -> Transformer:
    return Transformer(ModelSpec(**{**OPTIONS, **options}), seed=3).eval()


def some_tokens() -> torch.Tensor:
    return torch.randint(V, (2, 9), generator=torch.Generator().manual_seed(1))


def normed(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def formula_logits(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """A model of two heads without positions, its gains 1 as at first, in float64."""
    w = {name: tensor.detach().double() for name, tensor in model.named_parameters()}
    tables = model.spec.value_embeddings
    x = w["embed.weight"][tokens]
    B, T = tokens.shape
    past = torch.ones(T, T, dtype=torch.bool).tril()
    for layer in range(L):
        attention, feedforward = f"layers.{layer}.attention.branch", f"layers.{layer}.feedforward.branch"
        n = normed(x)
        q, k, v = (n @ w[f"{attention}.{part}_proj.weight"].T for part in "qkv")
        table = layer if layer < tables else layer - (L - tables)
        if table >= 0:
            own, added = w[f"{attention}.own_share"], w[f"{attention}.table_share"]
            v = own * v + added * w[f"value_embed.{table}.weight"][tokens]
        q, k, v = (each.view(B, T, 2, K).transpose(1, 2) for each in (q, k, v))
        scores = (q @ k.transpose(-1, -2) / K**0.5).masked_fill(~past, -torch.inf)
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D) @ w[f"{attention}.o_proj.weight"].T
        hidden = (normed(x) @ w[f"{feedforward}.up_proj.weight"].T).clamp(min=0) ** 2
        x = x + hidden @ w[f"{feedforward}.down_proj.weight"].T
    logits = normed(x) @ w["embed.weight"].T
    cap = model.spec.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


NATIVE = {"activation": "relu2", "value_embeddings": 2, "logit_softcap": 3.0, "position": {"kind": "none"}}


@pytest.mark.parametrize("without", ["value_embeddings", "logit_softcap", ""])
@torch.no_grad()
def test_computes_the_formula(without):
    model = made(**{key: value for key, value in NATIVE.items() if key != without})
    for number, parameter in enumerate(p for name, p in model.named_parameters() if name.endswith("_share")):
        parameter.fill_(1.0 - 0.3 * number)
    expected = formula_logits(model, some_tokens())
    torch.testing.assert_close(model.logits(model(some_tokens())).double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_generates_what_it_computes():
    model, tokens = made(**NATIVE), some_tokens()
    caches = model.new_caches(2, 16)
    parts = [model(part, caches=caches) for part in (tokens[:, :4], tokens[:, 4:5], tokens[:, 5:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-4, atol=1e-4)


def test_tables_are_looked_up_and_not_multiplied_with():
    without, with_tables = (parameters(ModelSpec(**OPTIONS, value_embeddings=n)) for n in (0, 2))
    assert with_tables.multiplied == without.multiplied
    assert with_tables.embedding == without.embedding + 2 * V * D
    assert role("value_embed.1.weight") == "embedding"


def test_tables_are_at_first_as_large_as_the_values():
    model = made(value_embeddings=1, d_model=96, vocab_size=500, init_std=0.02)
    n = F.normalize(torch.randn(200, 96, generator=torch.Generator().manual_seed(0)), dim=-1) * 96**0.5
    values = model.blocks[0].attention.branch.v_proj(n)
    assert model.value_embed[0].weight.std().item() == pytest.approx(values.std().item(), rel=0.1)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_part_learns(checkpointed):
    model = made(**NATIVE).train()
    model.checkpoint_activations = checkpointed
    model.logits(model(some_tokens())).square().mean().backward()
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum()]
    assert not still


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_embeddings": 3}, "first and last blocks would meet: at most half of n_layers 5"),
        ({"placement": {"kind": "ngpt"}, "final_norm": False, "logit_softcap": 15}, "logit_softcap: null"),
        ({"head": False, "logit_softcap": 15}, "leaves no logits to cap"),
        ({"logit_softcap": 0}, "greater than 0"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec(**{**OPTIONS, **options})
