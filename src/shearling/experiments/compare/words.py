"""Verdicts in words."""

import math
from collections.abc import Sequence

from shearling.experiments.compare.outcomes import COLLAPSED, Result
from shearling.experiments.statistics import LEVEL, Difference
from shearling.training.run_folder import DIVERGED

_SMALLEST_P = 1e-4
_SAID = {DIVERGED: "diverged", COLLAPSED: "collapsed to unigram level"}


def verdict(
    difference: Difference,
    p_holm: float | None,
    comparisons: int,
    failed: Sequence[str],
    *,
    hopeless: bool,
    unit: str | None,
) -> str:
    """The verdict on one arm; which runs went wrong comes first.

    Args:
        p_holm: its p after Holm's adjustment.
        comparisons: how many arms were tested against the baseline.
        failed: of either side, see :func:`failures`.
        hopeless: whether no run of either came through, so that neither can be called better.
        unit: why losses of the two do not compare, or None.
    """
    counts = ", ".join(failed)
    if unit:
        return "; ".join([*([counts] if counts else []), f"no verdict in nats: {unit}"])
    if hopeless:
        return f"both failed in every run: {counts}"
    words = in_words(difference, p_holm, comparisons)
    return f"{counts}; of all runs, with losses capped at ln V: {words}" if counts else words


def in_words(difference: Difference, p_holm: float | None, comparisons: int) -> str:
    """What the test says of one arm.

    Args:
        p_holm: its p after Holm's adjustment.
        comparisons: how many arms were tested against the baseline.
    """
    d = difference
    direction = "better" if d.difference < 0 else "worse"
    if d.p is None or p_holm is None or d.low is None or d.high is None:
        return f"one seed says nothing of chance ({direction} by {abs(d.difference):.3g} nats on it)"
    if d.p == 1 and d.sd == 0:
        return "the same loss on every seed"
    seen = d.smallest_visible
    visible = "" if seen is None else f"{d.n} seeds could have seen {seen:.2g} nats"
    if p_holm < LEVEL:
        digits = _digits((d.high - d.low) / 2)
        near, far = sorted((abs(d.low), abs(d.high)))
        after = " after Holm" if comparisons > 1 else ""
        interval = f"{near:.{digits}f} to {far:.{digits}f}"
        return f"{direction} by {abs(d.difference):.{digits}f} nats ({interval}), {_p(p_holm)}{after}"
    if d.p < LEVEL:
        alone = f"{_p(d.p)} alone, {_p(p_holm)} after Holm over {comparisons} arms"
        return f"not distinguishable, counting all arms: {alone}" + (visible and f"; {visible}")
    return "not distinguishable at this scale" + (visible and f": {visible}")


def failures(runs: Sequence[Result], whose: str) -> list[str]:
    """How many runs diverged, and how many collapsed, in words."""
    counts = {said: sum(run.outcome == outcome for run in runs) for outcome, said in _SAID.items()}
    return [f"{count} of {len(runs)} {whose} {said}" for said, count in counts.items() if count]


def _digits(half_width: float) -> int:
    """Decimals that show two figures of an interval's half width."""
    return 4 if half_width == 0 else min(max(1 - math.floor(math.log10(half_width)), 2), 6)


def _p(p: float) -> str:
    return f"p {p:.2g}" if p >= _SMALLEST_P else f"p < {_SMALLEST_P:.4f}"
