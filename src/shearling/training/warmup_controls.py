"""The arms without which a warm-up on random data tells nothing. Imports no torch."""

from typing import Any

from shearling.training.spec import ExperimentSpec
from shearling.training.warmup_spec import RealSpec


def control_arms(config: ExperimentSpec) -> dict[str, ExperimentSpec]:
    """The controls of an experiment with a random-data warm-up, by what its name and folder get added behind a dash.

    - none: no phase;
    - real: the phase on real text, its steps, learning rate and policies the same: what more training does;
    - moments: the phase, of which only each tensor's mean and standard deviation are kept (arXiv 2206.10139).

    An experiment that is itself one of them gets the others; one without the phase gets none.
    """
    warmup = config.random_warmup
    if warmup is None:
        return {}
    own = {key: value for key, value in warmup.model_dump().items() if key in RealSpec.model_fields and key != "kind"}
    phases = {
        "none": None,
        "real": RealSpec(**own),
        "moments": warmup.model_copy(update={"keep": "moments", "optimizer_state": "reset"}),
    }
    return {suffix: _control(config, suffix, phase) for suffix, phase in phases.items() if phase != warmup}


def _control(config: ExperimentSpec, suffix: str, phase: Any) -> ExperimentSpec:
    folder = config.output_dir.with_name(f"{config.output_dir.name}-{suffix}")
    return config.model_copy(update={"name": f"{config.name}-{suffix}", "output_dir": folder, "random_warmup": phase})
