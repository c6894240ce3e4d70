"""Contenders in processes of their own, driven line by line: a JSON line each way on standard input and output."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from shearling.errors import UserError

STATUS = Path("/proc/self/status")


class Worker:
    """The parent's end of `python -m MODULE`.

    Args:
        module: what runs there. It answers each line with one of `answer`.
        order: its first line.

    Attributes:
        ready: the answer to the order.

    Raises:
        UserError: the process says so, or ended early.
    """

    def __init__(self, module: str, order: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.ready = self.ask(json.dumps(order))
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def ask(self, line: str) -> dict[str, Any]:
        """The figures that answer a line."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answered = self._process.stdout.readline()
        except BrokenPipeError:
            answered = ""
        if not answered:
            raise UserError(f"bench: a contender ended early (status {self._process.wait()}); its message stands above")
        figures: dict[str, Any] = json.loads(answered)
        if "error" in figures:
            raise UserError(figures["error"])
        return figures

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def answer(**figures: Any) -> None:
    """The process's end: figures, or `error` with a text for the user."""
    print(json.dumps(figures), flush=True)


def peak_bytes() -> int:
    """Resident memory of this process at its highest, libraries included.

    Linux says it of the program itself. What `getrusage` says begins with the parent's, from which the process came.
    """
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def anonymous_bytes() -> int | None:
    """Memory of this process that is no file's; None where the system does not say."""
    return _status_bytes("RssAnon")


def _status_bytes(key: str) -> int | None:
    lines = STATUS.read_text().splitlines() if STATUS.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
