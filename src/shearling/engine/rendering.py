"""Chat templates are rendered in a process of their own, which the kernel bounds in time and memory.

It starts with the first template and serves until this process ends: that takes as long as importing Jinja here would.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from threading import Lock
from typing import Any

SECONDS = 2
"""Of the processor, that one rendering may take; up to one more, since the kernel counts whole ones."""

MEMORY = 512 << 20
"""Bytes that the process may hold, Python and Jinja among them."""

PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from shearling.engine.jinja import serve; serve()"

Process = subprocess.Popen[bytes]


class RenderingError(Exception):
    """What a template came to in place of a text."""


def render(source: str, **variables: Any) -> str:
    """The text that a template makes of some variables, which JSON can express.

    Raises:
        RenderingError: it is no template, raises an error, or takes too much.
    """
    return _renderer(os.getpid()).render(source, variables)


class Renderer:
    """A process that renders one template at a time. What it is at when it is interrupted ends with it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._idle: Process | None = None
        atexit.register(self.close)

    def render(self, source: str, variables: dict[str, Any]) -> str:
        """As the function `render`."""
        request = json.dumps({"source": source, "variables": variables}).encode() + b"\n"
        with self._lock:
            if self._idle and self._idle.poll() is not None:
                self.close()
            process, self._idle = self._idle or _start(), None
            try:
                answer = json.loads(_exchange(process, request))
                self._idle = process
            finally:
                if self._idle is None:
                    _end(process)
        if "error" in answer:
            raise RenderingError(answer["error"])
        return str(answer["text"])

    def close(self) -> None:
        """End the process. The next template starts another."""
        if self._idle:
            _end(self._idle)
            self._idle = None


@lru_cache(maxsize=1)
def _renderer(process_id: int) -> Renderer:
    """Of this process: one that is forked from it has its own."""
    return Renderer()


def _start() -> Process:
    return subprocess.Popen(
        [sys.executable, "-I", "-c", PROGRAM, *sys.path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, which passes it on
    )  # fmt: skip


def _exchange(process: Process, request: bytes) -> bytes:
    assert process.stdin
    assert process.stdout
    answer = b""
    with suppress(BrokenPipeError):  # it has ended: its status says why
        process.stdin.write(request)
        process.stdin.flush()
        answer = process.stdout.readline()
    if answer.endswith(b"\n"):
        return answer
    status = process.wait()
    if status == -signal.SIGXCPU:
        raise RenderingError(f"it takes more than {SECONDS} seconds")
    raise RenderingError(f"its process ended with status {status}")


def _end(process: Process) -> None:
    process.kill()
    process.wait()
    assert process.stdin
    assert process.stdout
    process.stdout.close()
    with suppress(BrokenPipeError):  # what was not read goes with its reader
        process.stdin.close()
