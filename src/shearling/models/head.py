"""From hidden states to logits."""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Head(NamedTuple):
    """A model's last matrix, and the bound of its logits where it has one.

    Attributes:
        weight_VD: (V, D); (V, D + 1) where the head has a bias.
        softcap: c, where the logits are c · tanh(hidden · weightᵀ / c) (arXiv 2408.00118, section 2).
    """

    weight_VD: torch.Tensor
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (…, V) in fp32 of hidden states (…, D), the product in their dtype."""
        return self.capped(F.linear(hidden, self.weight_VD.to(hidden.dtype)).float())

    def capped(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of a plain product, brought below the bound."""
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
