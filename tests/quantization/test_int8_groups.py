"""INT8 groups, against the arithmetic of llama2.c's exporter done in torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_matrices import gaussian, matrices

from shearling.quantization import parse_codec


def in_torch(x, group):
    groups = torch.from_numpy(x).reshape(-1, group)
    scales = groups.abs().amax(1) / 127.0
    values = torch.round(groups / scales[:, None]).to(torch.int8)
    return values.reshape(x.shape).numpy(), scales.reshape(len(x), -1).numpy()


@pytest.mark.parametrize("group", [4, 32, 64, 96])
def test_values_and_scales_are_llama2cs(group):
    x = gaussian(200, 192, scale=0.02)
    values, scales = parse_codec("int8", group).encode(x)
    expected_values, expected_scales = in_torch(x, group)
    np.testing.assert_array_equal(values, expected_values)
    np.testing.assert_array_equal(scales, expected_scales)


def test_halves_are_rounded_to_even():
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0]], np.float32)
    values, _ = parse_codec("int8", 8).encode(x)
    assert values.tolist() == [[127, 0, 2, 2, 0, -2, -2, 0]]


@pytest.mark.parametrize("weight", [0, 1e-45, -1e-45])
def test_a_group_whose_scale_is_zero_has_values_of_zero(weight):
    values, scales = parse_codec("int8", 8).encode(np.full((1, 8), weight, np.float32))
    assert scales.tolist() == [[0]]
    assert values.tolist() == [[0] * 8]


@settings(max_examples=80, deadline=None)
@given(x=matrices(64))
def test_values_stay_within_127(x):
    values, _ = parse_codec("int8", 16).encode(x)
    assert values.min() >= -127


@settings(max_examples=80, deadline=None)
@given(x=matrices(64, least=1e-30, most=1e30))
def test_what_came_back_is_the_same_integers_again(x):
    codec = parse_codec("int8", 16)
    parts = codec.encode(x)
    values, scales = codec.encode(codec.decode(parts))
    np.testing.assert_array_equal(values, parts[0])
    np.testing.assert_allclose(scales, parts[1], rtol=2e-7)


@given(seed=st.integers(0, 1000))
def test_a_value_times_its_scale_comes_back(seed):
    draw = np.random.default_rng(seed)
    values = draw.integers(-127, 128, (3, 32), dtype=np.int8)
    scales = draw.random((3, 2), np.float32)
    expected = [[values[r, c] * scales[r, c // 16] for c in range(32)] for r in range(3)]
    np.testing.assert_array_equal(parse_codec("int8", 16).decode((values, scales)), expected)
