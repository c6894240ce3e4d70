"""Extending a stable phase: a run that goes on where another's cool-down began, to a horizon of its own.

A schedule that holds the peak until it cools down (warm-up-stable-decay, arXiv 2404.06395) makes one long run of
several short ones: what came before the cool-down is the same whatever the horizon.
"""

from pathlib import Path

from shearling.config import differences, load
from shearling.errors import UserError
from shearling.files import write_atomically
from shearling.training.checkpoints import Checkpoint, load_checkpoint, saved_steps, step_folder
from shearling.training.identity import changed_hashes
from shearling.training.run_folder import RunFolder
from shearling.training.schedules import is_cooling
from shearling.training.spec import ExperimentSpec
from shearling.training.state import Progress

MAY_DIFFER = (
    "output_dir", "name", "training.steps", "training.tokens", "training.flops", "training.minutes",
    "training.schedule.cooldown", "training.schedule.shape", "training.schedule.min_ratio",
)  # fmt: skip
"""Options that a stable phase does not depend on."""


def take_over(
    source: Path, run: RunFolder, config: ExperimentSpec, identity: dict[str, str], total_steps: int | None
) -> Checkpoint:
    """The last checkpoint of the stable phase of the run in `source`; its metrics up to there go into `run`.

    Args:
        total_steps: of the run to be; None where minutes end it.

    Raises:
        UserError: there is no such run or checkpoint, the runs differ in more than their ends, or the checkpoint lies
            in the cool-down of the new horizon.
    """
    old = RunFolder(source)
    if not old.begun:
        raise UserError(f"--extend {source}: holds no run: give the folder of a run")
    before = load(ExperimentSpec, old.config).value
    if config.training.optimizer.weight_decay_end != 1:
        raise UserError(
            "--extend: with training.optimizer.weight_decay_end other than 1 every step depends on the horizon, so "
            "that no stable phase can be extended"
        )
    changed = [key for key in differences(before, config) if key not in MAY_DIFFER]
    if changed:
        raise UserError(
            f"--extend {source}: that run has other values of {', '.join(changed)}; an extension may change its "
            "horizon and its cool-down alone: put them back"
        )
    other = changed_hashes(old, identity)
    if other:
        raise UserError(f"--extend {source}: that run has another hash of its {' and '.join(sorted(other))}")
    checkpoint, progress = _last_stable(old, before)
    minutes = config.training.minutes
    done = progress.step / total_steps if total_steps is not None else progress.seconds / (60 * (minutes or 1))
    if done >= 1 or is_cooling(config.training.schedule, progress.step, done, total_steps, config.warmup_taken):
        raise UserError(
            f"--extend {source}: its stable phase ends after step {progress.step:,}, {progress.seconds / 60:.1f} "
            "minutes, which is no part of the new run's stable phase: give it a longer horizon"
        )
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    for mine, theirs in ((run.metrics, old.metrics), (run.diagnostics, old.diagnostics)):
        if theirs.exists():
            write_atomically(mine, theirs.read_text())
    checkpoint.state["progress"]["cooling_since"] = None
    return checkpoint


def _last_stable(old: RunFolder, config: ExperimentSpec) -> tuple[Checkpoint, Progress]:
    schedule = config.training.schedule
    if schedule.stable_share is None:
        raise UserError(
            f"--extend {old.path}: training.schedule.kind {schedule.kind} has no stable phase: its rate falls from the "
            "first step on; train with wsd, constant or inverse_sqrt to extend later"
        )
    for step in reversed(saved_steps(old.checkpoints)):
        checkpoint = load_checkpoint(step_folder(old.checkpoints, step))
        progress = Progress.from_json(checkpoint.state["progress"])
        if progress.cooling_since is None or progress.step <= progress.cooling_since:
            return checkpoint, progress
    raise UserError(f"--extend {old.path}: no checkpoint of its stable phase is left: train it anew with wsd")
