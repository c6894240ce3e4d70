"""Arms side by side where they have spent the same: tokens, FLOPs or seconds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from shearling.experiments.compare.outcomes import Reading, Result
from shearling.training.resolve import Resolved
from shearling.training.run_folder import DIVERGED

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Budget:
    """The losses of all arms after the same expense.

    Attributes:
        kind: what is spent: tokens, flops or seconds.
        at: how much of it, the most that all arms reached.
        losses: validation loss in nats per token by arm, a mean over seeds.
        mid_run: whether some of them were read before the end of their schedule, where rankings may still turn.
    """

    kind: str
    at: float
    losses: dict[str, float]
    mid_run: bool

    def as_data(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def equal_budgets(results: Mapping[str, Sequence[Result]], resolved: Mapping[str, Resolved]) -> list[Budget]:
    """One budget of each kind; none where not one run came to its end.

    Losses are interpolated linearly between evaluations. A run that diverged sets no budget; behind its last evaluation
    it has its ceiling. A random-data warm-up costs FLOPs and seconds; its tokens are none of the training text's.

    Seconds are of training steps alone, without evaluating and saving, which arms may do in other measure: tokens times
    the arm's median time for one over its seeds, so that no single run's luck sets the budget. A token of a random-data
    warm-up counts as long as one of training.
    """
    pace = {arm: seconds_per_token(runs) for arm, runs in results.items()}
    axes: dict[str, Callable[[str, Reading], float]] = {
        "tokens": lambda arm, reading: float(reading.tokens),
        "flops": lambda arm, reading: float(
            resolved[arm].random_warmup_flops + reading.tokens * resolved[arm].flops_per_token
        ),
        "seconds": lambda arm, reading: pace[arm] * (resolved[arm].random_warmup_tokens + reading.tokens),
    }
    whole = [(arm, run) for arm, runs in results.items() for run in runs if run.outcome != DIVERGED]
    budgets = []
    for kind, axis in axes.items() if whole else ():
        ends = [axis(arm, run.curve[-1]) for arm, run in whole]
        at = min(ends)
        losses = {
            arm: fmean(_loss_at([axis(arm, reading) for reading in run.curve], run, at) for run in runs)
            for arm, runs in results.items()
        }
        budgets.append(Budget(kind, at, losses, max(ends) > at * (1 + _ROUNDING)))
    return budgets


def seconds_per_token(runs: Sequence[Result]) -> float:
    """The median over an arm's runs, of those that took a step; 0 where none did."""
    return median([run.seconds_per_token for run in runs if run.seconds_per_token is not None] or [0.0])


def _loss_at(spent: Sequence[float], run: Result, at: float) -> float:
    import numpy as np

    if not spent or at > spent[-1]:
        return run.ceiling
    return min(run.ceiling, float(np.interp(at, spent, [reading.loss for reading in run.curve])))
