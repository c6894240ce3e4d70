"""A comparison: arms × seeds, trained alike, and a verdict with its uncertainty.

The folder of a comparison holds plan.json and arms/ (how it was begun), run folders runs/ARM/seed-S and
tuning/ARM/lr-R, and, once all are finished, comparison.json.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from shearling.config import at_home
from shearling.errors import Interrupted
from shearling.experiments.compare.display import Display
from shearling.experiments.compare.outcomes import read_result
from shearling.experiments.compare.plan import Arm, Plan, make_plan
from shearling.experiments.compare.record import begin, doubtful_origins
from shearling.experiments.compare.runs import run_all, side_by_side
from shearling.experiments.compare.tasks import Task, make_task
from shearling.experiments.compare.tuning import Tuning, tune
from shearling.experiments.compare.verdict import comparison
from shearling.files import locked
from shearling.training.interrupts import Interrupts
from shearling.training.run_folder import write_json

__all__ = ["compare", "make_plan"]


def compare(
    plan: Plan, out: Path | None = None, *, jobs: int | None = None, threads: int | None = None
) -> tuple[dict[str, Any], Path]:
    """Carry out a plan: train what is not yet trained, and judge.

    Args:
        out: the comparison's folder; None: named for the arms, below outputs/compare.
        jobs: runs side by side; None: what the machine takes.
        threads: of each run; None: as the comparison began, else one.

    Returns:
        What comparison.json holds, and the folder.

    Raises:
        UserError: the folder holds another comparison, or a run ended without results.
        Interrupted: a signal asked to stop; the running runs have saved.
    """
    out = at_home(out or Path("outputs/compare") / "-".join(arm.name for arm in plan.arms))
    with locked(out), Display() as display, Interrupts() as interrupts:
        record = begin(plan, out, threads)
        jobs = jobs or side_by_side(plan.arms, record.threads)
        display.say(_announcement(plan, out, jobs, record.threads))
        run = partial(run_all, jobs=jobs, threads=record.threads, display=display, check=interrupts.check)
        try:
            tunings = {} if plan.grid is None else tune(plan, out, run)
            plan = _tuned(plan, tunings)
            tasks = {arm.name: _tasks(arm, plan, out) for arm in plan.arms}
            run([task for own in zip(*tasks.values(), strict=True) for task in own])
        except Interrupted:
            display.say("interrupted: the running runs have saved; the same command goes on")
            raise
        results = {name: [read_result(task, out) for task in own] for name, own in tasks.items()}
        tuned = [point for tuning in tunings.values() for point in tuning.points]
        origins = doubtful_origins(out / run.folder for own in (*results.values(), tuned) for run in own)
        judged = comparison(
            out.resolve().name, plan, results, tunings,
            threads=record.threads, jobs=jobs, warnings=[*plan.warnings, *record.warnings, *origins],
        )  # fmt: skip
        write_json(out / "comparison.json", judged)
        record.note_verdict(plan)
    return judged, out


def _tuned(plan: Plan, tunings: dict[str, Tuning]) -> Plan:
    """The plan with each arm at the learning rate that was best for it."""
    arms = (arm.at(tunings[arm.name].best) if arm.name in tunings else arm for arm in plan.arms)
    return replace(plan, arms=tuple(arms))


def _tasks(arm: Arm, plan: Plan, out: Path) -> list[Task]:
    folder = out / "runs" / arm.name
    return [make_task(arm, folder / f"seed-{seed}", f"seed {seed}", seed) for seed in plan.seeds(arm)]


def _announcement(plan: Plan, out: Path, jobs: int, threads: int) -> str:
    arms = ", ".join(arm.name for arm in plan.arms)
    tuning = "" if plan.grid is None else ", after tuning their learning rates"
    own = {arm.name: ", ".join(map(str, plan.seeds(arm))) for arm in plan.arms}
    seeds = own[plan.baseline] if plan.paired else " / ".join(f"{each} of {name}" for name, each in own.items())
    return (
        f"comparing {arms}: {len(plan.arms)} arms × seed{'s' * (plan.count > 1)} {seeds}{tuning}; at most {jobs} runs "
        f"side by side, threads of each: {threads}; in {out}"
    )
