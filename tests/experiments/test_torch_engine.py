"""PyTorch's model in a session: against passes without a cache."""

import numpy as np
import pytest
import torch

from shearling.engine.generation import Transcript, generate_tokens
from shearling.engine.sampling import Sampler, Sampling
from shearling.errors import UserError
from shearling.experiments.torch_engine import SMALLEST, TorchEngine
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

TOKENS = [1, 7, 3, 3, 20, 39, 5]


def make(**options) -> Transformer:
    spec = {
        "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "intermediate_size": 64, "vocab_size": 40,
        "max_seq_len": 24, "init_std": 0.3, "dropout": 0.5, "placement": {"kind": "post"},
    }  # fmt: skip
    return Transformer(ModelSpec(**{**spec, **options}), seed=1).eval()


@torch.no_grad()
def logits_of(model: Transformer, tokens: list[int]) -> np.ndarray:
    """(T, V), a full pass without a cache."""
    return model.logits(model(torch.tensor([tokens])))[0].numpy()


@pytest.mark.parametrize("position", ["rope", "alibi", "learned"])
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_logits_are_those_of_a_full_pass_however_the_text_is_cut(position, cut):
    model = make(position={"kind": position})
    session = TorchEngine(model).session()
    first = session.feed_for_all_logits(TOKENS[:cut])
    last = session.feed(TOKENS[cut:])
    expected = logits_of(model, TOKENS)
    assert np.allclose(first, expected[:cut], atol=1e-5)
    assert np.allclose(last, expected[-1], atol=1e-5)


def test_what_was_forgotten_leaves_no_trace():
    model = make()
    session = TorchEngine(model).session()
    session.feed(TOKENS)
    session.rewind(2)
    assert np.allclose(session.feed([9, 9]), logits_of(model, [*TOKENS[:2], 9, 9])[-1], atol=1e-5)


def test_sequences_know_nothing_of_each_other():
    model = make()
    session = TorchEngine(model).session(3)
    session.feed(TOKENS[:4], 0)
    session.feed(TOKENS[:2], 2)
    logits = session.step([5, 6], [0, 2])
    assert np.allclose(logits[0], logits_of(model, [*TOKENS[:4], 5])[-1], atol=1e-5)
    assert np.allclose(logits[1], logits_of(model, [*TOKENS[:2], 6])[-1], atol=1e-5)
    assert session.lengths == [5, 0, 3]


def test_a_sequence_outgrows_its_first_room():
    model = make(max_seq_len=4 * SMALLEST)
    session = TorchEngine(model).session()
    tokens = [n % 40 for n in range(2 * SMALLEST + 3)]
    session.feed(tokens[: SMALLEST - 1])
    for token in tokens[SMALLEST - 1 :]:
        last = session.feed([token])
    assert np.allclose(last, logits_of(model, tokens)[-1], atol=1e-4)


def test_memory_is_that_of_the_text_and_not_of_the_context():
    session = TorchEngine(make(max_seq_len=2**28, d_model=256, n_kv_heads=4)).session()
    assert session.feed([1, 2, 3]).shape == (40,)


def test_greedy_text_is_the_argmax_of_full_passes():
    model = make()
    tokens = [1, 2]
    for _ in range(15):
        tokens.append(int(logits_of(model, tokens)[-1].argmax()))
    transcript = Transcript(TorchEngine(model).session())
    drawn = list(generate_tokens(transcript, [1, 2], Sampler(Sampling(temperature=0.0)), limit=15))
    assert drawn == tokens[2:]
    assert len(set(drawn)) > 3


def test_a_context_shorter_than_the_model_s_bounds_its_sessions():
    with pytest.raises(UserError, match="the context takes 4"):
        TorchEngine(make(), context=4).session().feed(TOKENS)


def test_a_model_that_reads_both_ways_is_refused():
    with pytest.raises(UserError, match="arch bert fills in masked tokens and continues no text"):
        TorchEngine(make(arch="bert", placement={"kind": "post"}))


def test_no_graph_is_kept():
    model = make()
    TorchEngine(model).session().feed(TOKENS)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
