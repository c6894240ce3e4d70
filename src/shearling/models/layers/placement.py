"""What a placement is: how a sublayer F, its norms and the residual stream x are joined. The kinds: `placements`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn.functional import dropout

from shearling.errors import UserError
from shearling.models.layers.attention import Attention, Context
from shearling.models.layers.feedforward import build_feedforward
from shearling.models.layers.normalization import build_norm
from shearling.models.spec import ModelSpec

Branch = Callable[..., torch.Tensor]
"""F(h), or N(F(h)) as F(h, then=N): what a residual warm-up scales is the branch with the norm behind it."""


@dataclass(frozen=True)
class Where:
    """Which sublayer of a model: block `layer` of `n_layers`, from 1, and which of its two parts."""

    layer: int
    n_layers: int
    part: Literal["attention", "feedforward"]


class Placement(nn.Module):
    """One sublayer on the residual stream. The stream (B, T, D) is fp32; the branch computes in the context's dtype.

    Args:
        sibling: the block's other placement, made before, for what both share.

    Attributes:
        norms: names of the norms to make. They stand in `update` as self.norm, self.post_norm, …
        inside: what to put into the branches; see Attention and FeedForward.
        spherical: whether the embedding's and head's rows have unit length, and the logits a gain (nGPT).
    """

    norms: ClassVar[tuple[str, ...]] = ("norm",)
    inside: ClassVar[frozenset[str]] = frozenset()
    spherical: ClassVar[bool] = False
    norm: nn.Module
    post_norm: nn.Module

    def __init__(self, spec: ModelSpec, where: Where, sibling: "Placement | None" = None) -> None:
        super().__init__()
        for name in self.norms:
            setattr(self, name, build_norm(spec.norm, spec.d_model))
        self.branch = (
            Attention(spec, where.layer - 1, self.inside)
            if where.part == "attention"
            else build_feedforward(spec, self.inside)
        )
        self.dropout = spec.dropout
        warmup = spec.placement.residual_warmup
        self.grown_at = float(warmup * where.layer) if warmup else None  # as integers torch.compile takes for constants

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        """The stream after this sublayer."""
        raise NotImplementedError

    def forward(self, x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
        called = False

        def branch(h_BTD: torch.Tensor, then: nn.Module | None = None) -> torch.Tensor:
            nonlocal called
            if called:  # costs are counted, and keys and values kept, for one call
                raise UserError(f"model.placement: {type(self).__name__}.update calls F twice: one call is all it has")
            called = True
            y_BTD = dropout(self.branch(h_BTD.to(context.dtype), context), self.dropout, self.training)
            if then is not None:
                y_BTD = then(y_BTD)
            if self.grown_at is not None and context.step is not None:
                y_BTD = (context.step / self.grown_at).clamp(max=1) * y_BTD
            return y_BTD

        return self.update(x_BTD, branch)

    def enter(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """The stream that the first block gets, from embeddings."""
        return x_BTD

    def leave(self, x_BTD: torch.Tensor, final_norm: nn.Module) -> torch.Tensor:
        """What the head gets, from the stream after the last block."""
        return final_norm(x_BTD)

    @classmethod
    def of(cls, options: Any, where: Where) -> "type[Placement]":
        """The class to make for one sublayer; kinds that mix several give others than themselves."""
        return cls

    def initial_std(self, name: str, fan_in: int, fan_out: int) -> float | None:
        """Standard deviation of a matrix of the branch (`q_proj`, …) where the placement has its own, else None."""
        return None

    def constrain(self) -> None:
        """Bring the weights back to where they must be, after initialization and after each optimizer step."""
