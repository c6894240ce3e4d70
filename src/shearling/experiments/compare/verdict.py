"""From what came of the runs to comparison.json: figures, differences, and a verdict in words for each arm."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from shearling.experiments.compare.budgets import equal_budgets
from shearling.experiments.compare.outcomes import OK, Result, ceiling_of, unigram_loss
from shearling.experiments.compare.plan import RATE, Arm, Plan, differing, options
from shearling.experiments.compare.tuning import Tuning
from shearling.experiments.compare.words import failures, verdict
from shearling.experiments.statistics import Difference, holm, independent_difference, paired_difference

UNSTEADY = 1.1
"""Between an arm's fastest and its slowest run: above it, losses at equal seconds come with a warning."""

_PLACES = {"name", "output_dir", "seed"}  # of the recipe: what is each run's own


def comparison(
    name: str,
    plan: Plan,
    results: Mapping[str, Sequence[Result]],
    tunings: Mapping[str, Tuning],
    *,
    threads: int,
    jobs: int,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """What comparison.json holds.

    Args:
        plan: its arms with the learning rates that they were compared at.
        results: of each arm, in the order of its seeds.
        tunings: of each arm, where the learning rate was tuned.
    """
    baseline = plan.baseline_arm
    found = compare_arms({name: [run.loss for run in runs] for name, runs in results.items()}, plan)
    versus = {arm.name: _versus(arm, *found[arm.name], plan, results) for arm in plan.others}
    differs = differing(plan.arms)
    recipe = {
        key: value
        for key, value in options(baseline).items()
        if key not in _PLACES and all(options(arm).get(key) == value for arm in plan.arms)
    }
    return {
        "kind": "comparison",
        "version": 1,
        "name": name,
        "command": ["shearling", *sys.argv[1:]],
        "baseline": plan.baseline,
        "seeds": plan.seeds(baseline),
        "paired": plan.paired,
        "same_start": plan.same_start,
        "threads": threads,
        "jobs": jobs,
        "differs": differs,
        "recipe": recipe,
        "unigram_loss": unigram_loss(baseline.config.data.path, baseline.config.data.validation_tokens),
        "ceiling": ceiling_of(baseline.config.data.path),
        "warnings": [*warnings, *_warnings(plan, results, tunings), *_unsteady(results, jobs)],
        "arms": [
            {
                **_arm(arm, results[arm.name], differs),
                "tuning": _tuning(tunings[arm.name]) if arm.name in tunings else None,
                "versus": versus.get(arm.name),
            }
            for arm in plan.arms
        ],
        "budgets": [
            budget.as_data() for budget in equal_budgets(results, {arm.name: arm.resolved for arm in plan.arms})
        ],
    }


def compare_arms(losses: Mapping[str, Sequence[float]], plan: Plan) -> dict[str, tuple[Difference, float | None]]:
    """Each other arm's difference from the baseline, and its p after Holm's adjustment over all of them.

    Arms that share the baseline's seeds are pairs with it, others independent samples. One whose losses are in another
    unit than the baseline's is not tested, and no other is adjusted for it.
    """
    tested = tested_arms(plan)
    found = {}
    for arm in plan.others:
        test = paired_difference if plan.pairs(arm) else independent_difference
        found[arm.name] = test(losses[arm.name], losses[plan.baseline], max(len(tested), 1))
    p_values = {name: found[name].p for name in tested}
    known = {name: p for name, p in p_values.items() if p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    return {name: (difference, adjusted.get(name)) for name, difference in found.items()}


def tested_arms(plan: Plan) -> list[str]:
    """The arms that Holm's adjustment is over: those whose losses are in the baseline's unit."""
    return [arm.name for arm in plan.others if not plan.incomparable(arm)]


def _arm(arm: Arm, runs: Sequence[Result], differs: Sequence[str]) -> dict[str, Any]:
    losses = [run.loss for run in runs]
    return {
        "name": arm.name,
        "options": {key: value for key, value in options(arm).items() if key in differs},
        "parameters": arm.resolved.parameters.total,
        "flops_per_token": arm.resolved.flops_per_token,
        "learning_rate": arm.learning_rate,
        "runs": [_run(run) for run in runs],
        "mean": fmean(losses),
        "sd": stdev(losses) if len(losses) > 1 else None,
    }


def _versus(
    arm: Arm, difference: Difference, p_holm: float | None, plan: Plan, results: Mapping[str, Sequence[Result]]
) -> dict[str, Any]:
    """An arm against the baseline. What cannot be believed is null: p after Holm where there is no verdict, and the
    smallest visible effect where losses are capped, which are not normal."""
    own, baseline = results[arm.name], results[plan.baseline]
    capped = any(run.outcome != OK for run in (*own, *baseline))
    hopeless = all(run.outcome != OK for run in (*own, *baseline))
    unit = plan.incomparable(arm)
    if capped or unit:
        difference = replace(difference, smallest_visible=None)
    failed = [*failures(own, "runs"), *failures(baseline, "baseline runs")]
    return {
        **vars(difference),
        "p_holm": None if hopeless or unit else p_holm,
        "paired": plan.pairs(arm),
        "comparable": unit is None,
        "capped": capped,
        "verdict": verdict(difference, p_holm, len(tested_arms(plan)), failed, hopeless=hopeless, unit=unit),
    }


def _warnings(plan: Plan, results: Mapping[str, Sequence[Result]], tunings: Mapping[str, Tuning]) -> list[str]:
    found = [
        f"{name}: the best learning rate, {tuning.best:.3g}, still lies at the edge of its grid"
        for name, tuning in tunings.items()
        if tuning.beyond
    ]
    found += [
        f"{name}: no learning rate of its grid came through: the lowest loss of failed runs was taken"
        for name, tuning in tunings.items()
        if all(point.outcome != OK for point in tuning.points)
    ]
    if not tunings and RATE not in differing(plan.arms):
        found.append("one learning rate for all arms, tuned for none: --tune lr finds each arm's own")
    if all(run.outcome != OK for runs in results.values() for run in runs):
        found.append("no run came below the unigram level: train longer before comparing")
    if any(arm.config.training.evaluate_every is None for arm in plan.arms):
        found.append("evaluated at both ends only: readings between them are of a straight line")
    return found


def _unsteady(results: Mapping[str, Sequence[Result]], jobs: int) -> list[str]:
    """Arms whose runs did not go at one speed."""
    found = []
    for name, runs in results.items():
        speeds = [1 / run.seconds_per_token for run in runs if run.seconds_per_token is not None]
        if speeds and max(speeds) > UNSTEADY * min(speeds):
            found.append(
                f"{name}: its runs went at {min(speeds):,.0f} to {max(speeds):,.0f} tokens/s, with --jobs {jobs}: "
                "losses at equal seconds are rough"
            )
    return found


def _tuning(tuning: Tuning) -> dict[str, Any]:
    return {
        "seed": tuning.seed,
        "points": [
            {
                "learning_rate": point.learning_rate,
                "loss": point.loss,
                "outcome": point.outcome,
                "folder": point.folder,
            }
            for point in tuning.points
        ],
        "best_at_edge": bool(tuning.beyond),
        "sensitivity": tuning.sensitivity,
    }


def _run(run: Result) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "folder": run.folder,
        "outcome": run.outcome,
        "loss": run.loss,
        "raw_loss": run.raw_loss,
        "first_loss": run.first_loss,
        "bits_per_byte": run.bits_per_byte,
        "tokens": run.tokens,
        "flops": run.flops,
        "seconds": run.seconds,
        "tokens_per_second": run.tokens_per_second,
    }
