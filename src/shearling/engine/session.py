"""What every engine offers: sequences that grow token by token, and the logits behind each.

Generation, chat and the Python API know only this. Imports no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from shearling.engine.arguments import whole_number
from shearling.errors import UserError
from shearling.machine import available_cores
from shearling.models.spec import ModelSpec
from shearling.quantization import FloatArray

THREADS_A_CORE = 4


def fitting_context(spec: ModelSpec, context: int | None) -> int:
    """How long sequences may become, in tokens: what is asked for, or all that the model takes.

    Raises:
        UserError: the model does not take so many.
    """
    longest = spec.max_seq_len
    if context is not None and not 0 < whole_number("context", context) <= longest:
        raise UserError(f"context {context}: the model takes 1 to {longest} tokens")
    return context or longest


def fitting_threads(threads: int | None) -> int:
    """How many threads work together: as many as are asked for, or one for each core.

    Raises:
        UserError: so many would only wait for one another.
    """
    cores = available_cores()
    most = THREADS_A_CORE * cores
    if threads is not None and not 0 < whole_number("threads", threads) <= most:
        raise UserError(f"threads {threads}: there are {cores} cores: take 1 to {most}")
    return threads or cores


class Session(ABC):
    """One or several sequences of one model, with the keys and values of the tokens that each holds.

    Attributes:
        context: the longest that a sequence can become, in tokens.
        lengths: tokens that each sequence holds.
    """

    context: int
    lengths: list[int]

    def __init__(self, spec: ModelSpec, context: int, sequences: int) -> None:
        self.vocab_size = spec.vocab_size
        self.context = context
        self.lengths = [0] * sequences

    def feed(self, tokens: Sequence[int], sequence: int = 0) -> FloatArray:
        """Append tokens to a sequence.

        Returns:
            float32 (V,): the logits behind the last of them.

        Raises:
            UserError: there are none, one is not in the vocabulary, or they do not fit into the context.
        """
        self._check(tokens, sequence)
        logits_V = self._feed(tokens, sequence, every=False)
        self.lengths[sequence] += len(tokens)
        return logits_V[-1]

    def feed_for_all_logits(self, tokens: Sequence[int], sequence: int = 0) -> FloatArray:
        """As `feed`, with the logits behind each of the tokens: float32 (T, V)."""
        self._check(tokens, sequence)
        logits_TV = self._feed(tokens, sequence, every=True)
        self.lengths[sequence] += len(tokens)
        return logits_TV

    def step(self, tokens: Sequence[int], sequences: Sequence[int] | None = None) -> FloatArray:
        """Append one token to each sequence, or to each of those that are named (no sequence twice).

        Returns:
            float32 (B, V): the logits behind each, in the order of `tokens`.

        Raises:
            UserError: as `feed`.
        """
        chosen = list(range(len(self.lengths))) if sequences is None else list(sequences)
        assert len(tokens) == len(chosen) == len(set(chosen)), "one token for each sequence"
        for token, sequence in zip(tokens, chosen, strict=True):
            self._check([token], sequence)
        logits_BV = self._step(tokens, chosen)
        for sequence in chosen:
            self.lengths[sequence] += 1
        return logits_BV

    def rewind(self, length: int, sequence: int = 0) -> None:
        """Forget all but the first `length` tokens of a sequence."""
        assert 0 <= length <= self.lengths[sequence], "a sequence can only be made shorter"
        self.lengths[sequence] = length

    @abstractmethod
    def _feed(self, tokens: Sequence[int], sequence: int, *, every: bool) -> FloatArray:
        """Keys and values of `tokens` go behind `lengths[sequence]`; logits (T, V), or (1, V) of the last alone."""

    @abstractmethod
    def _step(self, tokens: Sequence[int], sequences: list[int]) -> FloatArray:
        """The same of one token in each of several sequences: (B, V)."""

    def _check(self, tokens: Sequence[int], sequence: int) -> None:
        if len(tokens) == 0:
            raise UserError("no tokens to go on from: give at least one")
        if (wrong := next((token for token in tokens if not 0 <= token < self.vocab_size), None)) is not None:
            raise UserError(f"token {wrong}: the model's vocabulary has {self.vocab_size}: the tokenizer is another's")
        if self.lengths[sequence] + len(tokens) > self.context:
            raise UserError(
                f"{self.lengths[sequence] + len(tokens)} tokens: the context takes {self.context}: shorten the text"
            )


class Engine(ABC):
    """A model that is ready to run.

    Attributes:
        spec: the architecture.
        context: the longest that a sequence can become, in tokens.
    """

    spec: ModelSpec
    context: int

    @abstractmethod
    def session(self, sequences: int = 1) -> Session:
        """So many empty sequences."""
