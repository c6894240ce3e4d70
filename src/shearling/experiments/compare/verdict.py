"""From what came of the runs to comparison.json: figures, differences, and a verdict in words for each arm."""

import math
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from shearling.experiments.compare.budgets import equal_budgets
from shearling.experiments.compare.outcomes import COLLAPSED, OK, Result, unigram_loss
from shearling.experiments.compare.plan import RATE, Arm, Plan, differing, options
from shearling.experiments.compare.tuning import Tuning
from shearling.experiments.statistics import LEVEL, Difference, holm, independent_difference, paired_difference
from shearling.training.run_folder import DIVERGED

_SMALLEST_P = 1e-4
_SAID = {DIVERGED: "diverged", COLLAPSED: "collapsed to unigram level"}
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
    baseline = next(arm for arm in plan.arms if arm.name == plan.baseline)
    found = compare_arms({name: [run.loss for run in runs] for name, runs in results.items()}, plan)
    versus = {
        name: _versus(difference, p_holm, len(found), results[name], results[plan.baseline])
        for name, (difference, p_holm) in found.items()
    }
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
        "command": sys.argv,
        "baseline": plan.baseline,
        "seeds": plan.seeds(baseline),
        "paired": plan.paired,
        "threads": threads,
        "jobs": jobs,
        "differs": differs,
        "recipe": recipe,
        "unigram_loss": unigram_loss(baseline.config.data.path, baseline.config.data.validation_tokens),
        "warnings": [*warnings, *_warnings(plan, results, tunings)],
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
    """Each other arm's difference from the baseline, and its p after Holm's adjustment over all of them."""
    test = paired_difference if plan.paired else independent_difference
    found = {name: test(own, losses[plan.baseline]) for name, own in losses.items() if name != plan.baseline}
    p_values = [difference.p for difference in found.values() if difference.p is not None]
    adjusted = iter(holm(p_values))
    return {name: (each, None if each.p is None else next(adjusted)) for name, each in found.items()}


def in_words(difference: Difference, p_holm: float | None, comparisons: int) -> str:
    """The verdict on one arm.

    Args:
        p_holm: its p after Holm's adjustment.
        comparisons: how many arms were measured against the baseline.
    """
    d = difference
    direction = "better" if d.difference < 0 else "worse"
    if d.p is None or p_holm is None or d.low is None or d.high is None or d.smallest_visible is None:
        return f"one seed says nothing of chance ({direction} by {abs(d.difference):.3g} nats on it)"
    if d.p == 1 and d.sd == 0:
        return "the same loss on every seed"
    visible = f"{d.n} seeds could have seen {d.smallest_visible:.2g} nats"
    if p_holm < LEVEL:
        digits = _digits((d.high - d.low) / 2)
        near, far = sorted((abs(d.low), abs(d.high)))
        after = " after Holm" if comparisons > 1 else ""
        interval = f"{near:.{digits}f} to {far:.{digits}f}"
        return f"{direction} by {abs(d.difference):.{digits}f} nats ({interval}), {_p(p_holm)}{after}"
    if d.p < LEVEL:
        alone = f"{_p(d.p)} alone, {_p(p_holm)} after Holm over {comparisons} arms"
        return f"not distinguishable, counting all arms: {alone}; {visible}"
    return f"not distinguishable at this scale: {visible}"


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
    difference: Difference, p_holm: float | None, comparisons: int, own: Sequence[Result], baseline: Sequence[Result]
) -> dict[str, Any]:
    words = [in_words(difference, p_holm, comparisons), *_failures(own, "runs"), *_failures(baseline, "baseline runs")]
    return {**vars(difference), "p_holm": p_holm, "verdict": "; ".join(words)}


def _failures(runs: Sequence[Result], whose: str) -> list[str]:
    """How many runs diverged, and how many collapsed, in words."""
    counts = {said: sum(run.outcome == outcome for run in runs) for outcome, said in _SAID.items()}
    return [f"{count} of {len(runs)} {whose} {said}" for said, count in counts.items() if count]


def _warnings(plan: Plan, results: Mapping[str, Sequence[Result]], tunings: Mapping[str, Tuning]) -> list[str]:
    found = [
        f"{name}: the best learning rate, {tuning.best:.3g}, still lies at the edge of its grid"
        for name, tuning in tunings.items()
        if tuning.beyond
    ]
    if not tunings and RATE not in differing(plan.arms):
        found.append("one learning rate for all arms, tuned for none: --tune lr finds each arm's own")
    if all(run.outcome != OK for runs in results.values() for run in runs):
        found.append("no run came below the unigram level: train longer before comparing")
    if any(arm.config.training.evaluate_every is None for arm in plan.arms):
        found.append("evaluated at both ends only: readings between them are of a straight line")
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


def _digits(half_width: float) -> int:
    """Decimals that show two figures of an interval's half width."""
    return 4 if half_width == 0 else min(max(1 - math.floor(math.log10(half_width)), 2), 6)


def _p(p: float) -> str:
    return f"p {p:.2g}" if p >= _SMALLEST_P else f"p < {_SMALLEST_P:.4f}"
