"""Tells how far a preparation is: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a phase is.

    Attributes:
        phase: what is being done, in a few words.
        documents: taken so far.
        bytes_done: of the sources' files.
        bytes_total: of all of them; None where that is not known.
    """

    phase: str
    documents: int
    bytes_done: int
    bytes_total: int | None


Report = Callable[[Progress], None]

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def console_progress() -> Iterator[Report]:
    """A report to stderr."""
    with _bar() if sys.stderr.isatty() else _lines() as report:
        yield report


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TextColumn("{task.fields[documents]:,} documents"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:
        tasks: dict[str, TaskID] = {}

        def report(progress: Progress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bars.add_task(progress.phase, total=None, documents=0)
            bars.update(
                tasks[progress.phase],
                completed=progress.bytes_done,
                total=progress.bytes_total,
                documents=progress.documents,
            )

        yield report


@contextmanager
def _lines() -> Iterator[Report]:
    began: dict[str, float] = {}
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        start = began.setdefault(progress.phase, now)
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        speed = progress.bytes_done / max(now - start, 1e-9)
        total, left = "", ""
        if progress.bytes_total is not None:
            total = f" of {progress.bytes_total / 1e6:,.0f}"
            left = f", {(progress.bytes_total - progress.bytes_done) / max(speed, 1):,.0f} s left"
        print(
            f"{progress.phase}: {progress.bytes_done / 1e6:,.0f}{total} MB, {progress.documents:,} documents, "
            f"{speed / 1e6:.1f} MB/s{left}",
            file=sys.stderr,
        )

    yield report
