"""What holds of every codec that a model can be quantized to."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_matrices import foreign_parts, gaussian, in_groups, matrices, per_weight

from shearling.errors import UserError
from shearling.quantization import CODECS, GROUPED, QUANTIZED, parse_codec
from shearling.quantization.nf4 import LEVELS

COLUMNS = 256
WRITABLE = [parse_codec(name) for name in QUANTIZED]
WRITABLE += [parse_codec("int4", 32), parse_codec("int4", 128), parse_codec("nf4", 32), parse_codec("int8", 4)]
READABLE = [*WRITABLE, *(codec for codec in CODECS.values() if not codec.writable)]
FLOATS = ["f32", "f16", "bf16", "f64"]

# The largest weight that each must take.
MOST = {"q8_0": 65504 * 127, "q4_0": 65504 * 8, "q4_1": 65504, "int4": 65504 * 7.5, "int8": 3e38, "nf4": 3e38}
MOST["nf4-double"] = 1e38


def label(codec):
    return codec.name if codec.name in CODECS else f"{codec.name} of {codec.group}"


each_writable = pytest.mark.parametrize("codec", WRITABLE, ids=label)
each_readable = pytest.mark.parametrize("codec", READABLE, ids=label)


def q8_0_bound(codec, x, parts):
    delta = np.abs(in_groups(x, 32)).max(-1) / 127
    return per_weight(delta * (0.5 + 1e-4) + 127 * np.abs(codec.unpacked(parts).scales - delta), COLUMNS)


def q4_0_bound(codec, x, parts):
    groups = in_groups(x, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    delta = largest / -8
    rounding = 8 * np.abs(codec.unpacked(parts).scales - delta)
    beyond_the_last = x * np.sign(per_weight(delta, COLUMNS)) > 7.4999 * np.abs(per_weight(delta, COLUMNS))
    steps = np.where(beyond_the_last, 1, 0.5) + 1e-5
    return steps * np.abs(per_weight(delta, COLUMNS)) + per_weight(rounding, COLUMNS)


def q4_1_bound(codec, x, parts):
    groups, unpacked = in_groups(x, 32), codec.unpacked(parts)
    least = groups.min(-1)
    delta = (groups.max(-1) - least) / 15
    rounding = 15 * np.abs(unpacked.scales - delta) + np.abs(unpacked.minimums - least)
    # The sum of the product and the minimum is rounded to float32.
    return per_weight(delta * (0.5 + 1e-5) + rounding + np.abs(groups).max(-1) * 2.0**-23, COLUMNS)


def int8_bound(codec, x, parts):
    scales, exact = parts[1], np.abs(in_groups(x, codec.group)).max(-1) / 127
    # A subnormal scale is rounded by more than its own half step.
    return per_weight(scales * (0.5 + 2e-5) + 127 * np.abs(scales - exact) * (exact < 1e-37), COLUMNS)


def int4_bound(codec, x, parts):
    return per_weight(parts[1], COLUMNS) * (0.5 + 2.0**-20)


def nearest_level(codec, x):
    """How far each weight is from the nearest of its block's sixteen levels."""
    scales = per_weight(np.abs(in_groups(x, codec.group)).max(-1), COLUMNS)
    nearest = np.abs(x[..., None] - scales[..., None] * LEVELS.astype(np.float64)).min(-1)
    return np.where(scales < 1e-38, scales, nearest + 2e-6 * scales)


def nf4_bound(codec, x, parts):
    return nearest_level(codec, x)


def nf4_double_bound(codec, x, parts):
    scales = np.abs(in_groups(x, codec.group)).max(-1)
    mean = scales.mean(-1, keepdims=True)
    spread = np.abs(scales - mean).max(-1, keepdims=True)
    off = 0.00704 * spread + 1e-6 * mean + 1e-44
    return nearest_level(codec, x) + off + 2e-6 * per_weight(scales, COLUMNS)


BOUNDS = {
    "q8_0": q8_0_bound, "q4_0": q4_0_bound, "q4_1": q4_1_bound, "int8": int8_bound, "int4": int4_bound,
    "nf4": nf4_bound, "nf4-double": nf4_double_bound,
}  # fmt: skip


@each_writable
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_comes_back_is_within_the_stated_bound(codec, data):
    x = data.draw(matrices(COLUMNS, most=MOST[codec.name]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = codec.encode(x)
        error = np.abs(codec.decode(parts).astype(np.float64) - x)
    assert (error <= BOUNDS[codec.name](codec, x, parts)).all()


@each_writable
def test_the_bound_holds_from_subnormal_to_huge_weights(codec):
    for exponent in range(-45, 38):
        x = gaussian(2, COLUMNS, seed=exponent + 45) / 5 * np.float64(10) ** exponent
        if np.abs(x).max() < MOST[codec.name]:
            x = x.astype(np.float32)
            parts = codec.encode(x)
            error = np.abs(codec.decode(parts).astype(np.float64) - x)
            assert (error <= BOUNDS[codec.name](codec, x, parts)).all(), f"weights of 1e{exponent}"


@each_writable
def test_zeros_come_back_as_zeros(codec):
    x = gaussian(2, COLUMNS)
    x[0] = 0
    x[1, 128:] = 0
    back = codec.decode(codec.encode(x))
    assert (back[0] == 0).all()
    assert (back[1, 128:] == 0).all()


@each_writable
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_each_row_is_encoded_for_itself(codec, data):
    x = gaussian(5, COLUMNS, data.draw(st.integers(0, 1000)))
    rows = data.draw(st.permutations(range(5)))[:3]
    for whole, of_rows in zip(codec.encode(x), codec.encode(x[rows]), strict=True):
        np.testing.assert_array_equal(whole[rows], of_rows)


@each_writable
def test_many_rows_are_encoded_as_each_alone(codec):
    """More than are encoded at a time; and what is encoded stays as it was."""
    x = gaussian(700, 1024)
    x.flags.writeable = False
    whole = codec.encode(x)
    for row in (0, 127, 128, 511, 512, 699):
        for part, alone in zip(whole, codec.encode(x[row : row + 1]), strict=True):
            np.testing.assert_array_equal(part[row : row + 1], alone)


@each_writable
def test_a_view_is_encoded_as_its_copy(codec):
    x = gaussian(COLUMNS, 8).T
    for of_view, of_copy in zip(codec.encode(x), codec.encode(x.copy()), strict=True):
        np.testing.assert_array_equal(of_view, of_copy)


@each_writable
def test_parts_have_the_announced_types_and_shapes(codec):
    parts = codec.encode(gaussian(3, COLUMNS))
    assert [(part.dtype, part.shape[1:]) for part in parts] == list(codec.parts(COLUMNS))
    assert {len(part) for part in parts} == {3}
    assert sum(part.nbytes for part in parts) == 3 * codec.row_bytes(COLUMNS)


BITS = [
    ("q8_0", None, 8.5), ("q4_0", None, 4.5), ("q4_1", None, 5), ("q5_0", None, 5.5), ("q5_1", None, 6),
    ("q4_k", None, 4.5), ("q5_k", None, 5.5), ("q6_k", None, 6.5625), ("int8", 64, 8.5), ("int4", 32, 4.75),
    ("int4", 64, 4.375), ("int4", 128, 4.1875), ("nf4", 64, 4.5), ("nf4-double", 64, 4.125 + 64 / 4096),
]  # fmt: skip


@pytest.mark.parametrize(("name", "group", "bits"), BITS)
def test_a_weight_takes_the_stated_bits(name, group, bits):
    assert parse_codec(name, group).row_bytes(4096) * 8 / 4096 == bits


@each_writable
def test_no_rows_are_no_parts_rows(codec):
    parts = codec.encode(np.empty((0, COLUMNS), np.float32))
    assert codec.decode(parts).shape == (0, COLUMNS)


@each_writable
@pytest.mark.parametrize("culprit", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(codec, culprit):
    x = gaussian(4, COLUMNS)
    x[2, 77] = culprit
    with pytest.raises(UserError, match=rf"NaN or infinite.*{codec.name}"):
        codec.encode(x)


@pytest.mark.parametrize(
    ("name", "weight"),
    [("q8_0", 8.4e6), ("q4_0", 5.3e5), ("q4_1", -7e4), ("int4", 1e6), ("int8", np.finfo(np.float32).max)],
)
def test_a_weight_beyond_the_scales_is_refused(name, weight):
    x = np.zeros((1, COLUMNS), np.float32)
    x[0, 5] = weight
    with pytest.raises(UserError, match=rf"beyond {name}'s scales"):
        parse_codec(name).encode(x)


@pytest.mark.parametrize("weight", [65520, -1e38])
def test_a_weight_beyond_fp16_is_refused_and_what_rounds_to_its_end_is_not(weight):
    codec = CODECS["f16"]
    with pytest.raises(UserError, match=r"beyond fp16, which ends at 65,504: write bf16 or f32"):
        codec.encode(np.array([[0, weight]], np.float32))
    kept = np.array([[65519, -np.inf, np.nan]], np.float32)
    np.testing.assert_array_equal(codec.decode(codec.encode(kept)), [[65504, -np.inf, np.nan]])


@each_writable
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_finite_weights_never_come_back_as_nan(codec, data):
    x = data.draw(matrices(COLUMNS, most=3.4028234e38))
    try:
        parts = codec.encode(x)
    except UserError:
        assert np.abs(x).max() > min(MOST[codec.name] / 3, 1e38)
    else:
        assert np.isfinite(codec.decode(parts)).all()


@each_writable
def test_rows_that_are_not_whole_groups_are_refused(codec):
    columns = COLUMNS + codec.group // 2
    assert not codec.fits(columns)
    with pytest.raises(UserError, match=rf"{columns} weights are not whole groups of {codec.group}.*{codec.name}"):
        codec.encode(gaussian(1, columns))


@each_readable
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 3))
def test_any_bytes_are_decoded_or_refused(codec, seed, rows):
    parts = foreign_parts(codec, rows, 512, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = codec.decode(parts)
        assert x.shape == (rows, 512)
        assert x.dtype == np.float32
        if not np.isfinite(x).all() and codec.name != "int8":  # whose products can overflow
            with pytest.raises(UserError, match="a scale"):
                codec.check(parts, "some.file")


# Where in a row's first block, or in which part, each float lies that many weights hang on.
FLOAT_BYTES = {
    "q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2],
    "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208],
}  # fmt: skip
FLOAT_PARTS = {"int8": [1], "int4": [1], "nf4": [1], "nf4-double": [2, 3]}


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "place"), [(name, at) for name, places in FLOAT_BYTES.items() for at in places])
def test_a_block_with_a_damaged_scale_is_refused(name, place, damage):
    codec = CODECS[name]
    part = np.zeros((3, codec.row_bytes(512)), np.uint8)
    codec.check((part,), "some.gguf")
    part[1, place : place + 2] = np.array([damage], "<f2").view(np.uint8)
    with pytest.raises(UserError, match=rf"^some\.gguf: .*{name}.*NaN or infinite"):
        codec.check((part,), "some.gguf")


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "place"), [(name, at) for name, places in FLOAT_PARTS.items() for at in places])
def test_a_part_with_a_damaged_scale_is_refused(name, place, damage):
    codec = parse_codec(name)
    parts = codec.encode(gaussian(3, COLUMNS))
    codec.check(parts, "some.bin")
    parts[place][2, 0] = damage
    with pytest.raises(UserError, match=rf"^some\.bin: .*{name}.*NaN or infinite"):
        codec.check(parts, "some.bin")


@pytest.mark.parametrize("name", FLOATS)
def test_floats_have_no_scales_to_check(name):
    codec = CODECS[name]
    parts = codec.encode(np.full((1, 4), np.nan, np.float32))
    codec.check(parts, "some.file")
    assert codec.unpacked(parts) is None


@pytest.mark.parametrize("codec", [c for c in READABLE if c.name not in ("nf4", "nf4-double")], ids=label)
def test_integers_and_scales_are_laid_out_as_a_kernel_expects(codec):
    parts = foreign_parts(codec, 3, 512, seed=1)
    unpacked = codec.unpacked(parts)
    assert unpacked.values.shape == (3, 512)
    assert unpacked.values.dtype == np.int8
    for figures in (unpacked.scales, unpacked.minimums):
        if figures is not None:
            assert figures.shape == (3, 512 // unpacked.group)
            assert figures.dtype in (np.float16, np.float32)


def test_a_name_may_be_in_capitals():
    assert parse_codec("Q8_0") is CODECS["q8_0"]


def test_a_group_goes_with_the_codecs_that_take_one():
    assert [parse_codec(name, 32).group for name in ("int8", "int4", "nf4", "nf4-double")] == [32] * 4


def test_the_usual_group_is_64():
    assert {parse_codec(name).group for name in GROUPED} == {64}


def test_a_codecs_own_group_may_be_said():
    assert parse_codec("q4_0", 32) is CODECS["q4_0"]


@pytest.mark.parametrize(
    ("name", "group", "words"),
    [
        ("q3", None, "no codec is called 'q3'.*q8_0.*nf4-double"),
        ("q8_0", 64, "q8_0 has no groups of 64.*int8, int4"),
        ("f32", 32, "f32 has no groups of 32"),
        ("int4", 16, "int4 has groups of 32, 64, 128, not 16"),
        ("nf4", 48, "nf4 has blocks of 32.*not 48"),
        ("nf4-double", 0, "nf4-double has blocks.*not 0"),
        ("int8", 0, "int8 cannot store groups of 0"),
        ("int8", -4, "int8 cannot store groups of -4"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(name, group, words):
    with pytest.raises(UserError, match=words):
        parse_codec(name, group)


@pytest.mark.parametrize("name", ["q5_0", "q5_1", "q4_k", "q5_k", "q6_k"])
def test_what_is_only_read_says_what_to_write(name):
    assert name not in QUANTIZED
    with pytest.raises(UserError, match=rf"{name} is read, not written: use q8_0, q4_1 or q4_0"):
        CODECS[name].encode(gaussian(1, 256))
