"""An engine whose every next token is known beforehand."""

from collections.abc import Callable, Sequence

import numpy as np

from shearling.data.tokenizers import train_tokenizer
from shearling.engine.session import Engine, Session
from shearling.formats.checkpoint import Checkpoint
from shearling.models.spec import ModelSpec

SENTENCES = [f"Lily saw {n} cats and {n + 1} dogs, and then Tom went home to his warm bed." for n in range(300)]


def make_tokenizer():
    """A small SentencePiece model: 0 to 2 are control tokens, 3 to 258 bytes."""
    return train_tokenizer(SENTENCES, 300)


class FakeEngine(Engine):
    """After some tokens comes `following(tokens)`: a token, or the logits of some; those of others are 0.

    Attributes:
        fed: the tokens of each call, of all sessions.
    """

    def __init__(
        self, following: Callable[[list[int]], int | dict[int, float]], context: int = 64, vocab_size: int = 300
    ) -> None:
        self.spec = ModelSpec(vocab_size=vocab_size, max_seq_len=context)
        self.context = context
        self.following = following
        self.fed: list[list[int]] = []

    def session(self, sequences: int = 1) -> Session:
        return _FakeSession(self, sequences)


class _FakeSession(Session):
    def __init__(self, engine: FakeEngine, sequences: int) -> None:
        super().__init__(engine.spec, engine.context, sequences)
        self.engine = engine
        self.held: list[list[int]] = [[] for _ in range(sequences)]

    def _feed(self, tokens: Sequence[int], sequence: int, *, every: bool) -> np.ndarray:
        self.engine.fed.append(list(tokens))
        start = self.lengths[sequence]
        self.held[sequence][start:] = tokens
        ends = range(start + 1, start + len(tokens) + 1) if every else [start + len(tokens)]
        logits = np.zeros((len(ends), self.vocab_size), np.float32)
        for row, end in enumerate(ends):
            likely = self.engine.following(self.held[sequence][:end])
            for token, logit in (likely if isinstance(likely, dict) else {likely: 50}).items():
                logits[row, token] = logit
        return logits

    def _step(self, tokens: Sequence[int], sequences: list[int]) -> np.ndarray:
        return np.concatenate(
            [self._feed([token], place, every=False) for token, place in zip(tokens, sequences, strict=True)]
        )


def reciting(prompt_length: int, tokens: Sequence[int]) -> Callable[[list[int]], int]:
    """What gives these tokens one after another, once the prompt has been read; their last again and again."""
    return lambda held: tokens[min(max(len(held) - prompt_length, 0), len(tokens) - 1)]


def checkpoint_of(engine: FakeEngine, tokenizer, **options) -> Checkpoint:
    """What an engine's model might have come from."""
    load = None if tokenizer is None else (lambda: tokenizer)
    return Checkpoint(engine.spec, {}, "halves", "a fake", load_tokenizer=load, **options)
