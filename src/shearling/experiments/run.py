"""A run from its config to its picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shearling.experiments.curves import draw_loss_curve
from shearling.training.loop import train
from shearling.training.resolve import load_experiment
from shearling.training.run_folder import RunFolder


def run_experiment(config_path: Path, overrides: Sequence[str], resume: bool) -> tuple[dict[str, Any], Path]:
    """Train what a config describes and draw its loss curve; the results and the picture's path."""
    config = load_experiment(config_path, overrides)[0].value
    results = train(config, resume)
    return results, draw_loss_curve(RunFolder(config.output_dir), config.name)
