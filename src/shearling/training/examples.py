"""What a step learns from: inputs, and the token that each position is to predict."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shearling.data.stream import Batch
from shearling.seeding import derive_seed
from shearling.training.spec import MaskedTokenSpec, NextTokenSpec, ObjectiveSpec

IGNORED = -1
"""Target of a position that predicts nothing."""

Draws = Callable[[int], np.random.Generator]
"""The generator of a batch's sequence, by its row."""


@dataclass(frozen=True)
class Examples:
    """Sequences with what they are to predict.

    Attributes:
        inputs: (S, T) int64 tokens, or (S, T, D) fp32 in place of their embeddings.
        targets: (S, T) int64; IGNORED where nothing is predicted.
        document_ids: (S, T) int64 where attention is to stay inside documents, else None.
    """

    inputs: np.ndarray
    targets: np.ndarray
    document_ids: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> "Examples":
        documents = None if self.document_ids is None else self.document_ids[rows]
        return Examples(self.inputs[rows], self.targets[rows], documents)

    @property
    def n_targets(self) -> int:
        """Positions that predict something."""
        return int((self.targets != IGNORED).sum())

    def states_and_targets(self, model: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (N, D) and targets (N,) of the positions that predict something, from one forward pass."""
        inputs, targets = (torch.from_numpy(part).to(device, non_blocking=True) for part in (self.inputs, self.targets))
        documents = None if self.document_ids is None else torch.from_numpy(self.document_ids).to(device)
        hidden = (model if inputs.ndim == 2 else model.hidden)(inputs, documents).flatten(0, 1)
        targets = targets.flatten()
        if self.n_targets == targets.numel():
            return hidden, targets
        predicting = targets != IGNORED
        return hidden[predicting], targets[predicting]


def make_examples(
    objective: ObjectiveSpec, batch: Batch, vocab_size: int, *seed: int | str, first_row: int = 0
) -> Examples:
    """The examples that an objective makes from a batch.

    Args:
        vocab_size: of the model.
        seed: parts of the seed of whatever is drawn; the same parts give the same draw.
        first_row: number of the batch's first sequence. A sequence's draw depends on its number, not on its batch.
    """
    return OBJECTIVES[objective.kind](
        objective, batch, vocab_size, lambda row: np.random.default_rng(derive_seed(*seed, first_row + row))
    )


def next_token(objective: NextTokenSpec, batch: Batch, vocab_size: int, draw_of: Draws) -> Examples:
    """Every position predicts the token after it."""
    return Examples(batch.tokens[:, :-1], batch.tokens[:, 1:], batch.document_ids)


def masked_token(objective: MaskedTokenSpec, batch: Batch, vocab_size: int, draw_of: Draws) -> Examples:
    """A share of the positions predict the token that stood there (arXiv 1810.04805, section 3.1).

    Of them 80 % read the mask token, 10 % a random one, 10 % the token itself. A sequence has at least one.
    """
    tokens = batch.tokens[:, :-1]
    mask_id = vocab_size - 1 if objective.mask_id is None else objective.mask_id
    inputs, targets = tokens.copy(), np.full_like(tokens, IGNORED)
    for row, (read, predicted) in enumerate(zip(inputs, targets, strict=True)):
        draw, length = draw_of(row), tokens.shape[1:]
        chosen = draw.random(length) < objective.share
        if not chosen.any():
            chosen[draw.integers(chosen.size)] = True
        lot, others = draw.random(length), draw.integers(0, vocab_size, length)
        predicted[chosen] = tokens[row, chosen]
        read[chosen & (lot < 0.8)] = mask_id
        read[chosen & (lot >= 0.9)] = others[chosen & (lot >= 0.9)]
    return Examples(inputs, targets, batch.document_ids)


OBJECTIVES: dict[str, Callable[[Any, Batch, int, Draws], Examples]] = {
    "next_token": next_token,
    "masked_token": masked_token,
}
