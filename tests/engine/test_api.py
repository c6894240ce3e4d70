"""What `shearling.load` gives: text, pieces, logits and replies in Python."""

import gc
import itertools
import json
import subprocess
import sys
import weakref

import numpy as np
import pytest
from fake_engine import FakeEngine, checkpoint_of, make_tokenizer, reciting

import shearling
from shearling.engine.api import Model
from shearling.engine.reference import ReferenceEngine
from shearling.engine.templates import JinjaTemplate, Llama2Template, Message
from shearling.errors import UserError
from shearling.formats import open_checkpoint

BEGINNING = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def stories(assets):
    """stories260K on the reference engine."""
    checkpoint = open_checkpoint(assets / "models/stories260K.bin", assets / "tokenizers/tok512/tok512.bin")
    return Model(ReferenceEngine(checkpoint), checkpoint)


@pytest.fixture
def reciter(tokenizer):
    """A model that says some words behind a prompt, and then EOS: `reciter("Tom saw", "Lily saw")`."""

    def make(words: str, prompt: str = "", context: int = 200, **options) -> Model:
        whole = tokenizer.encode(prompt + words)
        before = tokenizer.encode(prompt)
        assert whole[: len(before)] == before
        engine = FakeEngine(reciting(1 + len(before), [*whole[len(before) :], tokenizer.eos_id]), context)
        return Model(engine, checkpoint_of(engine, tokenizer, **options))

    return make


class TestGenerate:
    def test_gives_what_follows_the_prompt_and_not_the_prompt(self, reciter):
        model = reciter(" 12 cats and 13 dogs", "Lily saw")
        assert model.generate("Lily saw", temperature=0) == " 12 cats and 13 dogs"

    def test_of_no_prompt_begins_without_the_tokenizer_s_space(self, reciter):
        assert reciter("Lily saw").generate("", temperature=0) == "Lily saw"

    def test_ends_after_so_many_tokens_and_at_stop_strings(self, reciter):
        model = reciter(" 12 cats and 13 dogs", "Lily saw")
        assert model.generate("Lily saw", temperature=0, max_new_tokens=0) == ""
        assert model.generate("Lily saw", temperature=0, stop="and") == " 12 cats "
        assert model.generate("Lily saw", temperature=0, stop=["dogs", "and"]) == " 12 cats "
        assert model.generate("Lily saw", temperature=0, stop=None) == model.generate("Lily saw", temperature=0)

    def test_without_a_length_goes_on_to_the_end_of_the_context(self, tokenizer):
        engine = FakeEngine(lambda held: 100 + len(held), 40)
        model = Model(engine, checkpoint_of(engine, tokenizer))
        text = model.generate("", temperature=0, max_new_tokens=None)
        assert text == tokenizer.decode([100 + length for length in range(1, 41)])

    @pytest.mark.parametrize(("stop_ids", "ends"), [((), True), ((290,), False)])
    def test_ends_at_eos_unless_the_model_names_other_tokens(self, tokenizer, stop_ids, ends):
        engine = FakeEngine(reciting(1, [50, tokenizer.eos_id, 60, 290]), 30)
        text = Model(engine, checkpoint_of(engine, tokenizer, stop_ids=stop_ids)).generate("", temperature=0)
        assert text == tokenizer.decode([50] if ends else [50, 60])

    def test_ends_where_another_document_begins(self, tokenizer):
        engine = FakeEngine(reciting(1, [50, tokenizer.bos_id, 60]), 30)
        model = Model(engine, checkpoint_of(engine, tokenizer, stop_ids=(290,)))
        assert model.generate("", temperature=0) == tokenizer.decode([50])

    @pytest.mark.parametrize(("adds_bos", "first"), [(True, 1), (False, None)])
    def test_puts_bos_before_the_prompt_where_the_model_expects_it(self, tokenizer, adds_bos, first):
        engine = FakeEngine(len, 200)
        model = Model(engine, checkpoint_of(engine, tokenizer, adds_bos=adds_bos))
        model.generate("Lily saw", max_new_tokens=1)
        assert engine.fed[0] == [*([first] if first else []), *tokenizer.encode("Lily saw")]

    def test_draws_only_tokens_that_the_tokenizer_knows(self, tokenizer):
        engine = FakeEngine(lambda held: {299: 40.0, 310: 50.0}, 30, vocab_size=320)
        model = Model(engine, checkpoint_of(engine, tokenizer, stop_ids=(299,)))
        assert model.generate("", temperature=0) == ""


class TestAModelOfStories:
    def test_tells_llama2_c_s_story(self, stories):
        assert stories.generate("", temperature=0, max_new_tokens=60).startswith(BEGINNING)

    def test_gives_the_same_text_from_the_same_seed_each_time(self, stories):
        first, again, other = (stories.generate("Lily", max_new_tokens=40, seed=seed) for seed in (5, 5, 6))
        assert first == again != other

    def test_without_a_seed_tells_another_story_each_time(self, stories):
        assert len({stories.generate("", max_new_tokens=30) for _ in range(3)}) > 1

    def test_keeps_one_session_of_streams_that_have_ended(self, stories, monkeypatch):
        made, make = [], stories.engine.session

        def session():
            made.append(weakref.ref(new := make()))
            return new

        monkeypatch.setattr(stories.engine, "session", session)
        streams = [stories.stream("The dog", max_new_tokens=3) for _ in range(5)]
        for _ in itertools.zip_longest(*streams):  # side by side: each needs a session of its own
            pass
        del streams
        gc.collect()
        assert len(made) >= 4
        assert sum(each() is not None for each in made) <= 1

    def test_streams_what_it_generates(self, stories):
        options = {"seed": 3, "max_new_tokens": 40}
        pieces = list(stories.stream("The dog", **options))
        assert len(pieces) > 20
        assert "".join(pieces) == stories.generate("The dog", **options)

    def test_tells_two_stories_by_turns_as_it_tells_each(self, stories):
        one, two = (stories.stream(prompt, temperature=0, max_new_tokens=12) for prompt in ("The dog", "A cat"))
        texts = ["", ""]
        for first, second in zip(one, two, strict=True):
            texts[0] += first
            texts[1] += second
        assert texts == [stories.generate(prompt, temperature=0, max_new_tokens=12) for prompt in ("The dog", "A cat")]

    def test_has_the_logits_behind_each_token(self, stories):
        tokens = stories.prompt_tokens("Once upon a time")
        logits = stories.logits(tokens)
        assert logits.shape == (len(tokens), 512)
        assert logits.dtype == np.float32
        assert logits[:-1].argmax(1).tolist()[-3:] == tokens[-3:]
        assert np.allclose(stories.logits(tokens[:4]), logits[:4], atol=1e-4)

    def test_takes_numpy_s_numbers_for_python_s(self, stories):
        tokens = stories.prompt_tokens("Once upon a time")
        assert np.array_equal(stories.logits(np.array(tokens)), stories.logits(tokens))
        plain = {"max_new_tokens": 20, "seed": 2**62 + 3, "top_k": 30, "temperature": 0.5}
        numbers = {
            "max_new_tokens": np.int64(20), "seed": np.int64(2**62 + 3), "top_k": np.uint8(30),
            "temperature": np.float32(0.5),
        }  # fmt: skip
        assert stories.generate("Lily", **numbers) == stories.generate("Lily", **plain)

    def test_replies(self, stories):
        reply = stories.chat([{"role": "user", "content": "Hello"}], temperature=0, max_new_tokens=10)
        assert reply
        assert not reply.startswith(" ")

    def test_has_its_tokenizer_spec_and_context(self, stories):
        assert stories.tokenizer.vocab_size == stories.spec.vocab_size == 512
        assert stories.context == 512


class TestChat:
    def test_answers_in_the_model_s_own_template(self, tokenizer):
        engine = FakeEngine(lambda held: tokenizer.eos_id, 200)
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        model = Model(engine, checkpoint_of(engine, tokenizer, chat_template=template))
        assert model.chat([{"role": "user", "content": "Tom?"}]) == ""
        assert engine.fed[0] == tokenizer.encode("user: Tom?\n")
        assert isinstance(model.template, JinjaTemplate)

    def test_answers_as_llama_2_without_one(self, reciter):
        assert isinstance(reciter("x").template, Llama2Template)

    def test_ends_at_eos_whatever_ends_a_text(self, tokenizer):
        engine = FakeEngine(lambda held: tokenizer.eos_id if held[-1] == 50 else 50, 200)
        model = Model(engine, checkpoint_of(engine, tokenizer, stop_ids=(tokenizer.bos_id,)))
        assert model.chat([{"role": "user", "content": "Tom?"}], temperature=0) == tokenizer.decode([50])

    def test_reads_only_what_is_new_of_a_conversation_that_goes_on(self, tokenizer):
        engine = FakeEngine(lambda held: tokenizer.eos_id, 200)
        model = Model(engine, checkpoint_of(engine, tokenizer))
        said = [{"role": "user", "content": "Tom?"}]
        model.chat(said)
        said += [{"role": "assistant", "content": "Lily"}, {"role": "user", "content": "Who?"}]
        model.chat(said)
        whole = Llama2Template().tokens([Message.of(message) for message in said], tokenizer)
        assert engine.fed[1] == whole[len(engine.fed[0]) :]


class TestRefusals:
    """All of them at once, before a piece is asked for."""

    def test_of_a_prompt_longer_than_the_context(self, reciter):
        with pytest.raises(UserError, match="the model's context takes 1 to 20"):
            reciter("x", context=20).stream("Lily saw 12 cats " * 20)

    @pytest.mark.parametrize(
        ("options", "named"),
        [({"temperature": -1}, "temperature"), ({"max_new_tokens": -1}, "max_new_tokens"), ({"stop": [""]}, "stop")],
    )
    def test_of_options_out_of_range(self, reciter, options, named):
        with pytest.raises(UserError, match=named):
            reciter("x").stream("Lily", **options)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"prompt": b"Lily"}, "the prompt b'Lily': should be a text"),
            ({"prompt": None}, "the prompt None: should be a text"),
            ({"prompt": ["Lily", "Tom"]}, r"the prompt \['Lily', 'Tom'\]: should be a text"),
            ({"seed": "a"}, "seed 'a': should be a whole number"),
            ({"top_k": 1.5}, "top_k 1.5: should be a whole number"),
            ({"temperature": "hot"}, "temperature 'hot': should be a number"),
            ({"temperature": None}, "temperature None: should be a number"),
            ({"top_p": 10**400}, "top_p 10{20,}: should be a number"),
            ({"max_new_tokens": 1.5}, "max_new_tokens 1.5: should be a whole number"),
            ({"stop": 7}, "stop 7: should be a list"),
            ({"stop": {"a": 1}}, "stop {'a': 1}: should be a list"),
            ({"stop": ["a", 5]}, "stop 5: should be a text"),
        ],
    )
    def test_of_arguments_of_another_kind(self, reciter, options, said):
        with pytest.raises(UserError, match=f"^{said}$"):
            reciter("x").stream(**{"prompt": "Lily", **options})

    @pytest.mark.parametrize("messages", ["hi", None, {"role": "user", "content": "hi"}])
    def test_of_messages_that_are_no_list(self, reciter, messages):
        with pytest.raises(UserError, match=r"^messages .*: should be a list$"):
            reciter("x").stream_chat(messages)

    @pytest.mark.parametrize("message", ["hi", None, {"role": "user"}, {"role": "user", "content": 5}])
    def test_of_messages_that_are_none(self, reciter, message):
        with pytest.raises(UserError, match=r"^a message has the texts role and content"):
            reciter("x").stream_chat([message])

    @pytest.mark.parametrize(
        ("tokens", "said"),
        [
            ([1.0, 2.0], "tokens 1.0: should be a whole number"),
            (np.ones((2, 3), np.int64), r"tokens array\(\[1, 1, 1\]\): should be a whole number"),
            ("Lily", "tokens 'Lily': should be a list"),
            (5, "tokens 5: should be a list"),
        ],
    )
    def test_of_tokens_that_are_none(self, reciter, tokens, said):
        with pytest.raises(UserError, match=f"^{said}$"):
            reciter("x").logits(tokens)

    def test_of_options_that_are_none(self, reciter):
        with pytest.raises(UserError, match="temprature"):
            reciter("x").stream("Lily", temprature=1)

    def test_of_a_prompt_that_is_no_text(self, reciter):
        with pytest.raises(UserError, match="no valid UTF-8"):
            reciter("x").stream("\udcff")

    def test_of_another_model_s_tokenizer(self, tokenizer):
        engine = FakeEngine(len, vocab_size=100)
        with pytest.raises(UserError, match="its tokenizer has 300 tokens, and the model only 100"):
            Model(engine, checkpoint_of(engine, tokenizer)).stream("Lily saw")

    def test_of_text_from_a_model_without_a_tokenizer_whose_logits_are_there(self):
        engine = FakeEngine(len)
        model = Model(engine, checkpoint_of(engine, None))
        with pytest.raises(UserError, match="without a tokenizer"):
            model.generate("Lily")
        assert model.logits([1, 2]).shape == (2, 300)


class TestThePackage:
    def test_is_light_until_something_is_asked_of_it(self, root):
        code = "import shearling, sys; print([name for name in ('numpy', 'torch', 'pydantic') if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
        assert done.stdout == "[]\n"

    def test_shows_what_it_has(self):
        assert {"load", "Model", "__version__"} <= set(dir(shearling))
        assert shearling.Model is Model
        with pytest.raises(AttributeError, match="no attribute 'unload'"):
            shearling.unload  # noqa: B018

    def test_loads_a_model_and_writes_without_torch(self, assets, root):
        code = (
            "import json, sys, shearling\n"
            "model = shearling.load(sys.argv[1], tokenizer=sys.argv[2], threads=1, context=64)\n"
            "text = model.generate('', temperature=0, max_new_tokens=30)\n"
            "print(json.dumps([text, model.context, 'torch' in sys.modules]))"
        )
        files = [str(assets / "models/stories260K.bin"), str(assets / "tokenizers/tok512/tok512.bin")]
        done = subprocess.run(
            [sys.executable, "-c", code, *files], cwd=root, capture_output=True, text=True, timeout=250
        )
        text, context, torch = json.loads(done.stdout)
        assert BEGINNING.startswith(text[:40])
        assert (context, torch) == (64, False)
