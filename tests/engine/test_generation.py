"""Tokens behind a prompt and their text, on an engine whose tokens are known."""

import itertools

import pytest
from fake_engine import FakeEngine, make_tokenizer, reciting
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from shearling.data.tokenizers.streaming import WindowStreamDecoder
from shearling.engine import generation
from shearling.engine.generation import Generation, StopStrings, Transcript, generate_tokens
from shearling.engine.sampling import Sampler, Sampling
from shearling.errors import UserError

PROMPT = [1, 40, 41, 42]
COUNTING = [100 + n for n in range(100)]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def counting(context: int = 64, prompt: list[int] = PROMPT) -> FakeEngine:
    """100, 101, 102, … behind a prompt."""
    return FakeEngine(reciting(len(prompt), COUNTING), context)


def greedy() -> Sampler:
    return Sampler(Sampling(temperature=0.0))


def drawn(engine: FakeEngine, prompt: list[int] = PROMPT, **options) -> list[int]:
    return list(generate_tokens(Transcript(engine.session()), prompt, greedy(), **options))


def reason(tokens) -> str:
    """What a generator of tokens gives back at its end."""
    while True:
        try:
            next(tokens)
        except StopIteration as ended:
            return ended.value


class TestTokens:
    @pytest.mark.parametrize("limit", [0, 1, 7])
    def test_are_as_many_as_asked_for(self, limit):
        assert drawn(counting(), limit=limit) == COUNTING[:limit]

    def test_go_on_to_the_end_of_the_context_where_the_last_need_not_fit(self):
        assert drawn(counting(context=10)) == COUNTING[: 10 - len(PROMPT) + 1]
        assert drawn(counting(context=10), limit=1000) == COUNTING[: 10 - len(PROMPT) + 1]

    def test_end_before_a_token_that_ends_them(self):
        assert drawn(counting(), stop_ids={103, 105}) == [100, 101, 102]

    @pytest.mark.parametrize(("options", "expected"), [({"limit": 3}, "length"), ({"stop_ids": [102]}, "stop")])
    def test_tell_why_they_ended(self, options, expected):
        assert reason(generate_tokens(Transcript(counting().session()), PROMPT, greedy(), **options)) == expected

    def test_each_are_given_out_before_the_next_is_computed(self):
        engine = counting()
        next(generate_tokens(Transcript(engine.session()), PROMPT, greedy()))
        assert engine.fed == [PROMPT]

    @pytest.mark.parametrize("length", [11, 30])
    def test_from_a_prompt_without_room_are_refused(self, length):
        with pytest.raises(UserError, match=rf"a prompt of {length} tokens: the model's context takes 1 to 10"):
            drawn(counting(context=10), [1] * length)

    def test_behind_no_prompt_at_all_are_refused_with_a_mend_of_their_own(self):
        with pytest.raises(UserError, match=r"^a prompt of 0 tokens: there is nothing to continue: give a text$"):
            drawn(counting(), [])

    def test_that_the_text_has_already_are_penalized_those_of_the_prompt_among_them(self):
        engine = FakeEngine(lambda held: {7: 50.0, 8: 40.0})
        sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=1.5))
        assert list(generate_tokens(Transcript(engine.session()), [1, 7], sampler, limit=3)) == [8, 7, 7]

    def test_are_drawn_with_a_coin_each_and_one_for_what_is_fed_where_asked(self):
        engine = FakeEngine(len)
        skipping, plain = (Sampler(Sampling(temperature=60.0, top_p=1.0, seed=4)) for _ in range(2))
        tokens = list(generate_tokens(Transcript(engine.session()), PROMPT, skipping, limit=5, coins_for_prompt=True))
        plain.skip(len(PROMPT) - 1)
        assert list(generate_tokens(Transcript(engine.session()), PROMPT, plain, limit=5)) == tokens


class TestATranscript:
    def test_feeds_only_what_the_sequence_does_not_hold(self):
        engine = counting()
        transcript = Transcript(engine.session())
        transcript.become([1, 2, 3, 4])
        transcript.append(5)
        _, fed = transcript.become([1, 2, 3, 9, 8])
        assert engine.fed == [[1, 2, 3, 4], [5], [9, 8]]
        assert (transcript.tokens, fed) == ([1, 2, 3, 9, 8], 2)

    def test_reads_the_last_token_again_where_it_holds_them_all(self):
        engine = counting()
        transcript = Transcript(engine.session())
        transcript.become([1, 2, 3, 4])
        assert transcript.become([1, 2, 3])[1] == 1
        assert engine.fed[-1] == [3]
        assert transcript.session.lengths == [3]

    @pytest.mark.parametrize("place", ["before it was noted", "before it was fed"])
    def test_survives_an_interruption_between_session_and_list(self, place):
        engine = counting()
        transcript = Transcript(engine.session())
        transcript.become([1, 2, 3])
        if place == "before it was noted":
            transcript.session.feed([4])
        else:
            transcript.tokens.append(4)
        transcript.become([1, 2, 3, 4, 5])
        assert engine.fed[-1] == [4, 5]
        assert (transcript.tokens, transcript.session.lengths) == ([1, 2, 3, 4, 5], [5])

    def test_leaves_a_session_s_other_sequences_alone(self):
        session = counting().session(2)
        first, second = Transcript(session, 0), Transcript(session, 1)
        first.become([1, 2, 3])
        second.become([4, 5])
        first.keep(1)
        assert session.lengths == [1, 2]


def through(strings, pieces) -> tuple[str, bool]:
    stops = StopStrings(strings)
    given_out = []
    for piece in pieces:
        given_out.append(stops.push(piece))
        if stops.found:
            return "".join(given_out), True
    return "".join([*given_out, stops.flush()]), False


class TestStopStrings:
    @given(
        st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.lists(st.text("ab\n", max_size=3), max_size=9)
    )
    def test_cut_the_text_before_the_first_that_is_whole_however_it_comes(self, strings, pieces):
        text = "".join(pieces)
        ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(string) for string in strings)]
        if ends:
            longest = max(len(string) for string in strings if text[: ends[0]].endswith(string))
            assert through(strings, pieces) == (text[: ends[0] - longest], True)
        else:
            assert through(strings, pieces) == (text, False)

    def test_keep_back_no_more_than_what_may_become_one(self):
        stops = StopStrings(["\n\n", "END"])
        assert [stops.push(piece) for piece in ("a", "\n", "b", "xE", "N", "d")] == ["a", "", "\nb", "x", "", "ENd"]

    def test_without_any_hold_nothing_back(self):
        assert StopStrings([]).push("abc") == "abc"

    def test_that_are_empty_are_refused(self):
        with pytest.raises(UserError, match="stop string is empty"):
            StopStrings(["a", ""])


def written(tokenizer, tokens, stop=()) -> tuple[list[str], Generation]:
    """What becomes of tokens that were drawn, and then the end."""

    def drawing():
        yield from tokens
        return "length"

    text = Generation(drawing(), tokenizer.stream_decoder(), stop)
    return list(text), text


class TestText:
    def test_is_that_of_its_tokens(self, tokenizer):
        tokens = tokenizer.encode("Tom saw 12 cats")
        pieces, text = written(tokenizer, tokens)
        assert "".join(pieces) == text.text == "Tom saw 12 cats"
        assert text.drawn == tokens

    def test_comes_in_whole_characters_and_no_empty_pieces(self, tokenizer):
        pieces, _ = written(tokenizer, tokenizer.encode("é🐑 naïve"))
        assert "".join(pieces) == "é🐑 naïve"
        assert all(pieces)
        assert not any("\ufffd" in piece for piece in pieces)

    @pytest.mark.parametrize("missing", [1, 2, 3])
    def test_leaves_out_a_letter_that_never_came_whole(self, tokenizer, missing):
        pieces, text = written(tokenizer, tokenizer.encode("Tom 🐑")[:-missing])
        assert "".join(pieces) == text.text == "Tom "

    @pytest.mark.parametrize("missing", [1, 2])
    def test_leaves_it_out_where_a_library_decodes_byte_by_byte(self, missing):
        tokenizer = Tokenizer(models.BPE({f"<0x{n:02X}>": n for n in range(256)}, [], byte_fallback=True))
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        stream = WindowStreamDecoder(tokenizer.decode, silent=())
        tokens = list("Tom é".encode() + "🐑".encode()[:-missing])

        def drawing():
            yield from tokens
            return "length"

        assert "".join(Generation(drawing(), stream)) == "Tom é"

    def test_ends_before_a_stop_string_that_tokens_share(self, tokenizer):
        tokens = tokenizer.encode("Tom saw a cat. Then he slept.")
        pieces, text = written(tokenizer, tokens, ["at. Th"])
        assert "".join(pieces) == "Tom saw a c"
        assert text.finish == "stop"
        assert len(text.drawn) < len(tokens)

    def test_gives_out_at_its_end_what_was_no_stop_string_after_all(self, tokenizer):
        pieces, text = written(tokenizer, tokenizer.encode("Tom saw"), ["saw a"])
        assert "".join(pieces) == "Tom saw"
        assert text.finish == "length"

    def test_that_its_reader_leaves_has_no_end(self, tokenizer):
        text = Generation(
            generate_tokens(Transcript(counting().session()), PROMPT, greedy()), tokenizer.stream_decoder()
        )
        next(iter(text))
        assert text.finish is None

    def test_has_the_speed_of_what_follows_its_first_token(self, tokenizer, monkeypatch):
        now = itertools.chain([10.0], (12.0 + n / 4 for n in range(100)))
        monkeypatch.setattr(generation.time, "perf_counter", lambda: next(now))
        _, text = written(tokenizer, tokenizer.encode("Tom saw Lily"))
        assert text.first_seconds == 2
        assert text.tokens_per_second == 4

    def test_of_one_token_has_no_speed(self, tokenizer):
        assert written(tokenizer, [50])[1].tokens_per_second is None
