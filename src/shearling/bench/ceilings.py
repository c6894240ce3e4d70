"""What this machine can do at best: bytes read from memory and from its last cache, and matrix products.

A process of its own, `python -m shearling.bench.ceilings`, measures, so that nothing of it stays in the caller's. It is
asked for bandwidths again and again: those of a virtual machine's memory move with what its neighbours do.
"""

import json
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shearling.bench.process import Worker, answer
from shearling.engine.kernels.arithmetic import add, splat, total
from shearling.engine.kernels.compiling import entry
from shearling.engine.kernels.memory import as_f32, load
from shearling.engine.kernels.vectors import LANES

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
BEYOND_CACHE = 256 << 20
"""Bytes that are read to reach the memory where no cache is larger than a quarter of them."""

SECONDS = 1.0
"""For each of the products."""

SECONDS_READING = 0.3
"""For each of the bandwidths."""

SHORTEST = 0.05
"""Seconds that one measurement lasts at least: starting threads takes some hundred microseconds."""

UNIT = 8 * LANES
"""Numbers that one turn of the reading loop takes."""

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@entry
def read(address: int, count: int, passes: int) -> float:
    """Read so many fp32, a multiple of 128, again and again; eight sums keep the loads from waiting for each other."""
    source = as_f32(address)
    a = b = c = d = e = f = g = h = splat(np.float32(0.0))
    for _ in range(passes):
        for i in range(0, count, UNIT):
            a, b = add(a, load(source, i)), add(b, load(source, i + LANES))
            c, d = add(c, load(source, i + 2 * LANES)), add(d, load(source, i + 3 * LANES))
            e, f = add(e, load(source, i + 4 * LANES)), add(f, load(source, i + 5 * LANES))
            g, h = add(g, load(source, i + 6 * LANES)), add(h, load(source, i + 7 * LANES))
    return total(add(add(add(a, b), add(c, d)), add(add(e, f), add(g, h))))


class Ceilings:
    """The machine's ceilings, measured in another process, with as many threads as are given; ends with its context.

    Attributes:
        peaks: `fp32_flops` and `bf16_flops` per second, in square products; `cache_bytes`, the size of the last
            level, None where the system does not say.
    """

    def __init__(self, threads: int) -> None:
        self._worker = Worker("shearling.bench.ceilings", {"threads": threads})
        self.peaks: dict[str, float | None] = self._worker.ready

    def __enter__(self) -> "Ceilings":
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.stop()

    def bandwidths(self) -> dict[str, float | None]:
        """`dram_bytes_per_second`, and `cache_bytes_per_second` of the last level, None as its size: those of now."""
        return self._worker.ask("bandwidths")


def read_bandwidth(n_bytes: int, threads: int, seconds: float = SECONDS_READING) -> float:
    """The fastest reading of so many bytes, a part for each thread, that was seen in so many seconds: bytes/s."""
    share = max(1, n_bytes // 4 // threads // UNIT) * UNIT
    numbers = np.ones(share * threads, np.float32)
    read(numbers.ctypes.data, UNIT, 1)  # compiles it
    deadline = time.perf_counter() + seconds
    best, passes = 0.0, 1
    while True:
        took = _read_together(numbers, share, threads, passes)
        best = max(best, passes * numbers.nbytes / took)
        if time.perf_counter() > deadline and took >= SHORTEST / 2:
            return best
        passes = max(passes, int(passes * SHORTEST / took) + 1)


def _read_together(numbers: npt.NDArray[np.float32], share: int, threads: int, passes: int) -> float:
    """Seconds from the start of all to the end of the last."""
    start = threading.Barrier(threads + 1)
    ends = [0.0] * threads

    def part(thread: int) -> None:
        start.wait()
        read(numbers.ctypes.data + 4 * share * thread, share, passes)
        ends[thread] = time.perf_counter()

    crew = [threading.Thread(target=part, args=(thread,)) for thread in range(threads)]
    for member in crew:
        member.start()
    began = time.perf_counter()
    start.wait()
    for member in crew:
        member.join()
    return max(ends) - began


def last_cache_bytes(caches: Path = CACHES) -> int | None:
    """The size of the largest cache that the first core reads data through; None where the system does not say."""
    sizes = []
    for index in caches.glob("index*"):
        kind, size = index / "type", index / "size"
        if kind.is_file() and size.is_file() and kind.read_text().strip() != "Instruction":
            written = re.fullmatch(r"(\d+)([KMG]?)\s*", size.read_text())
            sizes += [int(written[1]) * UNITS[written[2]]] if written else []
    return max(sizes, default=None)


def _peaks(threads: int) -> dict[str, float]:
    import torch

    from shearling.training.device import measure_peak

    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    kinds = (("fp32", torch.float32), ("bf16", torch.bfloat16))
    return {f"{name}_flops": measure_peak(cpu, dtype, SECONDS) for name, dtype in kinds}


def main() -> None:
    """Serve until standard input ends."""
    threads, cache = json.loads(sys.stdin.readline())["threads"], last_cache_bytes()
    answer(**_peaks(threads), cache_bytes=cache)
    for _ in sys.stdin:
        answer(
            dram_bytes_per_second=read_bandwidth(max(4 * (cache or 0), BEYOND_CACHE), threads),
            cache_bytes_per_second=None if cache is None else read_bandwidth(cache // 2, threads),
        )


if __name__ == "__main__":
    main()
