"""Learning rates over a run, as shares of the peak. Imports no torch.

Every schedule warms up linearly over optimizer steps, and has a shape of its own over the horizon, which is counted in
steps or in time. A new shape is one function here and one entry of `SHAPES`.
"""

import math
from collections.abc import Callable
from typing import Any

from shearling.training.schedule_spec import (
    ConstantSpec,
    CosineSpec,
    InverseSqrtSpec,
    LinearSpec,
    ScheduleSpec,
    WSDSpec,
)


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
    after = max(0, taken + step - spec.warmup_steps)
    return warmup * SHAPES[type(spec)](spec, _after_warmup(spec, progress, total_steps, taken), after)


def is_cooling(spec: ScheduleSpec, step: int, progress: float, total_steps: int | None, taken: int = 0) -> bool:
    """Whether the rate of the step after `step` has begun to depend on the horizon; arguments as above."""
    return spec.stable_share is None or _after_warmup(spec, progress, total_steps, taken) > spec.stable_share


def _after_warmup(spec: ScheduleSpec, progress: float, total_steps: int | None, taken: int) -> float:
    """The share of what follows warm-up that is done, in [0, 1]."""
    before = (spec.warmup_steps - taken) / total_steps if total_steps is not None else 0.0
    return min(max((progress - before) / (1 - before), 0.0), 1.0)


def _above(floor: float, height: float) -> float:
    return floor + (1 - floor) * height


def _cosine(spec: CosineSpec, done: float, after: int) -> float:
    return _above(spec.min_ratio, COOL_DOWNS["cosine"](done))


def _linear(spec: LinearSpec, done: float, after: int) -> float:
    return _above(spec.min_ratio, 1 - done)


def _constant(spec: ConstantSpec, done: float, after: int) -> float:
    return 1.0


def _wsd(spec: WSDSpec, done: float, after: int) -> float:
    return _above(spec.min_ratio, COOL_DOWNS[spec.shape](_cooling(done, spec.cooldown)))


def _inverse_sqrt(spec: InverseSqrtSpec, done: float, after: int) -> float:
    return math.sqrt(spec.timescale / (spec.timescale + after)) * (1 - _cooling(done, spec.cooldown))


def _cooling(done: float, cooldown: float) -> float:
    """The share of the cool-down that is behind us."""
    return max(0.0, 1 - (1 - done) / cooldown) if cooldown else 0.0


COOL_DOWNS: dict[str, Callable[[float], float]] = {
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
    "sqrt": lambda u: 1 - math.sqrt(u),
    "square": lambda u: (1 - u) ** 2,
}
"""By shape: from 1 at the cool-down's beginning to 0 at its end."""

SHAPES: dict[type[ScheduleSpec], Callable[[Any, float, int], float]] = {
    CosineSpec: _cosine,
    LinearSpec: _linear,
    ConstantSpec: _constant,
    WSDSpec: _wsd,
    InverseSqrtSpec: _inverse_sqrt,
}
"""By kind: the factor after warm-up, from 1 at `done` = 0, of the share `done` and the steps `after` warm-up."""
