"""What a step learns from, by objective."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shearling.data.stream import Batch
from shearling.errors import UserError
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer
from shearling.training.examples import IGNORED, make_examples
from shearling.training.loop import train
from shearling.training.loss import head_loss
from shearling.training.spec import MaskedTokenSpec, NextTokenSpec
from shearling.training.state import build_state
from shearling.training.step import train_step

BERT = {
    "arch": "bert", "norm": {"kind": "layernorm"}, "placement": {"kind": "post"}, "position": {"kind": "learned"},
    "activation": "gelu_erf", "embedding_norm": True, "final_norm": False, "attention_bias": True, "vocab_size": 301,
}  # fmt: skip


def batch(sequences: int = 200, length: int = 51) -> Batch:
    return Batch(np.random.default_rng(0).integers(0, 90, (sequences, length)))


def test_the_next_token_is_each_position_s_target():
    got, tokens = make_examples(NextTokenSpec(), batch(), 100, 0), batch().tokens
    assert np.array_equal(got.inputs, tokens[:, :-1])
    assert np.array_equal(got.targets, tokens[:, 1:])


class TestMaskedTokens:
    def test_shares_are_those_of_the_paper(self):
        got, tokens = make_examples(MaskedTokenSpec(), batch(), 100, 7), batch().tokens[:, :-1]
        chosen = got.targets != IGNORED
        assert chosen.mean() == pytest.approx(0.15, abs=0.01)
        assert np.array_equal(got.targets[chosen], tokens[chosen])
        assert np.array_equal(got.inputs[~chosen], tokens[~chosen])
        masked = got.inputs[chosen] == 99
        kept = got.inputs[chosen] == tokens[chosen]
        assert masked.mean() == pytest.approx(0.8 + 0.1 / 100, abs=0.03)
        assert kept.mean() == pytest.approx(0.1 + 0.1 / 100, abs=0.03)

    def test_the_draw_is_a_function_of_its_seed(self):
        one, again, other = (make_examples(MaskedTokenSpec(), batch(), 100, "x", step) for step in (1, 1, 2))
        assert np.array_equal(one.inputs, again.inputs)
        assert not np.array_equal(one.targets, other.targets)

    def test_the_mask_may_be_a_token_of_the_tokenizer_s(self):
        got = make_examples(MaskedTokenSpec(mask_id=95, share=1.0), batch(), 100, 7)
        assert (got.inputs == 95).mean() == pytest.approx(0.8, abs=0.02)

    def test_some_position_always_predicts(self):
        assert make_examples(MaskedTokenSpec(share=1e-9), batch(1, 9), 100, 7).n_targets == 1


def test_the_loss_is_a_mean_over_masked_positions_whatever_the_micro_batch(experiment):
    losses = []
    for micro_batch in (1, 3, 8):
        config = experiment(model=BERT, training={"micro_batch": micro_batch, "objective": {"kind": "masked_token"}})
        state = build_state(config, torch.device("cpu"), False)
        tokens = Batch(np.random.default_rng(0).integers(0, 300, (8, 33)))
        if not losses:
            examples = make_examples(config.training.objective, tokens, 301, config.seed, "objective", 0)
            with torch.no_grad():
                logits = state.model.logits(state.model(torch.from_numpy(examples.inputs)))
            targets = torch.from_numpy(examples.targets)
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED).item())
        losses.append(train_step(state, tokens, config, factor=1e-3 / config.training.optimizer.learning_rate)[0])
    assert losses[1:] == pytest.approx([losses[0]] * 3, rel=1e-3)


def test_the_head_s_bias_is_learned_and_is_part_of_the_logits():
    model = Transformer(ModelSpec(d_model=32, n_heads=2, n_layers=1, intermediate_size=40, max_seq_len=32, **BERT))
    model.head_bias.data.normal_(generator=torch.Generator().manual_seed(0))
    hidden = model(torch.randint(300, (2, 9)))
    expected = hidden[..., :-1] @ model.embed.weight.T + model.head_bias
    torch.testing.assert_close(model.logits(hidden), expected)
    head_loss(hidden.flatten(0, 1), model.lm_head, torch.randint(300, (18,))).backward()
    assert model.head_bias.grad.abs().max() > 0


def test_an_encoder_sees_both_ways_and_stays_inside_documents():
    model = Transformer(
        ModelSpec(d_model=32, n_heads=2, n_layers=2, intermediate_size=40, max_seq_len=32, init_std=0.3, **BERT)
    ).eval()
    x = torch.randint(300, (1, 12))
    changed = x.clone()
    changed[0, -1] = (x[0, -1] + 1) % 300
    documents = torch.tensor([[0] * 6 + [1] * 6])
    with torch.no_grad():
        assert (model(x)[:, 0] - model(changed)[:, 0]).abs().max() > 1e-3
        torch.testing.assert_close(model(x, documents)[:, :6], model(changed, documents)[:, :6])
    with pytest.raises(UserError, match="continues no text"):
        model.new_caches(1, 8)


def test_an_encoder_learns_to_fill_in_tokens_and_reports_no_bits_per_byte(experiment):
    config = experiment(model=BERT, training={"steps": 60, "objective": {"kind": "masked_token"}, "evaluate_every": 30})
    results = train(config)
    assert results["loss"] < results["first"]["loss"] - 1
    assert results["bits_per_byte"] is None


def test_a_mask_needs_a_row_of_its_own(experiment):
    config = experiment(model={**BERT, "vocab_size": 300}, training={"objective": {"kind": "masked_token"}})
    with pytest.raises(UserError, match="and one for the mask: raise model"):
        train(config)


@pytest.mark.parametrize(("model", "objective"), [({}, "masked_token"), (BERT, "next_token")])
def test_an_objective_that_does_not_fit_the_architecture_is_refused(experiment, model, objective):
    with pytest.raises(ValueError, match=r"is not for model\.arch \w+: set training\.objective\.kind"):
        experiment(model=model, training={"objective": {"kind": objective}})
