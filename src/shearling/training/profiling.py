"""Where a step's time goes, by `torch.profiler`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

STEPS_BEFORE = 2
"""Steps that are passed over: caches fill, and what is compiled on demand is compiled."""

ROWS = 40


@contextmanager
def profiled(steps: int | None, folder: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Record some steps and write `trace.json`, for Perfetto, and `table.txt`, the operators that take longest.

    Args:
        steps: how many are recorded, fewer where the run ends; None: nothing is.
        folder: where the files go.
        say: is told of them.

    Yields:
        What is to be called after each step.
    """
    if steps is None:
        yield lambda: None
        return
    on_gpu = torch.cuda.is_available()

    def write(found: profile) -> None:
        folder.mkdir(exist_ok=True)
        found.export_chrome_trace(str(folder / "trace.json"))
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        (folder / "table.txt").write_text(found.key_averages().table(sort_by=order, row_limit=ROWS) + "\n")
        say(f"profile: {folder / 'table.txt'}, and trace.json for https://ui.perfetto.dev")

    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
        schedule=schedule(wait=STEPS_BEFORE - 1, warmup=1, active=steps, repeat=1),
        on_trace_ready=write,
    ) as recorder:
        yield recorder.step
