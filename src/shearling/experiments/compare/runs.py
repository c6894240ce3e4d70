"""Training runs in processes of their own, side by side; what is finished is never repeated."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from shearling.config import dump
from shearling.errors import UserError
from shearling.experiments.compare.display import Display
from shearling.experiments.compare.plan import Arm
from shearling.experiments.compare.tasks import Task, is_finished
from shearling.files import write_atomically
from shearling.machine import available_cores
from shearling.training.run_folder import read_json

Process: TypeAlias = "subprocess.Popen[bytes]"

LIBRARIES = 2**29
"""Bytes that Python and PyTorch take in each process before there is a model."""

_POLL_SECONDS = 0.25
_LAST_LINES = 12


def run_all(tasks: Sequence[Task], *, jobs: int, threads: int, display: Display, check: Callable[[], None]) -> None:
    """Bring all tasks to their results, `jobs` at a time; each process computes with `threads` threads.

    Args:
        check: called all along; what it raises stops the running processes, which save first.

    Raises:
        UserError: a run ended without results, or a folder holds another run.
    """
    waiting = deque(task for task in tasks if not is_finished(task))
    running: list[tuple[Task, Process]] = []
    display.begin(tasks, waiting)
    try:
        while waiting or running:
            check()
            while waiting and len(running) < jobs:
                task = waiting.popleft()
                running.append((task, _start(task, threads)))
            for task, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((task, process))
                if not is_finished(task):
                    raise _crash(task, process.returncode)
                display.finished(task, read_json(task.run.results), [each for each, _ in running])
            display.update([each for each, _ in running])
            time.sleep(_POLL_SECONDS)
    finally:
        _stop([process for _, process in running])


def side_by_side(arms: Sequence[Arm], threads: int) -> int:
    """How many runs this machine takes at a time: as cores and memory allow, one where they share a GPU."""
    if any(_on_gpu(arm) for arm in arms):
        return 1
    largest = max(arm.resolved.memory.total for arm in arms) + LIBRARIES
    return max(1, min(available_cores() // threads, _free_memory() // largest))


def _on_gpu(arm: Arm) -> bool:
    if arm.config.training.device == "cpu":
        return False
    from shearling.training.device import pick_device

    return pick_device(arm.config.training.device).type != "cpu"


def _free_memory() -> int:
    """Bytes that processes could have: on Linux with what its caches would give back, elsewhere half of all."""
    table = Path("/proc/meminfo")
    if table.exists():
        line = next(line for line in table.read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _start(task: Task, threads: int) -> Process:
    folder = task.config.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", dump(task.config))
    with task.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "shearling", "train", str(folder / "config.yaml"), "--resume"],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal reaches this process alone, which asks each to stop once
        )


def _stop(processes: Iterable[Process]) -> None:
    """Ask what still runs to save and end. SIGTERM: what was started in the background may ignore SIGINT."""
    processes = list(processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:  # asked a second time: end at once
        for process in processes:
            process.kill()
        raise


def _crash(task: Task, status: int) -> UserError:
    lines = [line for line in task.log.read_text(errors="replace").splitlines() if line.strip()][-_LAST_LINES:]
    if status < 0:
        lines.append(f"killed by {signal.Signals(-status).name}: where memory is short, lower --jobs")
    return UserError(
        f"{task.config.output_dir}: {task.arm}, {task.label}, ended with status {status} and without results; its last "
        "words:\n" + "\n".join(f"  {line}" for line in lines) + "\nmend that and give the same command again"
    )
