"""What a comparison shows while it runs: a live table on a terminal, a line for each finished run everywhere."""

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from shearling.experiments.compare.tasks import Task, position, work_done
from shearling.training.run_folder import FINISHED


class Display:
    """Shows runs on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, transient=True, auto_refresh=False)
        self.begin((), ())

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """A line for the user."""
        self._console.print(text, markup=False, soft_wrap=True)

    def begin(self, tasks: Sequence[Task], waiting: Sequence[Task]) -> None:
        """Show these from now on, all but `waiting` being finished already."""
        self._tasks = tasks
        self._began = time.monotonic()
        self._rest = {_place(task): task.work - work_done(task) for task in waiting}
        self._todo = sum(self._rest.values())

    def finished(self, task: Task, results: dict[str, Any], running: Sequence[Task]) -> None:
        """A run has its results, and these still run."""
        del self._rest[_place(task)]
        known = results["outcome"] == FINISHED and results["loss"] is not None
        outcome = f"loss {results['loss']:.4f}" if known else "diverged"
        count = f"{len(self._tasks) - len(self._rest)} of {len(self._tasks)} runs"
        left = self._left(running)
        self.say(f"{task.arm}, {task.label}: {outcome} ({count}{f', about {left} left' if left else ''})")

    def update(self, running: Sequence[Task]) -> None:
        """Show how far these have come."""
        if not self._live.is_started:
            return
        table = Table("arm", "finished", "running", box=None, pad_edge=False)
        for arm in dict.fromkeys(task.arm for task in self._tasks):
            own = [task for task in self._tasks if task.arm == arm]
            done = sum(_place(task) not in self._rest for task in own)
            table.add_row(arm, f"{done} of {len(own)}", "\n".join(_line(task) for task in running if task.arm == arm))
        left = self._left(running)
        table.add_row("", "", f"about {left} left" if left else "")
        self._live.update(table, refresh=True)

    def _left(self, running: Sequence[Task]) -> str:
        """The time to the end at the pace so far; nothing at the end, or before there is a pace."""
        rest = sum(self._rest.values()) - sum(
            work_done(task) - (task.work - self._rest[_place(task)]) for task in running
        )
        if not 0 < rest < self._todo:
            return ""
        seconds = (time.monotonic() - self._began) * rest / (self._todo - rest)
        return str(timedelta(seconds=round(seconds)))


def _place(task: Task) -> Path:
    return task.config.output_dir


def _line(task: Task) -> str:
    reached = position(task)
    if reached is None:
        return f"{task.label}: starting"
    step, loss = reached
    if step < 0:
        return f"{task.label}: random warm-up, loss {loss:.3f}"
    return f"{task.label}: step {step:,}{f' of {task.steps:,}' if task.steps else ''}, loss {loss:.3f}"
