"""A run from its config to its picture."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shearling.config import differences, load
from shearling.errors import UserError
from shearling.experiments.curves import draw_loss_curve
from shearling.experiments.equations import model_equations
from shearling.files import locked, write_atomically
from shearling.models.custom import custom_code_hash
from shearling.training.loop import train
from shearling.training.resolve import load_experiment
from shearling.training.run_folder import RunFolder, read_json
from shearling.training.spec import ExperimentSpec


def run_experiment(
    config_path: Path,
    overrides: Sequence[str],
    resume: bool,
    began: float | None = None,
    extend: Path | None = None,
) -> tuple[dict[str, Any], Path]:
    """Train what a config describes, note its equations, draw its loss curve; the results and the picture's path.

    The equations are noted of a run that diverged or was interrupted too.

    Args:
        began: when a budget of minutes began, by `time.perf_counter`; None: now.
        extend: a run whose stable phase this one goes on with.
    """
    config = load_experiment(config_path, overrides)[0].value
    code = custom_code_hash(config.model)  # before training: the file may be edited while the run goes on
    ended_before = RunFolder(config.output_dir).results.exists()  # by whatever code that was
    try:
        results = train(config, resume, began, extend)
    finally:
        if not ended_before:
            _note_equations(config, code)
    return results, draw_loss_curve(RunFolder(config.output_dir), config.name)


def _note_equations(config: ExperimentSpec, code: str) -> None:
    """Write what the model executes into its run folder, once, if it is this run that was begun there.

    What is in the way is told and no more: whatever ended the training is what the user has to hear of.
    """
    run = RunFolder(config.output_dir)
    if run.equations.exists() or not run.begun:
        return
    try:
        begun_alike = not differences(load(ExperimentSpec, run.config).value, config)
        if begun_alike and read_json(run.provenance)["hashes"].get("code", "") == code:
            with locked(run.path):
                write_atomically(run.equations, model_equations(config.model, whole=True) + "\n")
    except (OSError, UserError) as error:
        print(f"warning: {run.equations}: not written: {error}", file=sys.stderr)
