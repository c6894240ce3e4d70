"""Every diagnostic by its name: what to ask of a probe. One number, or one for each layer."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from shearling.training.diagnostics import definitions
from shearling.training.diagnostics.probe import Probe, layer_weights
from shearling.training.diagnostics.spec import Name

Value: TypeAlias = float | list[float]


def _of_outputs(definition: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Probe], Value]:
    """`definition` of the residual stream after each layer."""
    return lambda probe: [definition(x).item() for x in probe.forward.outputs]


def _of_update(
    definition: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor],
) -> Callable[[Probe], Value]:
    """`definition` of each layer's weights before and after the last step; not a number where there was none."""

    def measure(probe: Probe) -> Value:
        after = layer_weights(probe.model)
        if probe.before is None:
            return [float("nan")] * len(after)
        return [definition(*weights).item() for weights in zip(probe.before, after, strict=True)]

    return measure


def _angular_distance(probe: Probe) -> Value:
    streams = zip(probe.forward.inputs, probe.forward.outputs, strict=True)
    return [definitions.angular_distance(before, after).item() for before, after in streams]


def _calibration_error(probe: Probe) -> Value:
    predictions = probe.predictions
    return definitions.expected_calibration_error(predictions.confidence, predictions.correct).item()


def _spike_score(figure: str) -> Callable[[Probe], Value]:
    """The spike score of a figure of metrics.jsonl, over the logged steps so far."""
    return lambda probe: definitions.spike_score([line[figure] for line in probe.history if figure in line])


DIAGNOSTICS: dict[Name, Callable[[Probe], Value]] = {
    "residual_variance": _of_outputs(definitions.residual_variance),
    "angular_distance": _angular_distance,
    "max_over_median": _of_outputs(definitions.max_over_median),
    "kurtosis": _of_outputs(definitions.kurtosis),
    "attention_entropy": lambda probe: [entropy for entropy, _ in probe.attention],
    "largest_attention_logit": lambda probe: [logit for _, logit in probe.attention],
    "gradient_norm": lambda probe: probe.gradient_norms,
    "update_norm": _of_update(definitions.update_norm),
    "relative_update_norm": _of_update(definitions.relative_update_norm),
    "layer_removal_loss": lambda probe: [loss - probe.loss for loss in probe.losses_without],
    "log_z": lambda probe: probe.predictions.log_z.mean().item(),
    "calibration_error": _calibration_error,
    "loss_spike_score": _spike_score("loss"),
    "gradient_norm_spike_score": _spike_score("gradient_norm"),
}
