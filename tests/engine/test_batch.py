"""Texts drawn side by side: each is the text that its prompt gets alone."""

import numpy as np
import pytest
from fake_engine import FakeEngine, checkpoint_of, make_tokenizer

from shearling.engine.api import Model
from shearling.engine.batch import Batch
from shearling.engine.fast import FastEngine
from shearling.engine.generation import Text
from shearling.engine.reference import ReferenceEngine
from shearling.engine.sampling import Sampler, Sampling
from shearling.errors import UserError
from shearling.formats import open_checkpoint

PROMPTS = [
    "", "The dog", "Once upon a time, there was a little girl", "A cat", "Lily and Tom went to the park. They",
    "One day", "The dog", "Tom", "“Zoë!”, said her mom. She",
]  # fmt: skip
CONTEXT = 64


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def stories(assets, engine) -> Model:
    checkpoint = open_checkpoint(assets / "models/stories260K.bin", assets / "tokenizers/tok512/tok512.bin")
    return Model(engine(checkpoint, context=CONTEXT), checkpoint)


@pytest.fixture(scope="module")
def reference(assets):
    return stories(assets, ReferenceEngine)


@pytest.fixture(scope="module", params=[ReferenceEngine, FastEngine], ids=["reference", "fast"])
def model(request, assets):
    return stories(assets, request.param)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0, "max_new_tokens": 20},
        {"temperature": 0.9, "max_new_tokens": 20},
        {"max_new_tokens": 40, "stop": [".", "and the"]},
        {"max_new_tokens": None, "repetition_penalty": 1.3, "top_k": 40, "top_p": 1.0},
        {"max_new_tokens": 1},
    ],
    ids=["greedy", "sampled", "stopped", "to the context's end", "one token"],
)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_texts_are_those_that_each_prompt_gets_alone_with_the_seeds_from_the_first_one_on(model, options, batch_size):
    alone = [model.generate(prompt, seed=70 + place, **options) for place, prompt in enumerate(PROMPTS)]
    assert model.generate_many(PROMPTS, seed=70, batch_size=batch_size, **options) == alone
    assert len(set(alone)) > 4


def test_the_engine_s_texts_are_the_reference_s(assets, reference):
    options = {"temperature": 0.0, "max_new_tokens": 12, "batch_size": 4}
    assert stories(assets, FastEngine).generate_many(PROMPTS, **options) == reference.generate_many(PROMPTS, **options)


def test_a_prompt_that_is_given_several_times_has_several_texts(reference):
    assert len(set(reference.generate_many(["The dog"] * 4, max_new_tokens=20))) == 4


class Noting(FakeEngine):
    """Notes which sequences each step of a session takes."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.steps: list[list[int]] = []

    def session(self, sequences: int = 1):
        session = super().session(sequences)
        step = session.step

        def noting(tokens, chosen):
            self.steps.append(list(chosen))
            return step(tokens, chosen)

        session.step = noting
        return session


def ends_of(tokenizer, lengths: dict[int, int]):
    """Behind a prompt that ends on a token come so many others, and EOS."""
    return lambda held: tokenizer.eos_id if len(held) - 2 >= lengths[held[1]] else 60 + len(held)


class TestSequences:
    def test_that_ended_leave_and_the_next_prompt_takes_their_place(self, tokenizer):
        first, second, third = (tokenizer.encode(letter)[-1] for letter in "abc")
        prompts, lengths = [[1, first], [1, second], [1, third]], {first: 2, second: 5, third: 2}
        engine = Noting(ends_of(tokenizer, lengths), 30)
        batch, texts = Batch(engine.session(2)), [Text(tokenizer.stream_decoder()) for _ in prompts]
        for text, prompt in zip(texts, prompts, strict=True):
            while batch.full:
                batch.step()
            batch.begin(text, prompt, Sampler(Sampling(temperature=0)), limit=None, stop_ids={tokenizer.eos_id})
        while not batch.empty:
            batch.step()
        assert [len(text.drawn) for text in texts] == [2, 5, 2]
        assert [text.finish for text in texts] == ["stop"] * 3
        (once, _), *_ = engine.steps
        other = 1 - once
        assert [sorted(step) for step in engine.steps] == [[0, 1]] * 4 + [[other]]

    def test_read_their_next_prompt_whole_as_it_would_be_alone(self, tokenizer):
        engine = FakeEngine(lambda held: 60, 30)
        model = Model(engine, checkpoint_of(engine, tokenizer))
        model.generate_many(["Lily"] * 3, batch_size=1, max_new_tokens=2)
        assert engine.fed == [model.prompt_tokens("Lily"), [60]] * 3

    def test_of_texts_that_end_at_once_are_never_stepped(self, tokenizer):
        engine = Noting(lambda held: tokenizer.eos_id, 30)
        model = Model(engine, checkpoint_of(engine, tokenizer))
        assert model.generate_many(["Lily", "Tom", "Lily"], batch_size=2) == ["", "", ""]
        assert engine.steps == []

    def test_are_no_more_than_there_are_prompts_or_were_asked_for(self, tokenizer):
        engine = Noting(lambda held: 60, 30)
        model = Model(engine, checkpoint_of(engine, tokenizer))
        model.generate_many(["Lily"] * 5, batch_size=2, max_new_tokens=3)
        assert max(map(len, engine.steps)) == 2
        engine.steps.clear()
        model.generate_many(["Lily"] * 5, batch_size=9, max_new_tokens=3)
        assert engine.steps == [[0, 1, 2, 3, 4]] * 2


class TestEnds:
    @pytest.mark.parametrize(
        ("limit", "stop_ids", "stop", "drawn", "finish"),
        [
            (4, (), None, 4, "length"),
            (None, (), None, 10, "length"),
            (None, {66}, None, 3, "stop"),
            (None, (), 3, 3, "stop"),
            (3, (), 3, 3, "stop"),
        ],
        ids=["limit", "context", "token", "string", "string at the limit"],
    )
    def test_come_where_they_should_and_say_why(self, tokenizer, limit, stop_ids, stop, drawn, finish):
        engine = FakeEngine(lambda held: 60 + len(held), 12)
        tokens = [63 + n for n in range(drawn)]
        string = [tokenizer.decode(tokens[stop - 1 : stop])] if stop else []
        text, batch = Text(tokenizer.stream_decoder(), string), Batch(engine.session(2))
        for each in (text, Text(tokenizer.stream_decoder())):
            batch.begin(each, [1, 40, 41], Sampler(Sampling(temperature=0)), limit=limit, stop_ids=stop_ids)
        while not batch.empty:
            batch.step()
        assert (text.drawn, text.finish) == (tokens, finish)
        assert text.text == tokenizer.decode(tokens[:-1] if stop else tokens)

    def test_give_out_what_was_no_stop_string_after_all(self, tokenizer):
        engine = FakeEngine(lambda held: 60 + len(held), 12)
        model = Model(engine, checkpoint_of(engine, tokenizer))
        plain, kept_back = (
            model.generate_many([""] * 2, temperature=0, max_new_tokens=3, stop=stop)
            for stop in ((), [tokenizer.decode([63]) + "…"])
        )
        assert kept_back == plain == [tokenizer.decode([61, 62, 63])] * 2

    def test_without_a_token_are_texts_too(self, reference):
        assert reference.generate_many(["Lily", "Tom"], max_new_tokens=0) == ["", ""]

    def test_of_no_prompts_are_none(self, model):
        assert model.generate_many([]) == []


class TestRefusals:
    """Before a token is drawn."""

    @pytest.mark.parametrize(
        ("prompts", "options", "said"),
        [
            ("Lily", {}, "prompts 'Lily': should be a list"),
            (["Lily", None], {}, "the prompt None: should be a text"),
            (["Lily", "Tom saw " * 40], {}, "a prompt of .* tokens: the model's context takes 1 to 40"),
            (["Lily"], {"batch_size": 0}, "batch_size 0: should be at least 1"),
            (["Lily"], {"batch_size": 2.0}, "batch_size 2.0: should be a whole number"),
            (["Lily", "Tom"], {"seed": 2**64 - 1}, "seed 18446744073709551616: should be between"),
            (["Lily"], {"stop": ["a", ""]}, "a stop string is empty"),
            (["Lily"], {"max_new_tokens": -1}, "max_new_tokens -1: should be at least 0"),
        ],
    )
    def test_of_what_cannot_be(self, tokenizer, prompts, options, said):
        engine = FakeEngine(lambda held: 60, 40)
        with pytest.raises(UserError, match=f"^{said}"):
            Model(engine, checkpoint_of(engine, tokenizer)).generate_many(prompts, **options)
        assert engine.fed == []


def test_a_list_of_numpy_s_texts_will_do(reference):
    options = {"temperature": 0, "max_new_tokens": np.int64(5), "batch_size": np.int32(2)}
    assert reference.generate_many(np.array(["Lily", "Tom"]), **options) == reference.generate_many(
        ["Lily", "Tom"], **options
    )
