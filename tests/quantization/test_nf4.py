"""NF4, against bitsandbytes and against its definition."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from weight_matrices import gaussian, matrices

from shearling.errors import UserError
from shearling.quantization import parse_codec
from shearling.quantization.nf4 import BLOCKS, DYNAMIC, LEVELS


@pytest.fixture(scope="module")
def bnb():
    """bitsandbytes' functions, which look for a kernel on the Hub unless they are told that they are offline."""
    pytest.importorskip("bitsandbytes", reason="the extra [bnb] is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield importlib.import_module("bitsandbytes.functional")


def quantized(bnb, x, group, double=False):
    return bnb.quantize_4bit(torch.from_numpy(x), blocksize=group, quant_type="nf4", compress_statistics=double)


def test_levels_are_the_quantiles_of_the_paper():
    """Eight above zero and seven below, each side evenly in probability, from 0.9677083 to a half."""
    above = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate((above, [0], below)))
    np.testing.assert_allclose(LEVELS, levels / levels.max(), atol=2e-7)


@pytest.mark.parametrize("group", BLOCKS)
def test_bytes_and_scales_are_those_of_bitsandbytes(bnb, group):
    x = gaussian(32, 4096, seed=group, scale=0.02)
    packed, state = quantized(bnb, x, group)
    ours, scales = parse_codec("nf4", group).encode(x)
    np.testing.assert_array_equal(ours.ravel(), packed.numpy().ravel())
    np.testing.assert_array_equal(scales.ravel(), state.absmax.numpy())


@settings(max_examples=100, deadline=None)
@given(x=matrices(128))
def test_bytes_and_scales_of_odd_blocks_are_those_of_bitsandbytes(bnb, x):
    packed, state = quantized(bnb, x, 64)
    ours, scales = parse_codec("nf4").encode(x)
    np.testing.assert_array_equal(ours.ravel(), packed.numpy().ravel())
    np.testing.assert_array_equal(scales.ravel(), state.absmax.numpy())


def test_weights_halfway_between_levels_go_where_bitsandbytes_sends_them(bnb):
    middle = ((LEVELS[1:] + LEVELS[:-1]) / 2).astype(np.float32)
    x = np.zeros((1, 64), np.float32)
    x[0, :46] = *middle, *np.nextafter(middle, np.float32(2)), *np.nextafter(middle, np.float32(-2)), 1
    packed, _ = quantized(bnb, x, 64)
    np.testing.assert_array_equal(parse_codec("nf4").encode(x)[0].ravel(), packed.numpy().ravel())


@pytest.mark.parametrize("group", [32, 64, 128])
def test_what_comes_back_is_what_bitsandbytes_gives(bnb, group):
    x = gaussian(16, 1024)
    codec = parse_codec("nf4", group)
    np.testing.assert_array_equal(codec.decode(codec.encode(x)), bnb.dequantize_4bit(*quantized(bnb, x, group)).numpy())


@settings(max_examples=80, deadline=None)
@given(x=matrices(128, least=1e-36, most=1e36))
def test_what_came_back_is_stored_again_as_it_was(x):
    codec = parse_codec("nf4")
    parts = codec.encode(x)
    for again, before in zip(codec.encode(codec.decode(parts)), parts, strict=True):
        np.testing.assert_array_equal(again, before)


def rmse(x, back):
    return np.sqrt(np.mean((x - back) ** 2))


def symmetric_int4(x, group):
    groups = x.reshape(-1, group)
    steps = np.abs(groups).max(1, keepdims=True) / 7
    return (np.rint(groups / steps) * steps).reshape(x.shape)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_of_gaussian_weights_nf4_errs_less_than_int4_by_the_largest_magnitude(group):
    x = gaussian(512, 1024)
    codec = parse_codec("nf4", group)
    assert rmse(x, codec.decode(codec.encode(x))) < rmse(x, symmetric_int4(x, group))


def test_of_gaussian_weights_in_blocks_of_128_nf4_errs_less_than_affine_int4():
    """In smaller blocks it does not: an affine range fits the block's two ends, and NF4's only the farther."""
    x = gaussian(512, 1024)
    nf4, int4 = parse_codec("nf4", 128), parse_codec("int4", 128)
    assert rmse(x, nf4.decode(nf4.encode(x))) < rmse(x, int4.decode(int4.encode(x)))


def test_the_dynamic_levels_are_those_of_bitsandbytes(bnb):
    np.testing.assert_allclose(DYNAMIC, bnb.create_dynamic_map().numpy(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("columns", [768, 4096, 64 * 300])
def test_double_quantization_of_a_row_is_that_of_bitsandbytes(bnb, columns):
    """Codes too, but for those near the middle of two levels: its CPU kernel looks them up by 16 bits."""
    x = gaussian(8, columns, scale=0.02)
    packed, codes, outer, mean = parse_codec("nf4-double").encode(x)
    counted = []
    for row in range(len(x)):
        bytes_, state = quantized(bnb, x[row : row + 1], 64, double=True)
        np.testing.assert_array_equal(packed[row], bytes_.numpy().ravel())
        np.testing.assert_allclose(mean[row, 0], state.offset.item(), rtol=3e-7)
        np.testing.assert_allclose(outer[row], state.state2.absmax.numpy(), rtol=1e-5)
        scales = np.abs(x[row].reshape(-1, 64)).max(1)
        places = (scales - mean[row]) / np.repeat(outer[row], 256)[: len(scales)]
        middles = (DYNAMIC[1:] + DYNAMIC[:-1]) / 2
        clear = np.abs(places[:, None] - middles).min(1) > 2.0**-16 + 1e-5
        np.testing.assert_array_equal(codes[row][clear], state.absmax.numpy()[clear])
        counted.append(clear.mean())
    assert np.mean(counted) > 0.97


def test_scales_become_the_nearest_of_the_dynamic_levels():
    x = gaussian(16, 4096)
    codec = parse_codec("nf4-double")
    parts = codec.encode(x)
    scales = np.abs(x.reshape(16, -1, 64)).max(-1).astype(np.float64)
    levels = parts[3][..., None] + parts[2][..., None] * DYNAMIC.astype(np.float64)
    nearest = np.abs(scales[..., None] - levels).min(-1)
    np.testing.assert_allclose(np.abs(codec.scales(parts) - scales), nearest, atol=1e-6)


def test_double_quantization_comes_back_as_from_bitsandbytes(bnb):
    x = gaussian(1, 4096)
    codec = parse_codec("nf4-double")
    back = codec.decode(codec.encode(x))
    theirs = bnb.dequantize_4bit(*quantized(bnb, x, 64, double=True)).numpy()
    np.testing.assert_allclose(back, theirs, atol=2.0**-15 * np.abs(x).max())


def test_double_quantization_costs_hardly_any_accuracy():
    x = gaussian(64, 4096)
    errors = [rmse(x, codec.decode(codec.encode(x))) for codec in (parse_codec("nf4"), parse_codec("nf4-double"))]
    assert errors[1] < 1.002 * errors[0]


@settings(max_examples=60, deadline=None)
@given(x=matrices(128, most=1e38), zeros=st.integers(0, 1))
def test_a_block_of_zeros_stays_one_beside_any_other(x, zeros):
    x[:, 64 * zeros : 64 * zeros + 64] = 0
    codec = parse_codec("nf4-double")
    assert (codec.decode(codec.encode(x))[:, 64 * zeros : 64 * zeros + 64] == 0).all()


def test_finite_floats_that_make_an_infinite_scale_are_refused():
    codec = parse_codec("nf4-double")
    packed, codes, outer, mean = codec.encode(gaussian(2, 256))
    codec.check((packed, codes, outer, mean), "some.file")
    codes[1, 0], outer[1], mean[1] = 255, 3e38, 3e38
    with pytest.raises(UserError, match=r"^some\.file: .*nf4-double.*infinite"):
        codec.check((packed, codes, outer, mean), "some.file")
