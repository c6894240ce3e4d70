"""The options of the diagnostics. Imports no torch."""

from typing import Literal, get_args

from pydantic import Field

from shearling.config import Spec

Name = Literal[
    "residual_variance",
    "angular_distance",
    "max_over_median",
    "kurtosis",
    "attention_entropy",
    "largest_attention_logit",
    "gradient_norm",
    "update_norm",
    "relative_update_norm",
    "layer_removal_loss",
    "log_z",
    "calibration_error",
    "loss_spike_score",
    "gradient_norm_spike_score",
]

ALL: tuple[Name, ...] = get_args(Name)
GROUPS: dict[str, tuple[Name, ...]] = {
    "all": ALL,
    "cheap": tuple(name for name in ALL if name != "layer_removal_loss"),
}
"""Names that stand for several. `cheap` is what one forward and one backward pass give together; leaving out layers
takes a forward pass for each."""


class DiagnosticsSpec(Spec):
    """What is measured beside the training, on the same sequences of the validation set each time."""

    every: int | None = Field(None, gt=0, description="steps between measurements, the last step too; null: none")
    names: tuple[Literal[Name, "cheap", "all"], ...] = Field(
        ("cheap",), min_length=1, description="what is measured: see docs/diagnostics.md; cheap: all but layer removal"
    )
    sequences: int = Field(8, gt=0, description="sequences of the validation set that are measured on")

    @property
    def measured(self) -> tuple[Name, ...]:
        """What `names` stand for, each once, in the order of ALL."""
        chosen = {each for name in self.names for each in GROUPS.get(name, (name,))}
        return tuple(name for name in ALL if name in chosen)
