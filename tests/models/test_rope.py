"""Rotary frequencies against those of `transformers` and formulas of their own."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shearling.models.layers.position import build_position
from shearling.models.rope import inverse_frequencies
from shearling.models.spec import ModelSpec


def spec_of(scaling=None, head_dim=64, theta=10000.0) -> ModelSpec:
    position = {"kind": "rope", "theta": theta, "scaling": scaling}
    return ModelSpec(d_model=2 * head_dim, n_heads=2, max_seq_len=4096, position=position)


def theirs(scaling, head_dim=64, theta=10000.0):
    """The same options as `transformers` has them, and what it makes of them in fp32."""
    options = {{"kind": "rope_type", "original_max_seq_len": "original_max_position_embeddings"}.get(key, key): value
               for key, value in scaling.items()}  # fmt: skip
    config = LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=4096,
        rope_parameters={"rope_theta": theta, **options},
    )  # fmt: skip
    return ROPE_INIT_FUNCTIONS[scaling["kind"]](config)


SCALED = [
    {"kind": "linear", "factor": 4.0},
    {"kind": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 512},
    {"kind": "llama3", "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0, "original_max_seq_len": 8192},
    {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 1024},
    {"kind": "yarn", "factor": 16.0, "original_max_seq_len": 64, "beta_fast": 20.0, "beta_slow": 2.0},
    {"kind": "yarn", "factor": 2.0, "original_max_seq_len": 2048, "attention_factor": 0.7},
    {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 4},  # the whole ramp lies before the first pair
]


@pytest.mark.parametrize("scaling", SCALED, ids=str)
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10000.0), (48, 500000.0)])
def test_scaled_frequencies_and_factor_are_those_of_transformers(scaling, head_dim, theta):
    frequencies, factor = inverse_frequencies(spec_of(scaling, head_dim, theta))
    expected, expected_factor = theirs(scaling, head_dim, theta)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


def test_without_scaling_they_are_the_geometric_series_of_the_paper():
    frequencies, factor = inverse_frequencies(spec_of(head_dim=48))
    assert factor == 1
    for i, frequency in enumerate(frequencies):
        assert frequency == pytest.approx(10000 ** (-2 * i / 48), rel=1e-7)


def test_llama_3_s_scaling_leaves_short_wavelengths_and_slows_long_ones_by_the_factor():
    scaling = {"kind": "llama3", "factor": 8.0, "original_max_seq_len": 512}
    scaled, plain = inverse_frequencies(spec_of(scaling))[0], inverse_frequencies(spec_of())[0]
    wavelengths = 2 * math.pi / plain
    short, long = wavelengths < 512 / 4, wavelengths > 512 / 1
    assert short.any()
    assert long.any()
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-7)
    between = (plain / scaled)[~short & ~long]
    assert ((between > 1) & (between < 8)).all()


@pytest.mark.parametrize("scaling", SCALED, ids=str)
def test_the_model_turns_by_these_frequencies(scaling):
    spec = spec_of(scaling)
    frequencies, factor = inverse_frequencies(spec)
    cos, sin = build_position(spec).rotation(torch.tensor([0, 7, 100]))
    angles = np.array([0, 7, 100])[:, None] * frequencies.astype(np.float64)
    np.testing.assert_allclose(cos.numpy(), factor * np.cos(angles), atol=2e-5)
    np.testing.assert_allclose(sin.numpy(), factor * np.sin(angles), atol=2e-5)


@pytest.mark.parametrize(
    ("theta", "scaling", "message"),
    [
        (1e4, {"kind": "linear"}, "factor"),
        (1e4, {"kind": "linear", "factor": 0}, "greater than 0"),
        (1e4, {"kind": "llama3", "factor": 2, "original_max_seq_len": 64, "low_freq_factor": 4}, "ramp lies between"),
        (1e4, {"kind": "yarn", "factor": 2, "original_max_seq_len": 64, "beta_fast": 0.5}, "at least beta_slow"),
        (1.0, {"kind": "yarn", "factor": 2, "original_max_seq_len": 64}, r"theta 1\.0 should be greater than 1"),
    ],
)
def test_scalings_that_cannot_be_are_refused(theta, scaling, message):
    with pytest.raises(ValidationError, match=message):
        spec_of(scaling, theta=theta)
