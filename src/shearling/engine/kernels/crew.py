"""Threads that wait for work: on their core for a moment, asleep after that."""

import threading
import weakref
from typing import Any

import numpy as np

from shearling.engine.kernels.compiling import entry
from shearling.engine.kernels.control import atomic_add, atomic_load, pause
from shearling.engine.kernels.forward import forward, give_way

CALLS, LEAVE = 0, 64
"""Where in the control block, in bytes, the passes so far are counted, and whether to leave."""

CONTROL_BYTES = 128
SPINS = 20_000
"""Turns of a waiting loop, about half a millisecond: longer than anything that lies between two tokens."""

CALLED, TIRED, LEFT = range(3)


@entry
def wait(control: int, seen: int) -> int:
    """Wait until there is work, for a moment."""
    for _ in range(SPINS):
        if atomic_load(control + LEAVE):
            return LEFT
        if atomic_load(control + CALLS) != seen:
            return CALLED
        pause()
    give_way()
    return TIRED


@entry
def call_out(control: int) -> None:
    """Tell those who wait on their cores that there is work."""
    atomic_add(control + CALLS, 1)


@entry
def take_part(plans: Any, control: int, thread: int, seen: int) -> int:
    """One pass as the first thread; or, as one of the others, every pass until none comes for long.

    Returns:
        The passes seen; −1 when there will be no more.
    """
    if thread == 0:
        forward(plans, 0)
        return seen
    while True:
        state = wait(control, seen)
        if state != CALLED:
            return -1 if state == LEFT else seen
        seen += 1
        forward(plans, thread)


class Crew:
    """The threads of one engine.

    Args:
        threads: that take part in a pass, the caller's included.
        plans: PLAN (1,), which says before each pass what it is about.
    """

    def __init__(self, threads: int, plans: Any) -> None:
        self._plans = plans
        self._room = np.zeros(CONTROL_BYTES // 8 + 8, np.int64)
        self._control = -(-self._room.ctypes.data // 64) * 64
        self._asleep = [threading.Event() for _ in range(threads - 1)]
        self._bells = [threading.Semaphore(0) for _ in range(threads - 1)]
        for number in range(threads - 1):
            arguments = (plans, self._room, self._control, number, self._asleep[number], self._bells[number])
            threading.Thread(target=_serve, args=arguments, daemon=True).start()
        weakref.finalize(self, _dismiss, self._room, self._control, self._bells)

    def run(self) -> None:
        """One pass of what the plan says.

        Called out first, and the sleepers looked for after: they look for a call once more after they have lain down.
        """
        call_out(self._control)
        for asleep, bell in zip(self._asleep, self._bells, strict=True):
            if asleep.is_set():
                asleep.clear()
                bell.release()
        take_part(self._plans, self._control, 0, 0)


def _serve(plans: Any, room: Any, control: int, number: int, asleep: Any, bell: Any) -> None:
    seen = 0
    while True:
        seen = take_part(plans, control, number + 1, seen)
        if seen < 0:
            return
        asleep.set()
        if wait(control, seen) == TIRED:  # a call that came before the bell was hung up is heard here
            bell.acquire()
        asleep.clear()


def _dismiss(room: Any, control: int, bells: list[threading.Semaphore]) -> None:
    room[(control - room.ctypes.data + LEAVE) // 8] = 1
    for bell in bells:
        bell.release()
