"""What a run shows and records while it trains: the progress bar, the log, metrics.jsonl and trackers."""

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from shearling.training.run_folder import RunFolder
from shearling.training.trackers import Tracker

_PLAIN_SECONDS = 15.0  # between lines that tell how far a run has come, where no bar does
_SMOOTHING = 0.9  # of the shown loss and speed


@dataclass(frozen=True)
class StepFigures:
    """One optimizer step, as recorded.

    Attributes:
        done: share of the horizon behind us, in [0, 1].
        tokens_per_second: of this step alone.
        mfu: model FLOPs utilization, the share of the measured matmul peak in use.
        seconds: of the whole run so far.
    """

    step: int
    tokens: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    mfu: float
    seconds: float
    done: float


class Monitor:
    """Shows a live bar on a terminal, plain lines elsewhere; writes metrics.jsonl either way."""

    def __init__(self, run: RunFolder, trackers: list[Tracker], log_every: int) -> None:
        self._run = run
        self._trackers = trackers
        self._log_every = log_every
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("step {task.fields[step]:,}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("loss {task.fields[loss]:.3f} · lr {task.fields[rate]:.1e} · {task.fields[speed]:,.0f} tok/s"),
            TextColumn("{task.fields[mfu]:.0%} of peak · {task.fields[left]} left"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, visible=False, **_fields(0, 0.0, 0.0, 0.0, 0.0, 0.0))
        self._loss: float | None = None
        self._begun: tuple[float, float] | None = None  # share done and seconds when this process began
        self._spoke = time.monotonic()

    def __enter__(self) -> "Monitor":
        self._metrics = self._run.metrics.open("a")
        self._log = self._run.log.open("a")
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with ExitStack() as closing:  # each is closed whatever becomes of the others
            closing.callback(self._metrics.close)
            closing.callback(self._log.close)
            for tracker in self._trackers:
                closing.callback(tracker.close)
            closing.callback(self._bar.stop)

    def say(self, text: str) -> None:
        """A line for the user and for the log."""
        self._console.print(text, markup=False, soft_wrap=True)
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._log.flush()

    def say_at_times(self, text: str) -> None:
        """The same, unless a line of this sort was said just now."""
        if time.monotonic() - self._spoke >= _PLAIN_SECONDS:
            self._spoke = time.monotonic()
            self.say(text)

    def record(self, step: int, figures: dict[str, float]) -> None:
        """A line of metrics.jsonl, and the same for every tracker: those know no steps before 0."""
        self._metrics.write(json.dumps({"step": step, **figures}) + "\n")
        self._metrics.flush()
        for tracker in self._trackers if step >= 0 else ():
            tracker.log(step, figures)

    def step(self, figures: StepFigures) -> None:
        """Record a step where it is due, and bring the display up to date."""
        if figures.step % self._log_every == 0:
            values = {key: value for key, value in vars(figures).items() if key not in ("step", "done")}
            self.record(figures.step, values)
        previous = figures.loss if self._loss is None else self._loss
        self._loss = _SMOOTHING * previous + (1 - _SMOOTHING) * figures.loss
        left = self._time_left(figures)
        self._bar.update(
            self._task,
            visible=True,
            completed=figures.done,
            **_fields(figures.step, self._loss, figures.learning_rate, figures.tokens_per_second, figures.mfu, left),
        )
        if not self._console.is_terminal:
            self.say_at_times(
                f"step {figures.step:,} ({figures.done:.0%}): loss {self._loss:.3f}, lr {figures.learning_rate:.1e}, "
                f"{figures.tokens_per_second:,.0f} tok/s, {figures.mfu:.0%} of peak, {_clock(left)} left"
            )

    def _time_left(self, figures: StepFigures) -> float:
        """Seconds to the end of the horizon at the pace of this process."""
        if self._begun is None:
            self._begun = (figures.done, figures.seconds)
            return 0.0
        done, seconds = figures.done - self._begun[0], figures.seconds - self._begun[1]
        return seconds / done * (1 - figures.done) if done > 0 else 0.0


def _fields(step: int, loss: float, rate: float, speed: float, mfu: float, left: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "rate": rate, "speed": speed, "mfu": mfu, "left": _clock(left)}


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
