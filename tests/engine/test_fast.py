"""The compiled engine computes what the PyTorch model computes, whatever it is fed with."""

import os
import signal
import time

import numpy as np
import psutil
import pytest
import torch

from shearling.engine import fast
from shearling.engine.fast import FastEngine
from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, StoredTensor, rotary_heads, rotary_order
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer
from shearling.quantization import parse_codec

SHAPE = {
    "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "intermediate_size": 96, "vocab_size": 80,
    "max_seq_len": 160, "norm": {"kind": "rmsnorm", "eps": 1e-5},
}  # fmt: skip
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 80, 150)]


def torch_model(**options) -> Transformer:
    """Weights large enough for logits and attention to differ from place to place."""
    model = Transformer(ModelSpec.model_validate({**SHAPE, **options})).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def stored(model: Transformer, codec: str = "f32", rotary: str = "halves", group: int | None = None) -> Checkpoint:
    """The model as a file would hold it, matrices in a codec; the model itself gets what of them comes back."""
    kept, tensors = parse_codec(codec, group), {}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        encoded = StoredTensor(array.shape, kept, kept.encode(array)) if array.ndim == 2 else StoredTensor.of(array)
        parameter.data = torch.tensor(encoded.read())
        heads = rotary_heads(model.spec, name)
        turned = heads is not None and rotary == "adjacent"
        tensors[name] = encoded.reordered(rotary_order(len(array), heads, "adjacent")) if turned else encoded
    return Checkpoint(model.spec, tensors, rotary, "made up")


@torch.no_grad()
def expected(model: Transformer, tokens=TOKENS) -> np.ndarray:
    return model.logits(model(torch.tensor([tokens])))[0].numpy()


def all_logits(checkpoint: Checkpoint, tokens=TOKENS, **options) -> np.ndarray:
    return FastEngine(checkpoint, threads=2, **options).session().feed_for_all_logits(tokens)


@pytest.mark.parametrize("rotary", ["halves", "adjacent"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_kv_heads": None},
        {"n_kv_heads": 1},
        {"tie_embeddings": False},
        {"attention_bias": True, "n_layers": 1},
        {"sliding_window": 7},
        {"position": {"kind": "rope", "theta": 5e4, "scaling": {"kind": "linear", "factor": 4.0}}},
        {"d_model": 72, "n_heads": 6, "n_kv_heads": 3, "intermediate_size": 172, "vocab_size": 81},
        {"d_model": 8, "n_heads": 4, "n_kv_heads": 4, "intermediate_size": 20},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_fp32_logits_are_those_of_the_torch_model(options, rotary):
    model = torch_model(**options)
    checkpoint = stored(model, rotary=rotary)
    tokens = [token % model.spec.vocab_size for token in TOKENS]
    np.testing.assert_allclose(all_logits(checkpoint, tokens), expected(model, tokens), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("codec", "group", "tolerance"),
    [
        ("f16", None, 1e-4),
        ("bf16", None, 1e-4),
        ("q8_0", None, 1e-3),
        ("q4_0", None, 1e-3),
        ("q4_1", None, 1e-3),
        ("int8", 32, 1e-3),
        ("int8", 4, 2e-2),
        ("int4", 32, 1e-3),
        ("nf4", None, 2e-2),
    ],
)
def test_stored_weights_give_the_logits_of_what_they_decode_to(codec, group, tolerance):
    """Vectors meet quantized weights as 16-bit whole numbers; what no kernel takes is decoded to bf16."""
    model = torch_model(intermediate_size=128)
    checkpoint = stored(model, codec, group=group)
    exact = expected(model)
    assert np.abs(all_logits(checkpoint) - exact).max() < tolerance * np.abs(exact).max()


@pytest.mark.parametrize(("kv", "tolerance"), [("bf16", 2e-2), ("int8", 4e-2)])
def test_keys_and_values_can_be_kept_in_fewer_bits(kv, tolerance):
    model = torch_model()
    exact = expected(model)
    found = all_logits(stored(model), kv=kv)
    assert 1e-6 < np.abs(found - exact).max() < tolerance * np.abs(exact).max()


@pytest.mark.parametrize("codec", ["f32", "q8_0", "q4_1"])
def test_token_by_token_gives_what_a_whole_text_gives_to_the_last_bit(codec):
    checkpoint = stored(torch_model(), codec)
    whole = all_logits(checkpoint)
    session = FastEngine(checkpoint, threads=2).session()
    single = np.stack([session.feed([token]) for token in TOKENS])
    np.testing.assert_array_equal(single, whole)


@pytest.mark.parametrize("codec", ["f32", "q8_0", "q4_0"])
def test_a_batch_gives_each_sequence_what_it_gets_alone_to_the_last_bit(codec):
    checkpoint = stored(torch_model(), codec)
    engine = FastEngine(checkpoint, threads=2)
    together, texts = engine.session(5), [TOKENS[start : start + 9 + start] for start in range(5)]
    for number, text in enumerate(texts):
        together.feed(text, number)
    stepped = together.step([3, 1, 4], [4, 0, 2])
    for row, (token, number) in enumerate(((3, 4), (1, 0), (4, 2))):
        alone = engine.session()
        alone.feed(texts[number])
        np.testing.assert_array_equal(stepped[row], alone.feed([token]))


@pytest.mark.parametrize("threads", [1, 3])
def test_results_do_not_depend_on_the_number_of_threads(threads):
    checkpoint = stored(torch_model(), "q8_0")
    found = FastEngine(checkpoint, threads=threads).session().feed_for_all_logits(TOKENS)
    np.testing.assert_array_equal(found, all_logits(checkpoint))


def test_a_sequence_that_is_rewound_goes_on_as_if_the_rest_had_not_been():
    engine = FastEngine(stored(torch_model()), threads=2)
    session, fresh = engine.session(), engine.session()
    session.feed(TOKENS[:100])
    session.rewind(40)
    fresh.feed(TOKENS[:40])
    np.testing.assert_array_equal(session.feed(TOKENS[50:60]), fresh.feed(TOKENS[50:60]))


def test_sessions_of_one_engine_do_not_disturb_each_other():
    engine = FastEngine(stored(torch_model()), threads=2)
    first, second = engine.session(), engine.session()
    first.feed(TOKENS[:10])
    second.feed(TOKENS[20:70])
    third = engine.session()
    third.feed(TOKENS[:10])
    np.testing.assert_array_equal(first.feed([5]), third.feed([5]))


def test_an_engine_that_slept_wakes_again():
    session = FastEngine(stored(torch_model()), threads=3).session()
    before = session.feed([1, 2])
    for _ in range(3):
        time.sleep(0.05)
        session.rewind(0)
        np.testing.assert_array_equal(session.feed([1, 2]), before)


def test_interrupts_at_any_moment_leave_the_engine_whole():
    """Ctrl-C comes between the announcement of a pass and its end: no thread may be left behind in it."""
    engine = FastEngine(stored(torch_model()), threads=2)
    expected_logits = engine.session().feed_for_all_logits(TOKENS)
    session, interrupted = engine.session(), 0

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + number % 40))
                for token in TOKENS:
                    session.feed([token])
                    session.rewind(0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
                session.lengths[0] = 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 100
    np.testing.assert_array_equal(engine.session().feed_for_all_logits(TOKENS), expected_logits)


def test_a_forked_process_gets_threads_of_its_own():
    engine = FastEngine(stored(torch_model()), threads=2)
    expected_logits = engine.session().feed(TOKENS)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if np.array_equal(engine.session().feed(TOKENS), expected_logits) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv": "int3"}, "int3"),
        ({"context": 161}, "161"),
        ({"context": 0}, "0"),
        ({"threads": 0}, "0"),
        ({"threads": 10**8}, "100000000"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        FastEngine(stored(torch_model()), **options)


def test_a_model_that_is_not_llamas_is_refused_with_what_it_has_beyond():
    with pytest.raises(UserError, match="qk_norm"):
        FastEngine(stored(torch_model(qk_norm={"kind": "per_head"})))


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
def test_a_long_context_takes_memory_only_as_far_as_it_is_used(kv):
    engine = FastEngine(stored(torch_model(max_seq_len=2**16)), kv=kv)  # 2 MiB of fp32 for each head of a sequence
    engine.session().feed(TOKENS[:4])
    before = psutil.Process().memory_info().rss
    sessions = [engine.session(sequences=8) for _ in range(4)]
    for session in sessions:
        session.step(TOKENS[:8])
    assert psutil.Process().memory_info().rss - before < 16 << 20  # 2,048 MiB are reserved in fp32


def test_more_sequences_than_the_system_has_memory_for_are_refused_with_their_size(monkeypatch):
    def none_left(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    engine = FastEngine(stored(torch_model()))
    monkeypatch.setattr(fast, "reserved", none_left)
    with pytest.raises(UserError, match=r"30000 sequences of 160 tokens: .* 2\.5 GB"):
        engine.session(sequences=30000)
