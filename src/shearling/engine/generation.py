"""Tokens that follow a prompt, and their text as it becomes certain."""

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Literal

from shearling.data.tokenizers.base import StreamDecoder
from shearling.engine.sampling import Sampler
from shearling.engine.session import Session
from shearling.errors import UserError
from shearling.quantization import FloatArray

Finish = Literal["stop", "length"]
"""Why a text ended: at a token or string that ends it, or because no more was asked for or fits."""


class Transcript:
    """One sequence of a session, and the tokens that it holds.

    Attributes:
        session: whose sequence it is.
        tokens: those that the sequence holds.
    """

    def __init__(self, session: Session, sequence: int = 0) -> None:
        self.session = session
        self.tokens: list[int] = []
        self._sequence = sequence

    def become(self, tokens: Sequence[int]) -> tuple[FloatArray, int]:
        """Hold these tokens: what the sequence has in common with them stays, the rest is fed.

        Returns:
            float32 (V,), the logits behind the last of them, and how many were fed.

        Raises:
            UserError: there are none, or they do not fit into the context.
        """
        check_prompt(tokens, self.session.context)
        self.keep(self._shared(tokens))
        start = len(self.tokens)
        logits_V = self.session.feed(tokens[start:], self._sequence)
        self.tokens += tokens[start:]
        return logits_V, len(tokens) - start

    def append(self, token: int) -> FloatArray:
        """Hold one more token: float32 (V,), the logits behind it."""
        logits_V = self.session.feed([token], self._sequence)
        self.tokens.append(token)
        return logits_V

    def keep(self, length: int) -> None:
        """Forget all but the first tokens.

        Where an interruption fell between the session and this list, what only one of them holds goes as well.
        """
        length = min(length, len(self.tokens), self.session.lengths[self._sequence])
        del self.tokens[length:]
        self.session.rewind(length, self._sequence)

    def _shared(self, tokens: Sequence[int]) -> int:
        """How many tokens the sequence has in common with these, but for their last, whose logits are wanted."""
        pairs = zip(self.tokens, tokens[:-1], strict=False)
        return next((place for place, (held, wanted) in enumerate(pairs) if held != wanted),
                    min(len(self.tokens), len(tokens) - 1))  # fmt: skip


def check_prompt(tokens: Sequence[int], context: int) -> None:
    """Refuse a prompt that a context has no room for.

    Raises:
        UserError: there are no tokens, or too many.
    """
    if not 0 < len(tokens) <= context:
        raise UserError(f"a prompt of {len(tokens)} tokens: the model's context takes 1 to {context}: shorten the text")


def generate_tokens(
    transcript: Transcript,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    limit: int | None = None,
    stop_ids: Collection[int] = (),
    coins_for_prompt: bool = False,
) -> Generator[int, None, Finish]:
    """Tokens that follow a prompt, each given out before the next one is computed.

    Args:
        transcript: afterwards it holds the prompt and what was drawn, but for the last token.
        limit: tokens at most; None: up to the end of the context, where the last one drawn need not fit.
        stop_ids: tokens that end the text, and are not given out.
        coins_for_prompt: flip a coin for each token that is fed, too, as llama2.c does in its chat.

    Returns:
        Why it ended.

    Raises:
        UserError: the prompt is empty or does not fit into the context, or logits are not finite.
    """
    if limit == 0:
        return "length"
    logits_V, fed = transcript.become(prompt)
    if coins_for_prompt:
        sampler.skip(fed - 1)
    drawn = 0
    while True:
        token = sampler.draw(logits_V, transcript.tokens)
        if token in stop_ids:
            return "stop"
        yield token
        drawn += 1
        if (limit is not None and drawn >= limit) or len(transcript.tokens) == transcript.session.context:
            return "length"
        logits_V = transcript.append(token)


class StopStrings:
    """Lets a text through up to the first of some strings, keeping back what may become one.

    Attributes:
        found: whether one has come: nothing more is let through.

    Raises:
        UserError: a string is empty.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if not all(strings):
            raise UserError("a stop string is empty, which every text has: leave it out")
        self.found = False
        self._strings = strings
        self._kept = ""

    def push(self, text: str) -> str:
        """Take a piece of the text and return what is now certain to come before any of the strings."""
        text = self._kept + text
        found = [(place + len(string), place) for string in self._strings if (place := text.find(string)) >= 0]
        self.found = self.found or bool(found)
        certain = min(found)[1] if found else len(text) - self._may_begin_one(text)  # the first that is whole
        self._kept = "" if self.found else text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was kept back, at the text's end."""
        kept, self._kept = self._kept, ""
        return kept

    def _may_begin_one(self, text: str) -> int:
        """The length of the longest end of `text` with which one of the strings begins."""
        longest = max(map(len, self._strings), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((length for length in lengths if any(s.startswith(text[-length:]) for s in self._strings)), 0)


class Generation:
    """The text that follows a prompt, to be iterated over once: pieces of complete UTF-8, none of them empty.

    Args:
        tokens: from `generate_tokens`.
        decoder: turns them into text; it has seen the prompt, where the text goes on within the prompt's sequence.
        stop: strings that end the text. Nothing of them is given out.

    Attributes:
        drawn: the tokens so far, those of a stop string among them.
        text: what was given out so far.
        finish: why it ended; None while it has not, or where its consumer left it.
        first_seconds: from the start to the first token: the time that reading the prompt takes.
        seconds: from the start to the last token.
    """

    def __init__(self, tokens: Generator[int, None, Finish], decoder: StreamDecoder, stop: Sequence[str] = ()) -> None:
        self.drawn: list[int] = []
        self.text = ""
        self.finish: Finish | None = None
        self.first_seconds = 0.0
        self.seconds = 0.0
        self._tokens = tokens
        self._decoder = decoder
        self._stop = StopStrings(stop)

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces():
            self.text += piece
            if piece:
                yield piece

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding, without the prompt and the token that it gives; None where no more than that was drawn."""
        seconds = self.seconds - self.first_seconds
        return (len(self.drawn) - 1) / seconds if len(self.drawn) > 1 and seconds > 0 else None

    def _pieces(self) -> Iterator[str]:
        began = time.perf_counter()
        tokens = self._ending_with_its_reason(self._tokens)
        for token in tokens:
            self.drawn.append(token)
            self.seconds = time.perf_counter() - began
            if len(self.drawn) == 1:
                self.first_seconds = self.seconds
            yield self._stop.push(self._decoder.push(token))
            if self._stop.found:
                self.finish = "stop"
                return
        yield self._stop.push(self._decoder.flush())
        yield self._stop.flush()

    def _ending_with_its_reason(self, tokens: Generator[int, None, Finish]) -> Generator[int, None, None]:
        self.finish = yield from tokens
