"""The device that a run computes on: which it is, what compiles on it, and its peak."""

import ctypes
import os
import shutil
import time

import torch

from shearling.errors import UserError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pick_device(name: str) -> torch.device:
    """The device that `training.device` names; `auto` is a GPU where there is one.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("training.device: this PyTorch sees no CUDA device; use training.device=cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def cxx_compiler() -> str | None:
    """The C++ compiler that torch.compile would use on the CPU, if the machine has one."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def pick_compile(option: bool | str, device: torch.device, long: bool = False) -> tuple[bool, str]:
    """Whether to compile the blocks, and why, in words for the log.

    `auto` compiles on a GPU, and on a CPU where the run is `long` enough to win back the ten seconds or so that it
    takes.

    Raises:
        UserError: compilation is demanded and no C++ compiler is there.
    """
    if option is False:
        return False, "off"
    if cxx_compiler() is None:
        if option is True:
            raise UserError("training.compile: no C++ compiler (g++ or clang++) found: install one or set it to auto")
        return False, "off: no C++ compiler (g++ or clang++) found"
    if option is True:
        return True, "on"
    if device.type == "cuda" or long:
        return True, "on"
    return False, "off: the run is too short to win back its time"


def measure_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """The fastest square matrix product seen on `device` within about `seconds`, in FLOP/s.

    This is the ceiling that model FLOPs utilization is a share of; it is measured, never looked up.
    """
    best = 0.0
    for size in (1024, 2048):
        a = torch.randn(size, size, device=device).to(dtype)
        out = a @ a
        deadline = time.perf_counter() + seconds / 2
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step instead of giving it back to the system.

    By default glibc maps large tensors anew each time and returns their pages when freed; on a CPU the page faults
    take a good part of a training step. Where the C library is another one, nothing changes. See mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest value that it takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def describe(device: torch.device) -> str:
    """The device in words, for provenance."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
