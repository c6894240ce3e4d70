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

INCOMPLETE = "\ufffd"
"""What decoders give for the bytes of a letter whose others are missing."""


class Transcript:
    """One sequence of a session, and the tokens that it holds.

    Attributes:
        session: whose sequence it is.
        sequence: which of them.
        tokens: those that the sequence holds.
    """

    def __init__(self, session: Session, sequence: int = 0) -> None:
        self.session = session
        self.sequence = sequence
        self.tokens: list[int] = []

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
        logits_V = self.session.feed(tokens[start:], self.sequence)
        self.tokens += tokens[start:]
        return logits_V, len(tokens) - start

    def append(self, token: int) -> FloatArray:
        """Hold one more token: float32 (V,), the logits behind it."""
        logits_V = self.session.feed([token], self.sequence)
        self.tokens.append(token)
        return logits_V

    def keep(self, length: int) -> None:
        """Forget all but the first tokens.

        Where an interruption fell between the session and this list, what only one of them holds goes as well.
        """
        length = min(length, len(self.tokens), self.session.lengths[self.sequence])
        del self.tokens[length:]
        self.session.rewind(length, self.sequence)

    def _shared(self, tokens: Sequence[int]) -> int:
        """How many tokens the sequence has in common with these, but for their last, whose logits are wanted."""
        pairs = zip(self.tokens, tokens[:-1], strict=False)
        return next((place for place, (held, wanted) in enumerate(pairs) if held != wanted),
                    min(len(self.tokens), len(tokens) - 1))  # fmt: skip


def append_to_each(transcripts: Sequence[Transcript], tokens: Sequence[int]) -> FloatArray:
    """Hold one more token each, in one pass of the model.

    Args:
        transcripts: of sequences of one session, at least one.

    Returns:
        float32 (B, V): the logits behind each token.
    """
    sequences = [transcript.sequence for transcript in transcripts]
    logits_BV = transcripts[0].session.step(tokens, sequences)
    for transcript, token in zip(transcripts, tokens, strict=True):
        transcript.tokens.append(token)
    return logits_BV


def check_prompt(tokens: Sequence[int], context: int) -> None:
    """Refuse a prompt that a context has no room for.

    Raises:
        UserError: there are no tokens, or too many.
    """
    if not tokens:
        raise UserError("a prompt of 0 tokens: there is nothing to continue: give a text")
    if len(tokens) > context:
        raise UserError(f"a prompt of {len(tokens)} tokens: the model's context takes 1 to {context}: shorten the text")


class Drawing:
    """Draws the tokens of one text, and knows where it ends.

    Args:
        transcript: what it goes on from; it is fed by the caller.
        sampler, limit, stop_ids: as `generate_tokens` takes them; a limit of 0 draws nothing and is the caller's.
    """

    def __init__(self, transcript: Transcript, sampler: Sampler, limit: int | None, stop_ids: Collection[int]) -> None:
        self.transcript = transcript
        self._sampler = sampler
        self._left = limit
        self._stop_ids = stop_ids

    def draw(self, logits_V: FloatArray) -> tuple[int, Finish | None]:
        """A token, and why the text ends there, if it does; one that it stops at is no part of it.

        Raises:
            UserError: logits are not finite.
        """
        token = self._sampler.draw(logits_V, self.transcript.tokens)
        if token in self._stop_ids:
            return token, "stop"
        if self._left is not None:
            self._left -= 1
        full = len(self.transcript.tokens) == self.transcript.session.context
        return token, "length" if full or self._left == 0 else None


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
    drawing = Drawing(transcript, sampler, limit, stop_ids)
    while True:
        token, finish = drawing.draw(logits_V)
        if finish != "stop":
            yield token
        if finish:
            return finish
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


class Text:
    """A text as it becomes certain, token by token: complete UTF-8, up to a string that ends it.

    A letter whose last bytes do not come is left out.

    Args:
        decoder: turns tokens into text; it has seen the prompt, where the text goes on within the prompt's sequence.
        stop: strings that end the text. Nothing of them is given out.

    Attributes:
        drawn: the tokens so far, those of a stop string among them.
        text: what was given out so far.
        finish: why it ended: "stop" once a stop string has come, else for whoever draws it to say; None while it has
            not, or where its reader left it.
    """

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str] = ()) -> None:
        self.drawn: list[int] = []
        self.text = ""
        self.finish: Finish | None = None
        self._decoder = decoder
        self._stop = StopStrings(stop)

    def push(self, token: int) -> str:
        """Take a token and return the text that is now certain, possibly none."""
        self.drawn.append(token)
        piece = self._stop.push(self._decoder.push(token))
        self.text += piece
        if self._stop.found:
            self.finish = "stop"
        return piece

    def flush(self) -> str:
        """What was kept back, where no more tokens come."""
        whole = self._decoder.flush().rstrip(INCOMPLETE)
        piece = self._stop.push(whole) + self._stop.flush()
        self.text += piece
        return piece


class Generation(Text):
    """The text that follows a prompt, to be iterated over once: pieces of complete UTF-8, none of them empty.

    Args:
        tokens: from `generate_tokens`.
        decoder, stop: as `Text` takes them.

    Attributes:
        first_seconds: from the start to the first token: the time that reading the prompt takes.
        seconds: from the start to the last token.
    """

    def __init__(self, tokens: Generator[int, None, Finish], decoder: StreamDecoder, stop: Sequence[str] = ()) -> None:
        super().__init__(decoder, stop)
        self.first_seconds = 0.0
        self.seconds = 0.0
        self._tokens = tokens

    def __iter__(self) -> Iterator[str]:
        yield from filter(None, self._pieces())

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding, without the prompt and the token that it gives; None where no more than that was drawn."""
        seconds = self.seconds - self.first_seconds
        return (len(self.drawn) - 1) / seconds if len(self.drawn) > 1 and seconds > 0 else None

    def _pieces(self) -> Iterator[str]:
        began = time.perf_counter()
        for token in self._ending_with_its_reason(self._tokens):
            self.seconds = time.perf_counter() - began
            if not self.drawn:
                self.first_seconds = self.seconds
            yield self.push(token)
            if self.finish:
                return
        yield self.flush()

    def _ending_with_its_reason(self, tokens: Generator[int, None, Finish]) -> Generator[int, None, None]:
        self.finish = yield from tokens
