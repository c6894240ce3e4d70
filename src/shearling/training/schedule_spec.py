"""The options of learning-rate schedules. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from shearling.config import Choice, Spec

CoolDown = Literal["linear", "cosine", "sqrt", "square"]


class ScheduleSpec(Spec):
    """What all schedules have: a linear warm-up over optimizer steps."""

    warmup_steps: int = Field(100, ge=0, description="optimizer steps from zero to the peak")

    @property
    def stable_share(self) -> float | None:
        """Share of the horizon after which the rate depends on where the horizon is; None: it does from the start."""
        return None


class CosineSpec(ScheduleSpec):
    """Linear warm-up, then half a cosine from the peak to a floor (arXiv 1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    min_ratio: float = Field(0.1, ge=0, le=1, description="floor of the learning rate, as a share of its peak")


class LinearSpec(ScheduleSpec):
    """Linear warm-up, then a straight line from the peak to a floor (to zero: arXiv 2502.15938)."""

    kind: Literal["linear"]
    min_ratio: float = Field(0.0, ge=0, le=1, description="floor of the learning rate, as a share of its peak")


class ConstantSpec(ScheduleSpec):
    """Linear warm-up, then the peak."""

    kind: Literal["constant"]

    @property
    def stable_share(self) -> float:
        """The whole."""
        return 1.0


class WSDSpec(ScheduleSpec):
    """Warm-up, stable, decay: the peak, and a cool-down at the end (arXiv 2404.06395); if linear, a trapezoid."""

    kind: Literal["wsd"]
    cooldown: float = Field(0.2, gt=0, le=1, description="share of the horizon that cools down")
    shape: CoolDown = Field(
        "sqrt", description="1 − u, (1 + cos πu) / 2, 1 − √u (arXiv 2405.18392) or (1 − u)², of its share u"
    )
    min_ratio: float = Field(0.0, ge=0, le=1, description="floor of the learning rate, as a share of its peak")

    @property
    def stable_share(self) -> float:
        """All before the cool-down."""
        return 1 - self.cooldown


class InverseSqrtSpec(ScheduleSpec):
    """√(τ / (τ + n)) at step n after warm-up: it knows no horizon, but for its cool-down (arXiv 2106.04560)."""

    kind: Literal["inverse_sqrt"]
    timescale: int = Field(1000, gt=0, description="τ: the rate has fallen to a half after three times as many steps")
    cooldown: float = Field(0.0, ge=0, le=1, description="share of the horizon that cools down to zero in a line")

    @property
    def stable_share(self) -> float:
        """All before the cool-down."""
        return 1 - self.cooldown


AnyScheduleSpec = Annotated[
    CosineSpec | LinearSpec | ConstantSpec | WSDSpec | InverseSqrtSpec,
    Choice(usual="cosine"),
]
