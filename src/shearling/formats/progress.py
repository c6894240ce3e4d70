"""How far a file is that comes or goes: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]
"""Takes the bytes that came or went since it was last called."""


@contextmanager
def console_progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Tells on stderr: bytes, rate and time left.

    Args:
        what: is coming or going, in a few words.
        total: bytes in all.
        done: of these, how many were there before; they do not count for the rate.
    """
    with _bar(what, total, done) if sys.stderr.isatty() else _lines(what, total, done) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:
        task = bars.add_task(what, total=total, completed=done)
        yield lambda count: bars.advance(task, count)


@contextmanager
def _lines(what: str, total: int, done: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    came = 0

    def advance(count: int) -> None:
        nonlocal came, last
        came += count
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = came / max(now - start, 1e-9)
        print(
            f"{what}: {(done + came) / 1e6:,.1f} of {total / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s, "
            f"{(total - done - came) / max(rate, 1):,.0f} s left",
            file=sys.stderr,
        )

    yield advance
