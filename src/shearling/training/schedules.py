"""Learning rates over a run, as shares of the peak. Imports no torch.

Every schedule warms up linearly over optimizer steps, and has a shape of its own over the horizon, which is counted in
steps or in time. A new shape is one function here and one entry of `SHAPES`.
"""

import math
from collections.abc import Callable

from shearling.training.spec import CosineSpec

ScheduleSpec = CosineSpec


def learning_rate_factor(
    spec: ScheduleSpec, step: int, progress: float, total_steps: int | None, taken: int = 0
) -> float:
    """The share of the peak learning rate that one optimizer step uses. A pure function, so nothing need be resumed.

    Warm-up gives (step + 1) / (warmup_steps + 1): no step is wasted on a rate of zero, and step `warmup_steps` is the
    first at the peak. Where the horizon counts steps, the shape begins there and ends with the last step. In time,
    nobody knows beforehand when that step comes, so the shape spans the whole time and warm-up scales its beginning;
    the two differ by the little that the shape falls during warm-up. Where `taken` steps of warm-up lie before step 0,
    it begins after them and is shorter by them.

    Args:
        spec: the schedule.
        step: optimizer steps already done, from 0.
        progress: share of the horizon already done: step / total_steps, or time passed / time given. Beyond 1, for a
            step that overruns its time, it counts as 1.
        total_steps: steps of the whole run, more than warm-up's; None where time ends it.
        taken: steps of the warm-up that something before training has taken; not more than it has.
    """
    warmup = min(1.0, (taken + step + 1) / (spec.warmup_steps + 1))
    before = (spec.warmup_steps - taken) / total_steps if total_steps is not None else 0.0
    done = (progress - before) / (1 - before)
    return warmup * SHAPES[spec.kind](spec, min(max(done, 0.0), 1.0))


def _cosine(spec: CosineSpec, done: float) -> float:
    return spec.min_ratio + (1 - spec.min_ratio) * (1 + math.cos(math.pi * done)) / 2


SHAPES: dict[str, Callable[[ScheduleSpec, float], float]] = {"cosine": _cosine}
"""By kind: the factor after warm-up, from 1 at `done` = 0 to what the kind ends with at `done` = 1."""
