"""Kernels are compiled once for a processor, and kept on disk in a folder that belongs to their source."""

import functools
import hashlib
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar, cast

import numba
from numba import types
from numba.core import config, event, sigutils
from numba.core.caching import FunctionCache, NullCache
from numba.core.ccallback import CFunc

Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def kernel_folder() -> Path:
    """Where compiled kernels are kept: `kernels` in SHEARLING_CACHE, else in the user's cache folder.

    numba looks at one source file to see whether a kernel is stale; the folder's name stands for all of them.
    """
    sources = hashlib.sha256(f"{sys.version} {numba.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(path.read_bytes())
    cache = os.environ.get("SHEARLING_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "shearling")
    return Path(cache).expanduser() / "kernels" / sources.hexdigest()[:16]


@functools.cache
def _obstacle() -> str:
    """Why compiled kernels cannot be kept; empty where they can."""
    try:
        kernel_folder().mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=kernel_folder()).close()
    except OSError as error:
        return f"{kernel_folder().parent} cannot be written ({error.strerror})"
    return ""


class _Notice(event.Listener):
    """Says, once a process, why there is a pause."""

    _said = False

    def on_start(self, event: Any) -> None:
        if self._said or not event.data["module"].startswith(__package__):
            return
        self._said = True
        often = f"at each start, as {_obstacle()}: set SHEARLING_CACHE to a folder that can" if _obstacle() else "once"
        print(f"compiling kernels for this processor, up to ten seconds, {often}", file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:run_pass", _Notice())


class _Kept(FunctionCache):
    """What was compiled of a function, on disk. A damaged file is as none; a full disk keeps nothing, with a word."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # pickles that were cut, or overwritten, raise whatever they lead to; the notice tells of it
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            text = f"kernels cannot be kept in {kernel_folder().parent} ({error.strerror}): make room there"
            print(f"{text}, or set SHEARLING_CACHE to another folder", file=sys.stderr, flush=True)


def _cache(function: Callable[..., Any]) -> Any:
    if _obstacle():
        return NullCache()
    before = config.CACHE_DIR
    config.CACHE_DIR = str(kernel_folder())
    try:
        return _Kept(function)
    finally:
        config.CACHE_DIR = before


def entry(function: Function) -> Function:
    """A function that Python calls: compiled when it is first called, run without the interpreter's lock."""
    compiled: Any = numba.njit(function, nogil=True, error_model="numpy")
    compiled._cache = _cache(function)
    return cast(Function, compiled)


def part(function: Function) -> Function:
    """A function that only compiled ones call."""
    compiled: Function = numba.njit(function, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
    return compiled


def inlined(function: Function) -> Function:
    """As `part`, for the inside of a loop: LLVM by itself leaves a call where a body is long."""
    compiled: Function = numba.njit(
        function, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True
    )
    return compiled


@functools.cache
def kernel(function: Callable[..., None], *kinds: types.Type) -> int:
    """The address of a function of whole numbers, the first of them addresses of these kinds; `call` reaches it.

    A model needs few of all kernels, and each is optimized once, whatever calls it.
    """
    others = [types.int64] * (len(inspect.signature(function).parameters) - len(kinds))
    signature = sigutils.normalize_signature(types.void(*kinds, *others))
    compiled = CFunc(function, signature, locals={}, options={"nopython": True, "error_model": "numpy"})
    compiled._cache = _cache(function)
    compiled.compile()
    return int(compiled.address)
