"""How far work on bytes is: a bar on a terminal, else a line now and then. Told on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Attributes:
        phase: what is being done, in a few words.
        done: bytes behind us.
        total: bytes in all; None where that is not known.
        before: of the bytes done, how many were there before the work began; they do not count for the rate.
        items: things done so far, of the kind that the display counts.
    """

    phase: str
    done: int
    total: int | None
    before: int = 0
    items: int = 0


Report = Callable[[Progress], None]
"""Takes how far the work is. The first of a phase begins its clock."""

Advance = Callable[[int], None]
"""Takes the bytes that came or went since it was last called."""


@contextmanager
def console_report(items: str = "", decimals: int = 1) -> Iterator[Report]:
    """Shows phases one after another: bytes, rate and time left.

    Args:
        items: what is counted beside the bytes, in the plural; empty: nothing is.
        decimals: of the megabytes in lines.
    """
    with _bars(items) if sys.stderr.isatty() else _lines(items, decimals) as report:
        yield report


@contextmanager
def console_progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Shows one piece of work.

    Args:
        what: is coming or going, in a few words.
        total: bytes in all.
        done: of these, how many were there before; they do not count for the rate.
    """
    with console_report() as report:
        now = done

        def advance(count: int) -> None:
            nonlocal now
            now += count
            report(Progress(what, now, total, done))

        advance(0)
        yield advance


@contextmanager
def _bars(items: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        *([TextColumn("{task.fields[items]:,} " + items)] if items else ()),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:
        tasks: dict[str, TaskID] = {}

        def report(progress: Progress) -> None:
            phase = progress.phase
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=progress.total, completed=progress.before, items=0)
            bars.update(tasks[phase], completed=progress.done, items=progress.items)

        yield report


@contextmanager
def _lines(items: str, decimals: int) -> Iterator[Report]:
    began: dict[str, float] = {}
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        start = began.setdefault(progress.phase, now)
        if start == now or now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = (progress.done - progress.before) / (now - start)
        total, left = "", ""
        if progress.total is not None:
            total = f" of {progress.total / 1e6:,.{decimals}f}"
            left = f", {(progress.total - progress.done) / max(rate, 1):,.0f} s left"
        counted = f", {progress.items:,} {items}" if items else ""
        print(
            f"{progress.phase}: {progress.done / 1e6:,.{decimals}f}{total} MB{counted}, {rate / 1e6:.1f} MB/s{left}",
            file=sys.stderr,
        )

    yield report
