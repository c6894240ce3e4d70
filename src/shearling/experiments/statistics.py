"""Statistics of a comparison: floats in, figures out. Losses are in nats per token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import fmean, stdev, variance

LEVEL = 0.05
"""Of tests, two-sided; intervals hold 1 − LEVEL."""

POWER = 0.8

_NODES = 4001


@dataclass(frozen=True)
class Difference:
    """An arm's loss less the baseline's: below zero, the arm is better.

    Attributes:
        n: seeds of the arm.
        difference: of the means.
        low, high: 95 % interval of it; None with one seed.
        p: of the two-sided test that it is zero; None with one seed.
        sd: of one pair's difference; None with one seed.
        smallest_visible: the smallest true difference that this test would have called different in 80 % of such
            comparisons, at LEVEL divided by the number of comparisons: the worst step of Holm's, so that the figure
            holds whatever the other arms turn out to be; None with one seed.
    """

    n: int
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    sd: float | None = None
    smallest_visible: float | None = None


def paired_difference(arm: Sequence[float], baseline: Sequence[float], comparisons: int = 1) -> Difference:
    """The paired t test, its interval and its resolution; the i-th of both share seed, initial tensors and batches.

    Args:
        comparisons: tests that Holm's adjustment is over.
    """
    pairs = [a - b for a, b in zip(arm, baseline, strict=True)]
    n, mean = len(pairs), fmean(pairs)
    if n < 2:
        return Difference(n, mean)
    sd = stdev(pairs)
    return _tested(n, mean, sd, sd / math.sqrt(n), n - 1, comparisons)


def independent_difference(arm: Sequence[float], baseline: Sequence[float], comparisons: int = 1) -> Difference:
    """Welch's t test of two independent samples (Biometrika 34, 1947), its interval and its resolution.

    `sd` is of the difference of one run each; the resolution takes the noncentral t at Welch's degrees of freedom.

    Args:
        comparisons: tests that Holm's adjustment is over.
    """
    n, m, mean = len(arm), len(baseline), fmean(arm) - fmean(baseline)
    if min(n, m) < 2:
        return Difference(n, mean)
    a, b = variance(arm) / n, variance(baseline) / m
    freedom = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1)) if a + b else float(n + m - 2)
    return _tested(n, mean, math.sqrt(variance(arm) + variance(baseline)), math.sqrt(a + b), freedom, comparisons)


def smallest_visible(error: float, freedom: float, power: float = POWER, level: float = LEVEL) -> float:
    """The true difference that a two-sided t test at `level` finds with probability `power`.

    Exact for normal differences: the noncentrality at which the noncentral t has that much mass beyond the critical
    values (Cohen, Statistical power analysis, 1988), times `error`, the standard error of the difference.
    """
    return error * _noncentrality(freedom, power, level)


@lru_cache
def _noncentrality(freedom: float, power: float, level: float) -> float:
    """By integration over the estimated error: the libraries' noncentral t is not a number in its far tails."""
    import numpy as np
    from scipy.integrate import simpson
    from scipy.optimize import brentq
    from scipy.special import ndtr
    from scipy.stats import chi, norm, t

    critical, root = t.isf(level / 2, freedom), math.sqrt(freedom)
    first, last = chi.ppf([1e-12, 1 - 1e-12], freedom)
    x = np.linspace(float(first), float(last), _NODES)
    density, limit = chi.pdf(x, freedom), critical * x / root

    def missing(noncentrality: float) -> float:
        found = ndtr(noncentrality - limit) + ndtr(-noncentrality - limit)
        return float(simpson(found * density, x=x)) - power

    # There the normal and the chi that make up t are both on the right side with probability (1 + power) / 2 each.
    enough = critical * chi.ppf((1 + power) / 2, freedom) / root + norm.ppf((1 + power) / 2)
    return float(brentq(missing, 0.0, enough, xtol=1e-9))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several tests, in their order (Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def learning_rate_sensitivity(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The mean over a grid of min(loss, ln V) − the best loss (arXiv 2309.14322, section 2.2).

    The paper caps at the loss at initialization, which is ln V but for a little; ln V is the same for all arms. The
    expectation is over a log-uniform learning rate: each point counts by the stretch of ln(rate) nearest to it, those
    at the ends as if the grid went on at its last gap. On a geometric grid that is the plain mean.

    Args:
        rates: learning rates, ascending.
        losses: final losses, capped at ln V.

    Returns:
        Nats per token; None where one point tells nothing of sensitivity.
    """
    if len(rates) < 2:
        return None
    gaps = [math.log(b / a) for a, b in pairwise(rates)]
    weights = [left + right for left, right in zip([gaps[0], *gaps], [*gaps, gaps[-1]], strict=True)]
    best = min(losses)
    return sum(w * (loss - best) for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def _tested(n: int, mean: float, sd: float, error: float, freedom: float, comparisons: int) -> Difference:
    from scipy.stats import t

    if error == 0:  # no noise at all: whatever difference there is, is certain
        return Difference(n, mean, mean, mean, 1.0 if mean == 0 else 0.0, 0.0, 0.0)
    half = float(t.isf(LEVEL / 2, freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, freedom))
    visible = smallest_visible(error, freedom, level=LEVEL / comparisons)
    return Difference(n, mean, mean - half, mean + half, p, sd, visible)
