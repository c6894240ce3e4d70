"""One run of a comparison: what it is, whether it is finished, how far it has come."""

import json
from dataclasses import dataclass
from pathlib import Path

from shearling.config import differences, load
from shearling.data.manifest import load_manifest
from shearling.errors import UserError
from shearling.experiments.compare.plan import Arm
from shearling.training.identity import changed_hashes, identity_of
from shearling.training.run_folder import RunFolder
from shearling.training.spec import ExperimentSpec

_TAIL = 4096
_HASHED = {"data": "content of the data", "tokenizer": "tokenizer", "code": "code of the model's own norm or placement"}


@dataclass(frozen=True)
class Task:
    """One training run of a comparison.

    Attributes:
        label: what tells it from the arm's other runs: `seed 3`.
        steps: optimizer steps; None where minutes end it.
        warmup_steps: those of a random-data warm-up before them.
        work: how much it is of all that is to do, in a unit that all runs of a comparison share.
    """

    arm: str
    label: str
    config: ExperimentSpec
    steps: int | None
    warmup_steps: int
    work: float

    @property
    def run(self) -> RunFolder:
        """Where it runs."""
        return RunFolder(self.config.output_dir)

    @property
    def log(self) -> Path:
        """What its process printed."""
        return self.config.output_dir / "console.log"


def make_task(arm: Arm, folder: Path, label: str, seed: int) -> Task:
    """The run of `arm` in `folder` from this seed."""
    config, resolved = arm.run(folder, seed), arm.resolved
    work = config.training.minutes or float((resolved.total_flops or 0) + resolved.random_warmup_flops)
    warmup_steps = config.random_warmup.steps if config.random_warmup else 0
    return Task(arm.name, label, config, resolved.total_steps, warmup_steps, work)


def is_finished(task: Task) -> bool:
    """Whether the run has its results.

    Raises:
        UserError: the folder holds a run of other options or on other data.
    """
    run, config = task.run, task.config
    if not run.begun:
        return False
    changed = differences(load(ExperimentSpec, run.config).value, config)
    if changed:
        raise UserError(
            f"{run.path}: holds a run with other values of {', '.join(changed)}: put them back, or choose another --out"
        )
    other = changed_hashes(run, identity_of(config, load_manifest(config.data.path)))
    for what, words in _HASHED.items():
        if what in other:
            raise UserError(
                f"{run.path}: holds a run with another {words} than there is now: bring that back, or choose another "
                "--out"
            )
    return run.results.exists()


def position(task: Task) -> tuple[int, float] | None:
    """The last step that a run has recorded, and its loss; None where there is none yet.

    Steps of a random-data warm-up are below 0.
    """
    if not task.run.metrics.exists():
        return None
    with task.run.metrics.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        whole = file.read().split(b"\n")[1 if size > _TAIL else 0 : -1]
    lines = [json.loads(line) for line in whole]
    found = [(line["step"], line[key]) for line in lines for key in ("loss", "random_warmup_loss") if key in line]
    return found[-1] if found else None


def work_done(task: Task) -> float:
    """The part of an unfinished task's work that lies behind it; none where minutes end it."""
    reached = position(task)
    if reached is None or task.steps is None:
        return 0.0
    return task.work * (reached[0] + task.warmup_steps) / (task.steps + task.warmup_steps)
