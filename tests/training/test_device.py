"""Which device a run computes on, and how fast it can be."""

import time

import pytest
import torch

from shearling.errors import UserError
from shearling.training.device import cxx_compiler, describe, measure_peak, pick_compile, pick_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("option", "available", "picked"),
    [
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_the_device_is_the_one_asked_for_or_a_gpu_where_there_is_one(monkeypatch, option, available, picked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert pick_device(option).type == picked


def test_asking_for_a_gpu_that_is_not_there_names_the_key_and_the_mend(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"training\.device: .* use training\.device=cpu"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("option", "device", "long", "compiles"),
    [
        (False, GPU, True, False),
        ("auto", CPU, False, False),
        ("auto", CPU, True, True),
        ("auto", GPU, False, True),
        (True, CPU, False, True),
        (True, GPU, False, True),
    ],
)
def test_with_a_compiler_blocks_are_compiled_on_demand_or_where_it_pays(
    tmp_path, monkeypatch, option, device, long, compiles
):
    compiler = tmp_path / "g++"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert pick_compile(option, device, long)[0] is compiles


def test_the_compiler_is_the_one_that_cxx_names(tmp_path, monkeypatch):
    for name in ("g++", "my-compiler"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "my-compiler")
    assert cxx_compiler() == str(tmp_path / "my-compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_about_the_speed_of_a_large_product(dtype):
    a = torch.ones(1024, 1024, dtype=dtype)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - began)
    fastest, usual = 2 * 1024**3 / min(times), 2 * 1024**3 / sorted(times)[4]
    peak = measure_peak(CPU, dtype)
    assert 0.5 * usual < peak < 4 * fastest  # other work on the machine slows either down


def test_measuring_the_peak_takes_about_the_time_it_is_given():
    began = time.perf_counter()
    measure_peak(CPU, torch.float32, seconds=0.2)
    assert time.perf_counter() - began < 2


def test_a_cpu_is_described_with_its_threads():
    assert describe(CPU) == f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
