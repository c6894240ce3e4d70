"""GGUF's blocks, against the package of their makers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_matrices import foreign_parts, gaussian, matrices

from shearling.quantization import CODECS

gguf = pytest.importorskip("gguf", reason="the extra [gguf] is not installed")

WRITTEN = ["q8_0", "q4_0", "q4_1"]
READ = [*WRITTEN, "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"]


def kind(name):
    return getattr(gguf.GGMLQuantizationType, name.upper())


def theirs_decoded(name, part):
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(part, kind(name))


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_bytes_are_those_of_the_gguf_package(name, data):
    # Below 1e-35 the reciprocal of a scale overflows there, and what is cast to integers is left to the compiler.
    x = data.draw(matrices(64, least=1e-35, most=65000))
    x[np.abs(x) < 1e-35] = 0
    with np.errstate(all="ignore"):
        theirs = gguf.quants.quantize(x, kind(name))
    np.testing.assert_array_equal(CODECS[name].encode(x)[0], theirs)


@pytest.mark.parametrize("name", WRITTEN)
def test_bytes_of_a_real_sized_matrix_are_those_of_the_gguf_package(name):
    x = gaussian(300, 1536, scale=0.02)
    np.testing.assert_array_equal(CODECS[name].encode(x)[0], gguf.quants.quantize(x, kind(name)))


@pytest.mark.parametrize("name", WRITTEN)
def test_weights_too_small_for_a_scale_become_zero(name):
    assert (CODECS[name].decode(CODECS[name].encode(gaussian(2, 64, scale=1e-37))) == 0).all()


def test_q8_0_rounds_halves_away_from_zero():
    x = np.zeros((1, 32), np.float32)
    x[0, :7] = 127, 0.5, 1.5, 2.5, -0.5, -2.5, np.nextafter(np.float32(0.5), np.float32(0))
    (part,) = CODECS["q8_0"].encode(x)
    assert part[0, 2:9].view(np.int8).tolist() == [127, 1, 2, 3, -1, -3, 0]


def test_q4_0_takes_the_first_of_two_equal_extremes():
    x = np.zeros((2, 32), np.float32)
    x[:, 3], x[:, 9] = (1, -1), (-1, 1)
    (part,) = CODECS["q4_0"].encode(x)
    assert part[:, :2].copy().view("<f2")[:, 0].tolist() == [-0.125, 0.125]


@pytest.mark.parametrize("name", READ)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_bytes_are_decoded_as_by_the_gguf_package(name, seed):
    (part,) = foreign_parts(CODECS[name], 3, 512, seed)
    np.testing.assert_array_equal(CODECS[name].decode((part,)), theirs_decoded(name, part))


@pytest.mark.parametrize("name", READ)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_integers_times_scales_are_what_the_gguf_package_decodes(name, seed):
    (part,) = foreign_parts(CODECS[name], 2, 512, seed)
    unpacked = CODECS[name].unpacked((part,))
    with np.errstate(all="ignore"):
        x = unpacked.values.reshape(2, -1, unpacked.group) * unpacked.scales.astype(np.float32)[..., None]
        if unpacked.minimums is not None:
            x = x + unpacked.minimums.astype(np.float32)[..., None]
    np.testing.assert_array_equal(x.reshape(2, 512), theirs_decoded(name, part))


RANGES = {
    "q8_0": (-128, 127), "q4_0": (-8, 7), "q4_1": (0, 15), "q5_0": (-16, 15), "q5_1": (0, 31),
    "q4_k": (0, 15), "q5_k": (0, 31), "q6_k": (-32, 31),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_integers_have_their_whole_range(name):
    values = CODECS[name].unpacked(foreign_parts(CODECS[name], 20, 512, seed=3)).values
    assert (values.min(), values.max()) == RANGES[name]


def test_q8_0s_scales_are_a_view_of_the_file():
    parts = CODECS["q8_0"].encode(gaussian(2, 64))
    assert np.shares_memory(CODECS["q8_0"].unpacked(parts).scales, parts[0])


@pytest.mark.parametrize("name", READ)
def test_rows_of_a_file_are_decoded_where_they_lie(name):
    """Of a read-only map at an odd address, and of rows in another order."""
    codec = CODECS[name]
    (part,) = foreign_parts(codec, 4, 512, seed=5)
    held = np.frombuffer(b"!" + part.tobytes(), np.uint8)[1:].reshape(part.shape)
    expected = theirs_decoded(name, part)
    np.testing.assert_array_equal(codec.decode((held,)), expected)
    np.testing.assert_array_equal(codec.decode((held[1:3],)), expected[1:3])
    np.testing.assert_array_equal(codec.decode((held[[3, 0]],)), expected[[3, 0]])


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
@settings(max_examples=80, deadline=None)
@given(x=matrices(64, least=1e-4, most=65000))
def test_what_came_back_is_stored_again_as_it_was(name, x):
    codec = CODECS[name]
    x[np.abs(x).max(axis=-1) < 1e-3] = 1  # smaller ones may lose their scale
    parts = codec.encode(x)
    scaled = np.repeat(codec.unpacked(parts).scales != 0, 32, axis=-1)
    back = codec.decode(parts)
    again = codec.encode(back)
    np.testing.assert_array_equal(codec.decode(again), back)
    if scaled.all():
        np.testing.assert_array_equal(again[0], parts[0])


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), least=st.floats(-100, 100), width=st.floats(0.5, 100))
def test_q4_1_that_came_back_is_stored_again_as_it_was(seed, least, width):
    """Where the range is no tiny part of the minimum, which float32 would swallow."""
    codec = CODECS["q4_1"]
    x = (np.random.default_rng(seed).random((3, 64)) * width + least).astype(np.float32)
    parts = codec.encode(x)
    np.testing.assert_array_equal(codec.encode(codec.decode(parts))[0], parts[0])
