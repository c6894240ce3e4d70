"""What the kernels are made of, against float64 and plain integers; and the same results on other processors."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shearling.engine.kernels.arithmetic import dot4, exp, splat_int, to_floats
from shearling.engine.kernels.compiling import entry, kernel
from shearling.engine.kernels.memory import (
    as_f32,
    load,
    load_bytes,
    load_first,
    number,
    put,
    store,
    store_halves,
)
from shearling.engine.kernels.vectors import bf16_at, i8_at
from shearling.quantization import CODECS

DRAW = np.random.default_rng(0)


@entry
def exponentials(x: int, y: int, count: int) -> None:
    for i in range(0, count, 16):
        store(as_f32(y), i, exp(load(as_f32(x), i)))


@entry
def dots(unsigned: int, signed: int, to: int) -> None:
    store(as_f32(to), 0, to_floats(dot4(splat_int(np.int32(7)), load_bytes(unsigned), load_bytes(signed))))


@entry
def halves(x: int, to: int) -> int:
    return store_halves(to, load(as_f32(x), 0))


def narrowed(to: Any, x: int, count: int) -> None:
    for i in range(count):
        put(to, i, number(as_f32(x), i))


@entry
def first_of(x: int, count: int, to: int) -> None:
    store(as_f32(to), 0, load_first(as_f32(x), 0, count))


def where(array: np.ndarray) -> int:
    return array.ctypes.data


def test_exp_is_that_of_float64_to_two_units_in_the_last_place():
    x = np.linspace(-87.2, 88, 16 * 4000).astype(np.float32)
    y = np.empty_like(x)
    exponentials(where(x), where(y), len(x))
    exact = np.exp(x.astype(np.float64))
    assert np.abs(y - exact).max(initial=0, where=exact < 1) < 1e-6
    assert np.abs(y / exact - 1).max() < 2 * np.finfo(np.float32).eps


def test_exp_of_what_softmax_masks_is_zero():
    x = np.full(16, -np.inf, np.float32)
    x[1::2] = -1e4
    y = np.ones_like(x)
    exponentials(where(x), where(y), 16)
    assert not y.any()


def test_dot4_sums_four_products_of_an_unsigned_and_a_signed_byte():
    unsigned, signed = DRAW.integers(0, 256, 64).astype(np.uint8), DRAW.integers(-128, 128, 64).astype(np.int8)
    unsigned[:4], signed[:4] = 255, -128
    to = np.empty(16, np.float32)
    dots(where(unsigned), where(signed), where(to))
    np.testing.assert_array_equal(to, (unsigned.astype(int) * signed).reshape(16, 4).sum(1) + 7)


def test_a_vector_of_whole_numbers_is_its_high_and_low_bytes():
    x = DRAW.integers(-127 * 257, 127 * 257 + 1, 16).astype(np.float32)
    x[:2] = -127 * 257, 127 * 257
    to = np.zeros(48, np.int8)
    assert halves(where(x), where(to)) == x.sum()
    np.testing.assert_array_equal(256 * to[:16].astype(int) + to[32:], x)


def test_stored_numbers_are_rounded_as_the_codecs_round():
    x = np.concatenate([DRAW.standard_normal(60) * 40, [0.5, 1.5, 2.5, -0.5]]).astype(np.float32)
    bf16, i8 = np.zeros(64, np.uint16), np.zeros(64, np.int8)
    for kind, to in ((bf16_at, bf16), (i8_at, i8)):
        ctypes.CFUNCTYPE(None, *3 * [ctypes.c_int64])(kernel(narrowed, kind))(where(to), where(x), 64)
    np.testing.assert_array_equal(bf16, CODECS["bf16"].encode(x[None])[0][0])
    np.testing.assert_array_equal(i8[np.abs(x) < 127], np.rint(x)[np.abs(x) < 127])


@pytest.mark.parametrize("count", [0, 1, 15, 16])
def test_the_first_numbers_are_loaded_and_zeros_behind_them(count):
    x, to = np.arange(1, 17, dtype=np.float32), np.full(16, 9, np.float32)
    first_of(where(x), count, where(to))
    np.testing.assert_array_equal(to, np.where(np.arange(16) < count, x, 0))


ANYWHERE = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_fast import TOKENS, all_logits, stored, torch_model
found = [all_logits(stored(torch_model(intermediate_size=128), codec)) for codec in ("q8_0", "q4_1", "f16")]
np.save(sys.argv[2], np.stack(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("features", ["", "+avx,+avx2,+fma,+f16c,+avxvnni"], ids=["plain", "AVX-VNNI"])
def test_other_processors_give_the_same_to_the_last_bit(features, tmp_path):
    """Compiled for a processor that has less: the arithmetic is the same, whatever instructions carry it out."""
    if features and "avx_vnni" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX-VNNI to run such code on")
    results = []
    for name, options in (("here", {}), ("there", {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features})):
        environment = {**os.environ, **options, "SHEARLING_CACHE": str(tmp_path / name)}
        file = tmp_path / f"{name}.npy"
        command = [sys.executable, "-c", ANYWHERE, str(Path(__file__).parent), str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        results.append(np.load(file))
    np.testing.assert_array_equal(results[0], results[1])
