"""Kernels are compiled once for a processor; who waits for it is told, and nobody else."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import sys
from numba import int64
from shearling.engine.kernels.compiling import kernel
from shearling.engine.kernels.rows import look_up_row
from shearling.engine.kernels import vectors
for name in sys.argv[1:]:
    kernel(look_up_row, getattr(vectors, name), int64)
"""


def told(cache: Path, *kinds: str, bytes_at_most: int = resource.RLIM_INFINITY, **environment: str) -> str:
    """What is said where look-ups of these kinds of numbers are made ready, and files cannot grow larger than that."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_at_most, resource.RLIM_INFINITY))

    variables = {**os.environ, "SHEARLING_CACHE": str(cache), **environment}
    command = [sys.executable, "-c", COMPILE, *kinds]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    return done.stderr


def compiled(cache: Path) -> int:
    return len(list(cache.rglob("*.nbc")))


def test_who_compiles_is_told_in_one_line_and_the_next_start_finds_it_done(tmp_path):
    assert told(tmp_path, "f32_at", "f16_at").count("compiling kernels for this processor") == 1
    assert compiled(tmp_path) == 2
    assert told(tmp_path, "f16_at", "f32_at") == ""
    assert compiled(tmp_path) == 2


def test_what_another_model_needs_is_told_again(tmp_path):
    told(tmp_path, "f32_at")
    assert "compiling" in told(tmp_path, "f32_at", "bf16_at")


def test_another_processor_finds_nothing_made_for_it(tmp_path):
    told(tmp_path, "f32_at")
    assert "compiling" in told(tmp_path, "f32_at", NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")


@pytest.mark.parametrize("folder", ["a file", "a file/kernels"])
def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left_elsewhere(folder, tmp_path):
    (tmp_path / "a file").write_text("not a folder")
    said = told(tmp_path / folder, "f32_at")
    assert f"at each start, as {tmp_path / folder}" in said
    assert "set SHEARLING_CACHE" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


@pytest.mark.parametrize("length", [0, 10, 100])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_what_is_damaged_is_compiled_anew_and_then_whole(ending, length, tmp_path):
    told(tmp_path, "f32_at")
    for file in tmp_path.rglob(f"*.{ending}"):
        file.write_bytes(file.read_bytes()[:length])
    assert "compiling" in told(tmp_path, "f32_at")
    assert told(tmp_path, "f32_at") == ""


def test_a_full_disk_keeps_nothing_and_stops_nobody(tmp_path):
    said = told(tmp_path, "f32_at", bytes_at_most=1000)
    assert f"kernels cannot be kept in {tmp_path / 'kernels'} (File too large)" in said
    assert compiled(tmp_path) == 0
