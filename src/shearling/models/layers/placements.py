"""Every kind of placement, each a few lines: the norms it has, and `update`, which reads like its equation.

F is the sublayer, N its norm, x the residual stream, L the number of blocks, l a block's number from 1.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize, silu

from shearling.errors import UserError
from shearling.models.custom import construct, load_class
from shearling.models.layers.normalization import unit
from shearling.models.layers.placement import Branch, Placement, Where
from shearling.models.placement_spec import CustomPlacementSpec, PlacementSpec
from shearling.models.spec import ModelSpec


class PreNorm(Placement):
    """x ← x + F(N(x)) (arXiv 2002.04745)."""

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return x_BTD + F(self.norm(x_BTD))


class PostNorm(Placement):
    """x ← N(x + F(x)) (arXiv 1706.03762)."""

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return self.norm(x_BTD + F(x_BTD))


class Sandwich(Placement):
    """x ← x + N₂(F(N₁(x))) (arXiv 2105.13290, 2502.02732)."""

    norms = ("norm", "post_norm")

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return x_BTD + F(self.norm(x_BTD), then=self.post_norm)


class Reordered(Placement):
    """x ← x + N(F(x)) (arXiv 2501.00656)."""

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return x_BTD + F(x_BTD, then=self.norm)


class DeepNorm(Placement):
    """x ← N(α·x + F(x)), α = (2L)^¼; v, o and feed-forward are Xavier's × β = (8L)^−¼ at first (arXiv 2203.00555)."""

    def __init__(self, spec: ModelSpec, where: Where, sibling: Placement | None = None) -> None:
        super().__init__(spec, where, sibling)
        options: Any = spec.placement
        self.alpha = options.alpha or (2 * where.n_layers) ** 0.25
        self.beta = options.beta or (8 * where.n_layers) ** -0.25

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return self.norm(self.alpha * x_BTD + F(x_BTD))

    def initial_std(self, name: str, fan_in: int, fan_out: int) -> float | None:
        return (1.0 if name in ("q_proj", "k_proj") else self.beta) * _xavier(fan_in, fan_out)


class ResiDual(Placement):
    """x ← N(x + F(x)), r ← r + s·F(x); at the end x + N(r) (arXiv 2304.14802). The stream is (2, B, T, D): x and r."""

    def __init__(self, spec: ModelSpec, where: Where, sibling: Placement | None = None) -> None:
        super().__init__(spec, where, sibling)
        options: Any = spec.placement
        self.scale = options.scale

    def enter(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return torch.stack((x_BTD, self.scale * x_BTD))

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        x, r = x_BTD
        y = F(x)
        return torch.stack((self.norm(x + y), r + self.scale * y))

    def leave(self, x_BTD: torch.Tensor, final_norm: nn.Module) -> torch.Tensor:
        x, r = x_BTD
        return x + final_norm(r)


class MixLN(Placement):
    """Post-LN in the first ⌊share·L⌋ blocks, Pre-LN in the others (arXiv 2412.13795)."""

    @classmethod
    def of(cls, options: Any, where: Where) -> type[Placement]:
        n_post = math.floor(options.share * where.n_layers + 1e-9)  # 0.58 · 50 is 28.999… in floating point
        return PostNorm if where.layer <= n_post else PreNorm


class LayerNormScaling(Placement):
    """x ← x + F(N(x) / √l) (arXiv 2502.05795)."""

    def __init__(self, spec: ModelSpec, where: Where, sibling: Placement | None = None) -> None:
        super().__init__(spec, where, sibling)
        self.factor = where.layer**-0.5

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return x_BTD + F(self.factor * self.norm(x_BTD))


class ScaledGain(PreNorm):
    """Pre-LN, each gain at first 1/√l (arXiv 2506.22049)."""

    def __init__(self, spec: ModelSpec, where: Where, sibling: Placement | None = None) -> None:
        super().__init__(spec, where, sibling)
        scale_gain(self.norm, where.layer**-0.5)


class HybridAttention(Placement):
    """x ← x + F(x), with normed queries, keys and values inside (arXiv 2503.04598)."""

    norms = ()
    inside = frozenset({"qkv_norm"})

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return x_BTD + F(x_BTD)


class HybridFirstAttention(PreNorm):
    """HybridNorm*'s first attention: normed before, too (arXiv 2503.04598)."""

    inside = frozenset({"qkv_norm"})


class HybridFeedForward(Placement):
    """y = N(x), x ← y + F(y) (arXiv 2503.04598)."""

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        y_BTD = self.norm(x_BTD)
        return y_BTD + F(y_BTD)


class HybridNorm(Placement):
    """Norms of queries, keys and values in attention, Post-LN's norm before the feed-forward (arXiv 2503.04598)."""

    @classmethod
    def of(cls, options: Any, where: Where) -> type[Placement]:
        first = options.star and where.layer == 1
        if where.part == "attention":
            return HybridFirstAttention if first else HybridAttention
        return PreNorm if first else HybridFeedForward


class SubLN(PreNorm):
    """Pre-LN with a norm before each output projection; Xavier's weights × √(ln 2L) (arXiv 2210.06423)."""

    inside = frozenset({"output_norm", "hidden_norm"})

    def __init__(self, spec: ModelSpec, where: Where, sibling: Placement | None = None) -> None:
        super().__init__(spec, where, sibling)
        self.gain = math.sqrt(math.log(2 * where.n_layers))

    def initial_std(self, name: str, fan_in: int, fan_out: int) -> float | None:
        return (1.0 if name in ("q_proj", "k_proj") else self.gain) * _xavier(fan_in, fan_out)


class Keel(Placement):
    """x ← N₂(α·x + F(N₁(x))), α the number of sublayers (arXiv 2601.19895)."""

    norms = ("norm", "post_norm")

    def __init__(self, spec: ModelSpec, where: Where, sibling: Placement | None = None) -> None:
        super().__init__(spec, where, sibling)
        options: Any = spec.placement
        self.alpha = options.alpha or float(2 * where.n_layers)

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return self.post_norm(self.alpha * x_BTD + F(self.norm(x_BTD)))


class NormFormerAttention(Sandwich):
    """x ← x + N₂(F(N₁(x))), each head with a gain (arXiv 2110.09456)."""

    inside = frozenset({"head_scale"})


class NormFormer(PreNorm):
    """Pre-LN; after attention a norm and a gain a head, and a norm on the hidden values (arXiv 2110.09456)."""

    inside = frozenset({"hidden_norm"})

    @classmethod
    def of(cls, options: Any, where: Where) -> type[Placement]:
        return NormFormerAttention if where.part == "attention" else NormFormer


class Scaled(Placement):
    """x ← x + λ·F(N(x)): with a scalar λ SkipInit (arXiv 2002.10444), with a vector LayerScale (arXiv 2103.17239)."""

    def __init__(self, spec: ModelSpec, where: Where, sibling: Placement | None = None) -> None:
        super().__init__(spec, where, sibling)
        options: Any = spec.placement
        shape = (spec.d_model,) if options.kind == "layerscale" else ()
        self.scale = nn.Parameter(torch.full(shape, options.init))

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return x_BTD + self.scale * F(self.norm(x_BTD))


class ReZero(Placement):
    """x ← x + λ·F(N(x)), λ at first 0 and one for both sublayers (arXiv 2003.04887)."""

    def __init__(self, spec: ModelSpec, where: Where, sibling: Placement | None = None) -> None:
        super().__init__(spec, where, sibling)
        self.scale: nn.Parameter = sibling.scale if isinstance(sibling, ReZero) else nn.Parameter(torch.zeros(()))

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return x_BTD + self.scale * F(self.norm(x_BTD))


class NGPT(Placement):
    """x ← n(x + λ ⊙ (n(F(x)) − x)), n to unit length; all matrices' D-vectors have unit length (arXiv 2410.01131)."""

    norms = ()
    inside = frozenset({"unit"})
    spherical = True

    def __init__(self, spec: ModelSpec, where: Where, sibling: Placement | None = None) -> None:
        super().__init__(spec, where, sibling)
        options: Any = spec.placement
        self.std = stored = spec.d_model**-0.5
        self.factor = options.init / stored
        self.rate = nn.Parameter(torch.full((spec.d_model,), stored))

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        return unit(x_BTD + (self.factor * self.rate).abs() * (unit(F(x_BTD).float()) - x_BTD))

    def enter(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return unit(x_BTD)

    def initial_std(self, name: str, fan_in: int, fan_out: int) -> float | None:
        return self.std

    @torch.no_grad()
    def constrain(self) -> None:
        for name, module in self.branch.named_children():
            if isinstance(module, nn.Linear):
                along = 0 if name in ("o_proj", "down_proj") else 1
                module.weight.copy_(normalize(module.weight, dim=along))


class GPAS(Placement):
    """x ← h − silu(a)·stopgrad(h), h = x + F(N(x)), one scalar a, at first 0, for both sublayers (arXiv 2506.22049)."""

    def __init__(self, spec: ModelSpec, where: Where, sibling: Placement | None = None) -> None:
        super().__init__(spec, where, sibling)
        self.gate: nn.Parameter = sibling.gate if isinstance(sibling, GPAS) else nn.Parameter(torch.zeros(()))

    def update(self, x_BTD: torch.Tensor, F: Branch) -> torch.Tensor:
        h_BTD = x_BTD + F(self.norm(x_BTD))
        return h_BTD - silu(self.gate) * h_BTD.detach()


PLACEMENTS: dict[str, type[Placement]] = {
    "pre": PreNorm,
    "post": PostNorm,
    "sandwich": Sandwich,
    "reordered": Reordered,
    "deepnorm": DeepNorm,
    "residual": ResiDual,
    "mix": MixLN,
    "lns": LayerNormScaling,
    "lns_gain": ScaledGain,
    "hybrid": HybridNorm,
    "subln": SubLN,
    "keel": Keel,
    "normformer": NormFormer,
    "skipinit": Scaled,
    "rezero": ReZero,
    "layerscale": Scaled,
    "ngpt": NGPT,
    "gpas": GPAS,
}


def place(spec: ModelSpec, where: Where, sibling: Placement | None = None) -> Placement:
    """One sublayer on the residual stream, with its norms where `spec.placement` puts them.

    Raises:
        UserError: a user's own class is not found, or does not take its options.
    """
    made = placement_class(spec.placement).of(spec.placement, where)
    if isinstance(spec.placement, CustomPlacementSpec):
        return construct(made, "model.placement", spec, where, sibling, **spec.placement.options)
    return made(spec, where, sibling)


def placement_class(options: PlacementSpec) -> type[Placement]:
    """The class that a placement's kind names, a user's own included."""
    if isinstance(options, CustomPlacementSpec):
        return load_class(options.kind, Placement, "model.placement")
    return PLACEMENTS[options.kind]


def scale_gain(norm: nn.Module, factor: float) -> None:
    """Multiply a norm's initial gain by `factor`.

    Raises:
        UserError: the norm has no gain.
    """
    gain = getattr(norm, "weight", None)
    if gain is None:
        raise UserError("model.placement.kind: lns_gain scales the norms' gains, and this norm has none: use lns")
    with torch.no_grad():
        gain.mul_(factor)


def _xavier(fan_in: int, fan_out: int) -> float:
    """Standard deviation of Xavier's normal distribution (Glorot and Bengio, 2010)."""
    return math.sqrt(2 / (fan_in + fan_out))
