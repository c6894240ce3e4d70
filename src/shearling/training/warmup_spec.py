"""The options of a warm-up on random data before training: one class a kind. Imports no torch.

What each kind is and what a sound test of it needs: docs/warmup.md.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from shearling.config import CHOICE, Spec


class _WarmupSpec(Spec):
    """What every kind has."""

    shifted: ClassVar[bool] = False
    """Whether each position predicts the token after it, which only a model that reads from left to right can learn."""

    steps: int = Field(gt=0, le=10**9, description="optimizer steps of the phase; the horizon does not count them")
    learning_rate: float = Field(1e-3, gt=0, description="of the phase, constant")
    warmup_steps: int = Field(0, ge=0, description="steps of the phase from zero to that learning rate")
    optimizer_state: Literal["reset", "carry"] = Field(
        "reset", description="reset: training begins with a new optimizer; carry: with the phase's moments"
    )
    schedule: Literal["fresh", "continue"] = Field(
        "fresh",
        description="fresh: training's learning rate warms up from its step 0; continue: the phase's steps count as "
        "the first ones of that warm-up",
    )
    keep: Literal["weights", "moments"] = Field(
        "weights",
        description="what the phase leaves behind: weights: all; moments: each tensor's mean and standard deviation, "
        "its values being drawn anew (arXiv 2206.10139)",
    )

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> "_WarmupSpec":
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} leaves nothing of the phase's {self.steps} steps: lower it"
            )
        return self

    @model_validator(mode="after")
    def _moments_have_no_history(self) -> "_WarmupSpec":
        if self.keep == "moments" and self.optimizer_state == "carry":
            raise ValueError("keep moments draws other weights than the optimizer knows: set optimizer_state: reset")
        return self


class IIDShiftedSpec(_WarmupSpec):
    """Independent uniform tokens, each predicting the next."""

    shifted: ClassVar[bool] = True
    kind: Literal["iid_shifted"] = "iid_shifted"


class IIDUnpairedSpec(_WarmupSpec):
    """Independent uniform tokens, independent uniform targets (after arXiv 2412.17411)."""

    kind: Literal["iid_unpaired"] = "iid_unpaired"


class GaussianSpec(_WarmupSpec):
    """Gaussian vectors in place of embeddings, independent uniform targets (arXiv 2412.17411)."""

    kind: Literal["gaussian"] = "gaussian"
    std: float = Field(1.0, gt=0, description="standard deviation of the vectors' values")


class RandomLabelsSpec(_WarmupSpec):
    """Real text, independent uniform targets (after arXiv 2006.10455)."""

    kind: Literal["random_labels"] = "random_labels"


class UnigramSpec(_WarmupSpec):
    """Independent tokens as frequent as in the training text, each predicting the next."""

    shifted: ClassVar[bool] = True
    kind: Literal["unigram"] = "unigram"


class ShuffledSpec(_WarmupSpec):
    """Real sequences, the tokens of each in random order, each predicting the next."""

    shifted: ClassVar[bool] = True
    kind: Literal["shuffled"] = "shuffled"


class DyckSpec(_WarmupSpec):
    """k-Shuffle Dyck: interleaved brackets of k kinds, each predicting the next (arXiv 2502.19249)."""

    shifted: ClassVar[bool] = True
    kind: Literal["dyck"] = "dyck"
    k: int = Field(64, gt=0, description="kinds of brackets; they take the first 2k tokens of the vocabulary")
    p_open: float = Field(0.5, gt=0, lt=1, description="probability that a bracket opens")
    max_depth: int = Field(16, gt=0, description="brackets open at a time, at most")


class RealSpec(_WarmupSpec):
    """Real text with the run's own objective: the control that tells noise from more training."""

    kind: Literal["real"] = "real"


RandomWarmupSpec = Annotated[
    IIDShiftedSpec
    | IIDUnpairedSpec
    | GaussianSpec
    | RandomLabelsSpec
    | UnigramSpec
    | ShuffledSpec
    | DyckSpec
    | RealSpec,
    CHOICE,
]
