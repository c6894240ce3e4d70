"""A window on what each token sees, against Mistral of `transformers`."""

import pytest
import torch
from pydantic import ValidationError
from transformers import MistralConfig, MistralForCausalLM

from shearling.models.layers import attention
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

WINDOW = 5
SMALL = {
    "d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "intermediate_size": 40, "vocab_size": 61,
    "max_seq_len": 64, "init_std": 0.3, "tie_embeddings": False,
}  # fmt: skip


def windowed(window: int | None = WINDOW, **options) -> Transformer:
    return Transformer(ModelSpec(**{**SMALL, "sliding_window": window, **options}), seed=1).eval()


def tokens(length: int) -> torch.Tensor:
    return torch.randint(61, (2, length), generator=torch.Generator().manual_seed(0))


def mistral(model: Transformer) -> MistralForCausalLM:
    """The same model in `transformers`."""
    config = MistralConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
        vocab_size=61, max_position_embeddings=64, sliding_window=WINDOW, rms_norm_eps=1e-6,
    )  # fmt: skip
    other = MistralForCausalLM(config).eval()
    parts = {
        "attention.norm": "input_layernorm", "attention.branch": "self_attn",
        "feedforward.norm": "post_attention_layernorm", "feedforward.branch": "mlp",
        "final_norm": "norm", "embed.": "embed_tokens.",
    }  # fmt: skip
    state = {}
    for name, parameter in model.state_dict().items():
        theirs = "lm_head.weight" if name == "head.weight" else f"model.{name}"
        for ours, part in parts.items():
            theirs = theirs.replace(ours, part)
        state[theirs] = parameter
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 1])
@torch.no_grad()
def test_logits_equal_those_of_mistral(length):
    model, x = windowed(), tokens(length)
    torch.testing.assert_close(model.logits(model(x)), mistral(model)(x).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_every_kernel_gives_the_same(monkeypatch):
    model, x = windowed(), tokens(20)
    by_scores_in_memory = model(x)
    monkeypatch.setattr("shearling.models.transformer.SHORT", 0)
    monkeypatch.setattr(attention, "short_attention", None)  # is not called any more
    torch.testing.assert_close(model(x), by_scores_in_memory, rtol=0, atol=1e-4)


@torch.no_grad()
def test_cached_decoding_gives_the_hidden_states_of_one_pass():
    model, x = windowed(), tokens(20)
    caches = model.new_caches(2, 32)
    cuts = ((0, 4), (4, 5), (5, 6), (6, 7), (7, 14), (14, 20))
    pieces = [model(x[:, start:stop], caches=caches) for start, stop in cuts]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(x), rtol=0, atol=1e-4)


@torch.no_grad()
def test_packed_documents_have_windows_of_their_own():
    model, x = windowed(), tokens(21)
    documents = torch.tensor([[0] * 9 + [1] * 12] * 2)
    alone = windowed(position={"kind": "none"})  # without positions a document's place in the row does not matter
    alone.load_state_dict(model.state_dict())
    packed = alone(x, documents)
    apart = torch.cat((alone(x[:, :9]), alone(x[:, 9:])), dim=1)
    torch.testing.assert_close(packed, apart, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["alibi", "rope"])
@torch.no_grad()
def test_a_token_sees_itself_and_the_four_before_it(kind):
    model = windowed(n_layers=1, position={"kind": kind})
    x = tokens(16)
    for changed in range(16):
        other = x.clone()
        other[:, changed] = (x[:, changed] + 1) % 61
        moved = (model(other) - model(x)).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.nonzero().flatten().tolist() == list(range(changed, min(changed + WINDOW, 16)))


def test_attention_s_dropout_leaves_the_window():
    model = windowed(n_layers=1, attention_dropout=0.5).train()
    x = tokens(16)
    embedded = model.embed(x).detach().requires_grad_()
    model.hidden(embedded)[:, 12].sum().backward()
    assert embedded.grad.abs().amax(dim=(0, 2)).nonzero().min() >= 12 - WINDOW + 1


@torch.no_grad()
def test_a_window_wider_than_the_text_changes_nothing():
    model, x = windowed(None), tokens(12)
    wide = windowed(12)
    assert torch.equal(model(x), wide(x))
    assert not torch.allclose(model(x), windowed(11)(x))


def test_an_encoder_has_none():
    with pytest.raises(ValidationError, match="sliding_window: null"):
        windowed(arch="bert")
