"""Affine INT4: what it stores, and where it is exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_matrices import gaussian, matrices

from shearling.quantization import parse_codec
from shearling.quantization.int4 import GROUPS


@pytest.mark.parametrize("group", GROUPS)
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_weight_is_scale_times_code_less_zero_point(group, seed):
    draw = np.random.default_rng(seed)
    packed = draw.integers(0, 256, (2, 64), dtype=np.uint8)
    scales = draw.random((2, 128 // group)).astype(np.float16)
    zeros = draw.integers(0, 16, (2, 128 // group), dtype=np.uint8)
    expected = np.empty((2, 128))
    for row in range(2):
        for column in range(128):
            byte = int(packed[row, column // 2])
            code = byte & 15 if column % 2 == 0 else byte >> 4
            expected[row, column] = float(scales[row, column // group]) * (code - int(zeros[row, column // group]))
    codec = parse_codec("int4", group)
    np.testing.assert_array_equal(codec.decode((packed, scales, zeros)), expected)  # in float32 it is exact
    assert codec.unpacked((packed, scales, zeros)).group == group


@pytest.mark.parametrize("group", GROUPS)
@given(x=matrices(128, most=6e4))
@settings(max_examples=60, deadline=None)
def test_zeros_among_the_weights_are_exact(group, x):
    x[:, ::3] = 0
    codec = parse_codec("int4", group)
    assert (codec.decode(codec.encode(x))[:, ::3] == 0).all()


@given(constant=st.floats(-65504, 65504, width=16))
def test_a_constant_group_that_fp16_holds_is_exact(constant):
    codec = parse_codec("int4")
    x = np.full((1, 64), constant, np.float32)
    np.testing.assert_array_equal(codec.decode(codec.encode(x)), x)


@given(constant=st.floats(2.0**-14, 60000, width=32))
def test_another_constant_group_is_exact_to_fp16s_rounding(constant):
    codec = parse_codec("int4")
    back = codec.decode(codec.encode(np.full((1, 64), -constant, np.float32)))
    np.testing.assert_allclose(back, -constant, rtol=2.0**-10)


@given(x=matrices(64, most=4e5))
@settings(max_examples=100, deadline=None)
def test_the_scale_is_rounded_up_from_a_fifteenth_of_the_range(x):
    scales = parse_codec("int4").encode(x)[1].astype(np.float64)
    low, high = np.minimum(x.min(axis=1), 0).astype(np.float64), np.maximum(x.max(axis=1), 0).astype(np.float64)
    constant = (x.min(axis=1) == x.max(axis=1)) & (high - low <= 65504)
    exact = np.where(constant, high - low, (high - low) / 15)
    assert (scales[:, 0] >= exact * (1 - 1e-15)).all()
    assert (scales[:, 0] <= exact * (1 + 2.0**-9) + 2.0**-24).all()


@pytest.mark.parametrize("group", GROUPS)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-10, 10))
@settings(max_examples=40, deadline=None)
def test_codes_that_span_their_range_are_stored_again_as_they_were(group, seed, exponent):
    draw = np.random.default_rng(seed)
    codes = draw.integers(0, 16, (2, 128 // group, group), dtype=np.uint8)
    codes[..., 0], codes[..., -1] = 0, 15
    codes = codes.reshape(2, 128)
    scales = (np.ldexp(1 + draw.random((2, 128 // group)), exponent)).astype(np.float16)
    zeros = draw.integers(0, 16, scales.shape, dtype=np.uint8)
    parts = (codes[:, ::2] | (codes[:, 1::2] << 4), scales, zeros)
    codec = parse_codec("int4", group)
    for again, before in zip(codec.encode(codec.decode(parts)), parts, strict=True):
        np.testing.assert_array_equal(again, before)


@pytest.mark.parametrize("group", [32, 64])
def test_smaller_groups_err_less_than_larger(group):
    x = gaussian(256, 1024)
    errors = [np.abs(c.decode(c.encode(x)) - x).mean() for c in (parse_codec("int4", group), parse_codec("int4", 128))]
    assert errors[0] < errors[1]
