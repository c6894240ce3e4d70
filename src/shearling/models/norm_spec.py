"""The options of norms: one class a kind. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from shearling.config import CHOICE, CustomSpec, Spec

Epsilon = Annotated[float, Field(gt=0, description="keeps the division away from zero")]


class RMSNormSpec(Spec):
    """Root-mean-square norm: g ⊙ x / sqrt(mean(x²) + eps) (arXiv 1910.07467)."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    eps: Epsilon = 1e-6


class PartialRMSNormSpec(Spec):
    """pRMSNorm: as RMSNorm, its mean square taken over the first p of all dimensions (arXiv 1910.07467, section 4)."""

    kind: Literal["prmsnorm"] = "prmsnorm"
    p: float = Field(0.0625, gt=0, le=1, description="share of the dimensions that the mean square is taken over")
    eps: Epsilon = 1e-6


class CRMSNormSpec(Spec):
    """Compressed RMSNorm: a zero-mean vector stored without its last coordinate, normed; no gain (arXiv 2305.14858)."""

    kind: Literal["crmsnorm"] = "crmsnorm"
    eps: Epsilon = 1e-6


class SimpleRMSNormSpec(Spec):
    """RMSNorm without a gain: sqrt(D) · x / max(‖x‖, eps) (arXiv 2307.14995)."""

    kind: Literal["simplermsnorm"] = "simplermsnorm"
    eps: Epsilon = 1e-12


class ScaleNormSpec(Spec):
    """g · x / max(‖x‖, eps) with one scalar g, sqrt(D) at first (arXiv 1910.05895)."""

    kind: Literal["scalenorm"] = "scalenorm"
    eps: Epsilon = 1e-5


class SSNormSpec(Spec):
    """Single-scale RMSNorm: s · x / sqrt(mean(x²) + eps) with one scalar s, 1 at first (arXiv 2506.19697)."""

    kind: Literal["ssnorm"] = "ssnorm"
    eps: Epsilon = 1e-6


class LayerNormSpec(Spec):
    """Layer norm: g ⊙ (x − mean(x)) / sqrt(var(x) + eps) + b (arXiv 1607.06450)."""

    kind: Literal["layernorm"] = "layernorm"
    eps: Epsilon = 1e-5
    bias: bool = Field(True, description="whether b is there")


class NonparametricLayerNormSpec(Spec):
    """Layer norm without g and b, as in OLMo 1 (arXiv 2402.00838)."""

    kind: Literal["nonparametric_layernorm"] = "nonparametric_layernorm"
    eps: Epsilon = 1e-5


class DyTSpec(Spec):
    """Dynamic tanh: g ⊙ tanh(α x) + b, in place of a norm (arXiv 2503.10622); LLaMA's form has no b."""

    kind: Literal["dyt"] = "dyt"
    alpha: float = Field(0.5, description="α at first")
    bias: bool = Field(False, description="whether b is there")


class DerfSpec(Spec):
    """Dynamic erf: g ⊙ erf(α x + s) + b, in place of a norm (arXiv 2512.10938)."""

    kind: Literal["derf"] = "derf"
    alpha: float = Field(0.5, description="α at first")
    shift: float = Field(0.0, description="s at first")


class NoNormSpec(Spec):
    """No norm: x."""

    kind: Literal["none"] = "none"


class CustomNormSpec(CustomSpec):
    """A norm of the user's own: a class made as MyNorm(dim, **options), from a module that Python finds."""


NormSpec = Annotated[
    RMSNormSpec
    | PartialRMSNormSpec
    | CRMSNormSpec
    | SimpleRMSNormSpec
    | ScaleNormSpec
    | SSNormSpec
    | LayerNormSpec
    | NonparametricLayerNormSpec
    | DyTSpec
    | DerfSpec
    | NoNormSpec
    | CustomNormSpec,
    CHOICE,
]
