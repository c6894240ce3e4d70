"""Stopping when asked: the first signal asks the loop to save and end, the second ends it at once."""

import signal
from types import FrameType
from typing import Any

from shearling.errors import Interrupted


class Interrupts:
    """While entered, SIGINT and SIGTERM are noted instead of killing the process; `check` raises where it is safe."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises:
        Interrupted: a signal has arrived.
        """
        if self.received is not None:
            raise Interrupted(self.received)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
