"""What stays the same throughout a run, and its clock."""

import math
import time
from dataclasses import dataclass

from shearling.data.stream import BatchStream, EvaluationSet
from shearling.training.diagnostics.recorder import Recorder
from shearling.training.interrupts import Interrupts
from shearling.training.monitor import Monitor
from shearling.training.resolve import Resolved
from shearling.training.run_folder import RunFolder
from shearling.training.spec import ExperimentSpec
from shearling.training.state import Progress


@dataclass(frozen=True)
class Job:
    """What stays the same throughout a run."""

    config: ExperimentSpec
    resolved: Resolved
    run: RunFolder
    stream: BatchStream
    held_out: EvaluationSet
    peak: float
    monitor: Monitor
    interrupts: Interrupts
    diagnostics: Recorder
    identity: dict[str, str]
    seconds_before: float
    """Spent by this process before the first step: a budget of minutes has them less."""


class Clock:
    """Wall-clock seconds of a run over all its processes, and the share of its horizon that is done."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._start = time.perf_counter() - progress.seconds
        self._progress = progress
        self._total_steps = job.resolved.total_steps
        self._budget = 60 * (job.config.training.minutes or math.inf) - job.seconds_before

    @property
    def seconds(self) -> float:
        """Seconds spent so far."""
        return time.perf_counter() - self._start

    def done(self, step: int) -> float:
        """Share of the horizon behind us, in [0, 1].

        Of a minutes budget the time to evaluate and save is kept back, and what a random-data warm-up took is no part
        of the horizon.
        """
        if self._total_steps is not None:
            return min(1.0, step / self._total_steps)
        warmed = self._progress.warmed.seconds
        left = self._budget - self._progress.closing_seconds - warmed
        return min(1.0, (self.seconds - warmed) / max(left, 1e-9))
