"""A run from its config to its picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shearling.config import load
from shearling.experiments.curves import draw_loss_curve
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder
from shearling.training.spec import ExperimentSpec


def run_experiment(config_path: Path, overrides: Sequence[str], resume: bool) -> tuple[dict[str, Any], Path]:
    """Train what a config describes and draw its loss curve; the results and the picture's path."""
    config = load(ExperimentSpec, config_path, overrides).value
    results = train(config, resume)
    return results, draw_loss_curve(RunFolder(config.output_dir), config.name)
