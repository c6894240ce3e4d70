"""An engine for what LLaMA's graph cannot express: PyTorch's model, in the sessions that generation knows."""

from collections.abc import Sequence

import torch

from shearling.engine.session import Engine, Session, fitting_context
from shearling.models.layers.attention import KVCache
from shearling.models.transformer import Transformer
from shearling.quantization import FloatArray

SMALLEST = 64
"""Tokens that a sequence first gets room for; it doubles when it is full."""


class TorchEngine(Engine):
    """A model of any architecture that reads from left to right, in fp32.

    Args:
        model: in evaluation mode.
        context: the longest sequence, in tokens; None: the model's.

    Raises:
        UserError: the model reads both ways.
    """

    def __init__(self, model: Transformer, context: int | None = None) -> None:
        model.new_caches(0, 0)  # refuses it now, and not at the first text
        self.spec = model.spec
        self.context = fitting_context(model.spec, context)
        self._model = model

    def session(self, sequences: int = 1) -> Session:
        return _TorchSession(self._model, self.context, sequences)


class _TorchSession(Session):
    def __init__(self, model: Transformer, context: int, sequences: int) -> None:
        super().__init__(model.spec, context, sequences)
        self._model = model
        self._caches: list[list[KVCache]] = [model.new_caches(1, 0) for _ in range(sequences)]

    @torch.no_grad()
    def _feed(self, tokens: Sequence[int], sequence: int, *, every: bool) -> FloatArray:
        caches = self._with_room(sequence, len(tokens))
        hidden_BTD = self._model(torch.tensor([tokens], device=caches[0].keys.device), caches=caches)
        logits_TV: FloatArray = self._model.logits(hidden_BTD if every else hidden_BTD[:, -1:])[0].cpu().numpy()
        return logits_TV

    def _step(self, tokens: Sequence[int], sequences: list[int]) -> FloatArray:
        each = zip(tokens, sequences, strict=True)
        return torch.cat([torch.from_numpy(self._feed([token], place, every=False)) for token, place in each]).numpy()

    def _with_room(self, sequence: int, tokens: int) -> list[KVCache]:
        """The sequence's caches, which hold what it holds, with room for more."""
        length, caches = self.lengths[sequence], self._caches[sequence]
        if length + tokens > caches[0].keys.size(2):
            room = min(self.context, max(SMALLEST, length + tokens, 2 * length))
            grown = self._model.new_caches(1, room)
            for new, old in zip(grown, caches, strict=True):
                new.append(old.keys[:, :, :length], old.values[:, :, :length])
            caches = self._caches[sequence] = grown
        for cache in caches:
            cache.length = length
        return caches
