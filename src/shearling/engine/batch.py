"""Texts that are drawn side by side: the weights are read once for a token of each."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shearling.engine.generation import Drawing, Text, Transcript, append_to_each
from shearling.engine.sampling import Sampler
from shearling.engine.session import Session
from shearling.quantization import FloatArray


class Batch:
    """The sequences of a session, each of which holds a text that grows, or is free for another.

    Args:
        session: which the batch alone uses; it has as many sequences as texts can grow at once.
    """

    def __init__(self, session: Session) -> None:
        self._free = [Transcript(session, sequence) for sequence in range(len(session.lengths))]
        self._growing: list[_Growing] = []

    @property
    def full(self) -> bool:
        """Whether there is no room for another text before one has ended."""
        return not self._free

    @property
    def empty(self) -> bool:
        """Whether all texts have ended."""
        return not self._growing

    def begin(
        self, text: Text, prompt: Sequence[int], sampler: Sampler, *, limit: int | None, stop_ids: Collection[int]
    ) -> None:
        """Read a prompt into a free sequence and draw the first token behind it; the others wait meanwhile.

        Args:
            text: takes the tokens, and why they ended.
            sampler: this text's own.
            limit: tokens at most; None: up to the end of the context, where the last one drawn need not fit.
            stop_ids: tokens that end the text, and are no part of it.

        Raises:
            UserError: the prompt is empty or does not fit into the context, or logits are not finite.
        """
        if limit == 0:
            text.finish = "length"
            return
        transcript = self._free[0]
        transcript.keep(0)  # as it would be alone: an engine may round otherwise what it reads in other pieces
        logits_V, _ = transcript.become(prompt)
        growing = _Growing(Drawing(transcript, sampler, limit, stop_ids), text)
        growing.grow(logits_V)
        if not text.finish:
            self._growing.append(growing)
            del self._free[0]

    def step(self) -> None:
        """Draw one token more of each text. Those that end leave their sequences free.

        Raises:
            UserError: logits are not finite.
        """
        logits_BV = append_to_each(
            [each.drawing.transcript for each in self._growing], [each.text.drawn[-1] for each in self._growing]
        )
        for growing, logits_V in zip(self._growing, logits_BV, strict=True):
            growing.grow(logits_V)
        self._free += [each.drawing.transcript for each in self._growing if each.text.finish]
        self._growing = [each for each in self._growing if not each.text.finish]


@dataclass
class _Growing:
    drawing: Drawing
    text: Text

    def grow(self, logits_V: FloatArray) -> None:
        token, finish = self.drawing.draw(logits_V)
        if finish != "stop":
            self.text.push(token)
        if finish and not self.text.finish:
            self.text.finish = finish
            self.text.flush()
