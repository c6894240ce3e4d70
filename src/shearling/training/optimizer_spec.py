"""The options of optimizers. Imports no torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from shearling.config import Choice, Spec

Betas = tuple[float, float]


class Rates(Spec):
    """Factors of the learning rate by what a parameter is for; see `shearling.models.roles`."""

    embedding: float = Field(1.0, ge=0, description="token and position tables")
    head: float = Field(1.0, ge=0, description="an untied head")
    matrix: float = Field(1.0, ge=0, description="projections of the blocks")
    vector: float = Field(1.0, ge=0, description="gains, biases, gates")


class OptimizerSpec(Spec):
    """What all optimizers have. Decay is decoupled: it shrinks weights by the rate times `weight_decay`, and acts on
    matrices and tables only."""

    moments: ClassVar[int]
    """fp32 values that it keeps for each parameter, at most; see `Memory`."""

    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.1, ge=0, description="decoupled decay of matrices; norms and biases have none")
    weight_decay_end: float = Field(
        1.0, ge=0, description="factor of the weight decay at the horizon, come to in a straight line; 0: it fades out"
    )
    cautious_decay: bool = Field(
        False, description="decay only what the update shrinks as well (cautious weight decay, arXiv 2510.12402)"
    )
    rates: Rates = Field(default_factory=Rates, description="factors of the learning rate by role")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate from each block to the one below (arXiv 2003.10555)"
    )

    @model_validator(mode="after")
    def _betas_in_range(self) -> "OptimizerSpec":
        for name in ("betas", "betas_of_others"):
            betas = getattr(self, name, ())
            if not all(0 <= beta < 1 for beta in betas):
                raise ValueError(f"{name} {list(betas)} must lie in [0, 1)")
        return self


class AdamWSpec(OptimizerSpec):
    """AdamW (arXiv 1711.05101)."""

    moments: ClassVar[int] = 2
    kind: Literal["adamw"] = "adamw"
    betas: Betas = Field((0.9, 0.95), description="decay of the first and second moment")
    eps: float = Field(1e-8, ge=1e-30, description="added to the root of the second moment")


class AdamSpec(OptimizerSpec):
    """Adam (arXiv 1412.6980): the decay, if any, is added to the gradient."""

    moments: ClassVar[int] = 2
    kind: Literal["adam"]
    betas: Betas = Field((0.9, 0.95), description="decay of the first and second moment")
    eps: float = Field(1e-8, ge=1e-30, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="times the weight, added to the gradient of matrices")


class SGDSpec(OptimizerSpec):
    """Gradient descent with momentum; the decay, if any, is added to the gradient."""

    moments: ClassVar[int] = 1
    kind: Literal["sgd"]
    momentum: float = Field(0.9, ge=0, lt=1, description="decay of the velocity")
    nesterov: bool = Field(True, description="look ahead along the velocity")
    weight_decay: float = Field(0.0, ge=0, description="times the weight, added to the gradient of matrices")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "SGDSpec":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the velocity, which momentum 0 does not have: set it false")
        return self


class AdafactorSpec(OptimizerSpec):
    """Adafactor (arXiv 1804.04235), PyTorch's: second moments of rows and columns alone."""

    moments: ClassVar[int] = 0
    kind: Literal["adafactor"]
    learning_rate: float = Field(1e-2, gt=0, description="peak of the relative step")
    beta2_decay: float = Field(-0.8, lt=0, description="exponent by which the second moment's memory grows")
    update_clip: float = Field(1.0, gt=0, description="largest root mean square of an update")


class MuonSpec(OptimizerSpec):
    """Muon (Jordan et al. 2024) for the blocks' matrices: the nearest orthogonal matrix to the momentum, by
    Newton and Schulz. All else has AdamW."""

    moments: ClassVar[int] = 2
    kind: Literal["muon"]
    learning_rate: float = Field(0.02, gt=0, description="peak learning rate of matrices")
    momentum: float = Field(0.95, ge=0, lt=1, description="decay of the momentum")
    nesterov: bool = Field(True, description="look ahead along the momentum")
    ns_steps: int = Field(5, gt=0, le=20, description="Newton-Schulz iterations")
    iteration: Literal["quintic", "polar_express"] = Field(
        "quintic", description="their coefficients: Jordan's, or those of arXiv 2505.16932, nearer to orthogonal"
    )
    adjust: Literal["original", "match_rms_adamw"] = Field(
        "original", description="scale of updates: √max(1, rows / columns), or 0.2 · √max(rows, columns)"
    )
    rate_of_others: float = Field(1e-3, gt=0, description="AdamW's peak learning rate, before `rates`")
    betas_of_others: Betas = Field((0.9, 0.95), description="AdamW's")
    eps_of_others: float = Field(1e-8, ge=1e-30, description="AdamW's")


class SophiaSpec(OptimizerSpec):
    """Sophia-G (arXiv 2305.14342, algorithm 3): momentum over a diagonal of the Gauss-Newton matrix, clipped. The model
    draws labels for its estimate itself."""

    moments: ClassVar[int] = 2
    kind: Literal["sophia"]
    betas: Betas = Field((0.965, 0.99), description="decay of the momentum and of the curvature")
    rho: float = Field(0.04, gt=0, description="γ of the paper, rho of its code: larger clips less")
    eps: float = Field(1e-12, gt=0, description="least curvature, times rho, that is divided by")
    every: int = Field(10, gt=0, description="steps between estimates of the curvature")


class LionSpec(OptimizerSpec):
    """Lion (arXiv 2302.06675), pytorch-optimizer's."""

    moments: ClassVar[int] = 1
    kind: Literal["lion"]
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate; a third to a tenth of AdamW's")
    betas: Betas = Field((0.95, 0.98), description="of the update's and of the kept momentum")
    weight_decay: float = Field(1.0, ge=0, description="decoupled decay of matrices; three to ten times AdamW's")


class SOAPSpec(OptimizerSpec):
    """SOAP (arXiv 2409.11321), pytorch-optimizer's: Adam in the eigenbasis of Shampoo. The first step only measures."""

    moments: ClassVar[int] = 6
    kind: Literal["soap"]
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate")
    betas: Betas = Field((0.95, 0.95), description="decay of the first and second moment")
    eps: float = Field(1e-8, ge=1e-30, description="added to the root of the second moment")
    every: int = Field(10, gt=0, description="steps between new eigenbases")
    largest: int = Field(10_000, gt=0, description="sides longer than this have no eigenbasis")


class AdEMAMixSpec(OptimizerSpec):
    """AdEMAMix (arXiv 2409.03137), pytorch-optimizer's: a fast and a slow momentum."""

    moments: ClassVar[int] = 3
    kind: Literal["ademamix"]
    betas: tuple[float, float, float] = Field((0.9, 0.999, 0.9999), description="fast, second moment, slow")
    alpha: float = Field(5.0, ge=0, description="weight of the slow momentum")
    growth: int | None = Field(None, gt=0, description="steps over which the slow momentum comes in; null: at once")
    eps: float = Field(1e-8, ge=1e-30, description="added to the root of the second moment")


class MARSSpec(OptimizerSpec):
    """MARS-AdamW (arXiv 2411.10438), pytorch-optimizer's: AdamW on gradients whose variance is reduced by the last."""

    moments: ClassVar[int] = 3
    kind: Literal["mars"]
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate of matrices and tables")
    betas: Betas = Field((0.95, 0.99), description="decay of the first and second moment")
    gamma: float = Field(0.025, ge=0, description="strength of the correction")
    eps: float = Field(1e-8, ge=1e-30, description="added to the root of the second moment")


class ADOPTSpec(OptimizerSpec):
    """ADOPT (arXiv 2411.02853), pytorch-optimizer's. The first step only measures."""

    moments: ClassVar[int] = 2
    kind: Literal["adopt"]
    betas: Betas = Field((0.9, 0.9999), description="decay of the first and second moment")
    eps: float = Field(1e-6, ge=1e-30, description="least root of the second moment")


class ScheduleFreeSpec(OptimizerSpec):
    """Schedule-Free AdamW (arXiv 2405.15682), pytorch-optimizer's: evaluated and saved at an average of its weights."""

    moments: ClassVar[int] = 2
    kind: Literal["schedule_free"]
    learning_rate: float = Field(2.5e-3, gt=0, description="learning rate; take schedule.kind constant with it")
    betas: Betas = Field((0.9, 0.999), description="of the interpolation, and decay of the second moment")
    eps: float = Field(1e-8, ge=1e-30, description="added to the root of the second moment")

    @model_validator(mode="after")
    def _interpolates(self) -> "ScheduleFreeSpec":
        if not self.betas[0]:
            raise ValueError("betas: the first must be above 0: the average is found through it")
        return self


AnyOptimizerSpec = Annotated[
    AdamWSpec | AdamSpec | SGDSpec | AdafactorSpec | MuonSpec | SophiaSpec | LionSpec | SOAPSpec | AdEMAMixSpec
    | MARSSpec | ADOPTSpec | ScheduleFreeSpec,
    Choice(usual="adamw"),
]  # fmt: skip
