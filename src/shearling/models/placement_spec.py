"""The options of placements: where a sublayer's norm stands. One class a kind. Imports no torch.

In the equations F is a sublayer (attention or feed-forward), N a norm, x the residual stream, L the number of blocks,
l a block's number from 1.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shearling.config import CHOICE, CustomSpec, Spec


class _PlacementSpec(Spec):
    """What every placement can have."""

    residual_warmup: int | None = Field(
        None, gt=0, description="ProRes (arXiv 2603.05369): branches grow from 0 as min(step / (this · l), 1); null: no"
    )


class PreSpec(_PlacementSpec):
    """x ← x + F(N(x)) (arXiv 2002.04745)."""

    kind: Literal["pre"] = "pre"


class PostSpec(_PlacementSpec):
    """x ← N(x + F(x)) (arXiv 1706.03762)."""

    kind: Literal["post"] = "post"


class SandwichSpec(_PlacementSpec):
    """x ← x + N₂(F(N₁(x))) (arXiv 2105.13290); with `embedding_norm: true` Peri-LN (arXiv 2502.02732)."""

    kind: Literal["sandwich"] = "sandwich"


class ReorderedSpec(_PlacementSpec):
    """x ← x + N(F(x)): OLMo 2's (arXiv 2501.00656), which has `qk_norm` too."""

    kind: Literal["reordered"] = "reordered"


class DeepNormSpec(_PlacementSpec):
    """x ← N(α·x + F(x)), α = (2L)^¼; Xavier's weights of v, o and feed-forward × β = (8L)^−¼ (arXiv 2203.00555)."""

    kind: Literal["deepnorm"] = "deepnorm"
    alpha: float | None = Field(None, gt=0, description="in place of (2L)^¼")
    beta: float | None = Field(None, gt=0, description="in place of (8L)^−¼")


class ResiDualSpec(_PlacementSpec):
    """Two streams: x ← N(x + F(x)), r ← r + s·F(x), r at first s·x; at the end x + N(r) (arXiv 2304.14802)."""

    kind: Literal["residual"] = "residual"
    scale: float = Field(1.0, gt=0, description="s; 0.1 keeps r in range in fp16")


class MixLNSpec(_PlacementSpec):
    """Post-LN in the first ⌊share · L⌋ blocks, Pre-LN in the others (arXiv 2412.13795)."""

    kind: Literal["mix"] = "mix"
    share: float = Field(0.25, ge=0, le=1, description="of the blocks, from the first, that are Post-LN")


class LNSSpec(_PlacementSpec):
    """LayerNorm Scaling: x ← x + F(N(x) / √l); plain initialization of o and down (arXiv 2502.05795)."""

    kind: Literal["lns"] = "lns"


class LNSGainSpec(_PlacementSpec):
    """x ← x + F(N(x)), each norm's gain at first 1/√l and learned from there: LNS as GPAS has it (arXiv 2506.22049)."""

    kind: Literal["lns_gain"] = "lns_gain"


class HybridNormSpec(_PlacementSpec):
    """x ← x + F(x) with normed queries, keys, values; then y = N(x), x ← y + F(y) (arXiv 2503.04598)."""

    kind: Literal["hybrid"] = "hybrid"
    star: bool = Field(
        False, description="HybridNorm*: the first block norms before attention too, and its FFN is Pre-LN"
    )


class SubLNSpec(_PlacementSpec):
    """Pre-LN with a norm before each output projection; Xavier's weights × √(ln 2L) (arXiv 2210.06423)."""

    kind: Literal["subln"] = "subln"


class KeelSpec(_PlacementSpec):
    """x ← N₂(α·x + F(N₁(x))), α = 2L, the number of sublayers (arXiv 2601.19895)."""

    kind: Literal["keel"] = "keel"
    alpha: float | None = Field(None, gt=0, description="in place of the number of sublayers")


class NormFormerSpec(_PlacementSpec):
    """Pre-LN, a norm after attention, a gain on each head, a norm on the hidden values (arXiv 2110.09456)."""

    kind: Literal["normformer"] = "normformer"


class SkipInitSpec(_PlacementSpec):
    """x ← x + λ·F(N(x)), a scalar λ in each sublayer (arXiv 2002.10444); the paper's has `norm: {kind: none}`."""

    kind: Literal["skipinit"] = "skipinit"
    init: float = Field(0.0, description="λ at first")


class ReZeroSpec(_PlacementSpec):
    """x ← x + λ·F(N(x)), λ at first 0 and one for both sublayers (arXiv 2003.04887); the paper's has no norm."""

    kind: Literal["rezero"] = "rezero"


class LayerScaleSpec(_PlacementSpec):
    """x ← x + λ ⊙ F(N(x)), λ a small vector (arXiv 2103.17239)."""

    kind: Literal["layerscale"] = "layerscale"
    init: float = Field(0.1, description="λ at first")


class NGPTSpec(_PlacementSpec):
    """The normalized transformer: all of it on a hypersphere, x ← n(x + λ·(n(F(x)) − x)) (arXiv 2410.01131)."""

    kind: Literal["ngpt"] = "ngpt"
    init: float = Field(0.05, gt=0, description="λ at first")

    @model_validator(mode="after")
    def _no_warmup(self) -> "NGPTSpec":
        if self.residual_warmup is not None:
            raise ValueError("residual_warmup has no effect where branches are normed to unit length: set it to null")
        return self


class GPASSpec(_PlacementSpec):
    """Pre-LN, then x ← x − silu(a)·stopgrad(x), a scalar a at first 0 in each block (arXiv 2506.22049)."""

    kind: Literal["gpas"] = "gpas"


class CustomPlacementSpec(_PlacementSpec, CustomSpec):
    """A placement of the user's own: a subclass of shearling's Placement, in a module that Python finds."""


PlacementSpec = Annotated[
    PreSpec
    | PostSpec
    | SandwichSpec
    | ReorderedSpec
    | DeepNormSpec
    | ResiDualSpec
    | MixLNSpec
    | LNSSpec
    | LNSGainSpec
    | HybridNormSpec
    | SubLNSpec
    | KeelSpec
    | NormFormerSpec
    | SkipInitSpec
    | ReZeroSpec
    | LayerScaleSpec
    | NGPTSpec
    | GPASSpec
    | CustomPlacementSpec,
    CHOICE,
]
