"""Threads that wait for work: on their core for a moment, asleep after that."""

import os
import threading
import weakref
from typing import Any

import numpy as np

from shearling.engine.kernels.compiling import entry
from shearling.engine.kernels.control import atomic_add, atomic_load, atomic_store, pause
from shearling.engine.kernels.forward import forward, give_way

CALLS, LEAVE, COMING = 0, 64, 128
"""Where in the control block, in bytes, the passes so far are counted, whether to leave, and the passes announced."""

CONTROL_BYTES = 192
SPINS = 20_000
"""Turns of a waiting loop, about half a millisecond: longer than anything that lies between two tokens."""

CALLED, TIRED, LEFT = range(3)


@entry
def wait(control: int, seen: int) -> int:
    """Wait until there is work: for a moment, and longer where it has been announced."""
    while True:
        for _ in range(SPINS):
            if atomic_load(control + LEAVE):
                return LEFT
            if atomic_load(control + CALLS) != seen:
                return CALLED
            pause()
        give_way()
        if atomic_load(control + COMING) == seen:
            return TIRED


@entry
def announce(control: int, passes: int) -> None:
    """Keep those who wait on their cores from lying down, as a pass is coming (1), or let them (0)."""
    atomic_store(control + COMING, atomic_load(control + CALLS) + passes)


@entry
def take_part(plans: Any, control: int, thread: int, seen: int) -> int:
    """One pass as the first thread; or, as one of the others, every pass until none comes for long.

    Returns:
        The passes seen; −1 when there will be no more.
    """
    if thread == 0:
        atomic_add(control + CALLS, 1)
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
        self._followers = threads - 1
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._asleep = [threading.Event() for _ in range(self._followers)]
        self._bells = [threading.Semaphore(0) for _ in range(self._followers)]
        seen = int(self._room[(self._control - self._room.ctypes.data + CALLS) // 8])
        for number, (asleep, bell) in enumerate(zip(self._asleep, self._bells, strict=True), 1):
            arguments = (self._plans, self._room, self._control, number, seen, asleep, bell)
            threading.Thread(target=_serve, args=arguments, daemon=True).start()
        weakref.finalize(self, _dismiss, self._room, self._control, self._bells)

    def run(self) -> None:
        """One pass of what the plan says.

        It is announced first, and the sleepers looked for after: having lain down, they look for an announcement
        once more. The pass itself, its call included, is one step for the interpreter: what interrupts this does so
        before the others have begun, or when all are done.
        """
        if os.getpid() != self._process:  # a fork takes no threads along
            self._start()
        announce(self._control, 1)
        try:
            self._ring()
            take_part(self._plans, self._control, 0, 0)
        finally:
            announce(self._control, 0)

    def _ring(self) -> None:
        for asleep, bell in zip(self._asleep, self._bells, strict=True):
            if asleep.is_set():
                bell.release()  # before the flag goes: an interrupt in between rings twice, and not never
                asleep.clear()


def _serve(plans: Any, room: Any, control: int, number: int, seen: int, asleep: Any, bell: Any) -> None:
    while True:
        seen = take_part(plans, control, number, seen)
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
