"""What a model costs, against published counts, other libraries' models and a counter of executed FLOPs."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shearling.config import load
from shearling.experiments.summary import ModelFile
from shearling.models.cost import activation_bytes, kv_cache_bytes, parameters, training_flops_per_token
from shearling.models.norm_spec import LayerNormSpec
from shearling.models.spec import ModelSpec


@pytest.mark.parametrize(
    ("file", "total"),
    [
        ("llama-71m", 70_578_688),  # arXiv 2412.13795's llama_71m
        ("sheared-1.3b", 1_345_423_360),  # princeton-nlp/Sheared-LLaMA-1.3B
        ("bert", 109_514_298 - 2 * 768),  # transformers' BertForMaskedLM but for its vectors of two segments
        ("nanogpt", 123_587_328 + 1024 * 768),  # nanoGPT prints 123.59M, without positions
    ],
)
def test_a_shipped_shape_has_the_published_number_of_parameters(root, file, total):
    spec = load(ModelFile, root / f"configs/models/{file}.yaml").value.model
    assert parameters(spec).total == total


@pytest.mark.parametrize(("file", "millions"), [("llama-15m", 15), ("llama-42m", 42), ("llama-110m", 110)])
def test_llama2c_s_shapes_have_the_size_in_their_name(root, file, millions):
    spec = load(ModelFile, root / f"configs/models/{file}.yaml").value.model
    assert round(parameters(spec).total / 1e6) == millions


def test_the_wide_shape_has_about_177_million_parameters(root):
    spec = load(ModelFile, root / "configs/models/wide-177m.yaml").value.model
    assert parameters(spec).total == pytest.approx(177e6, rel=0.005)


@pytest.mark.assets
def test_stories260k_has_as_many_parameters_as_its_checkpoint(root, assets):
    spec = load(ModelFile, root / "configs/models/stories260k.yaml").value.model
    content = (assets / "models/stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", content[:28])
    assert (dim, hidden, layers) == (spec.d_model, spec.intermediate_size, spec.n_layers)
    assert (heads, kv_heads, vocab, length) == (spec.n_heads, spec.kv_heads, spec.vocab_size, spec.max_seq_len)
    rotations = length * spec.head_dim  # cosines and sines, which llama2.c's first format stores too
    assert parameters(spec).total == (len(content) - 28) // 4 - rotations


shapes = st.builds(
    lambda kv, group, half, layers, ff, vocab, tied, attention_bias, feedforward_bias: ModelSpec(
        d_model=kv * group * 2 * half,
        n_heads=kv * group,
        n_kv_heads=kv,
        n_layers=layers,
        intermediate_size=ff,
        vocab_size=vocab,
        max_seq_len=32,
        tie_embeddings=tied,
        attention_bias=attention_bias,
        feedforward_bias=feedforward_bias,
    ),
    *map(st.integers, (1, 1, 1, 1, 1, 2), (3, 3, 4, 3, 40, 50)),
    *[st.booleans()] * 3,
)


def huggingface_model(spec: ModelSpec, device: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=spec.d_model,
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.kv_heads,
        num_hidden_layers=spec.n_layers,
        intermediate_size=spec.intermediate_size,
        vocab_size=spec.vocab_size,
        tie_word_embeddings=spec.tie_embeddings,
        attention_bias=spec.attention_bias,
        mlp_bias=spec.feedforward_bias,
        attn_implementation="eager",
    )
    with torch.device(device):
        return transformers.LlamaForCausalLM(config)


@given(shapes)
@settings(max_examples=25, deadline=None)
def test_parameters_are_as_many_as_in_transformers_llama(spec):
    # Tying links the modules' one tensor, which parameters() then yields once.
    model = huggingface_model(spec, "cpu")
    assert parameters(spec).total == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("bias", [False, True])
def test_gelu_and_layer_norm_are_counted_as_torch_makes_them(bias):
    shape = {"d_model": 24, "n_heads": 2, "n_layers": 3, "intermediate_size": 50, "vocab_size": 11}
    spec = ModelSpec(**shape, activation="gelu", feedforward_bias=bias, norm=LayerNormSpec(bias=bias))
    block = nn.ModuleList([nn.Linear(24, 50, bias=bias), nn.Linear(50, 24, bias=bias)])
    norm = nn.LayerNorm(24, bias=bias)
    counts = parameters(spec)
    assert counts.feedforward == 3 * sum(weight.numel() for weight in block.parameters())
    assert counts.norms == 7 * sum(weight.numel() for weight in norm.parameters())


@pytest.mark.parametrize("bias", [False, True])
def test_flops_are_those_that_forward_and_backward_execute_but_for_the_masked_half(bias):
    shape = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "intermediate_size": 48, "vocab_size": 64}
    spec = ModelSpec(**shape, attention_bias=bias, feedforward_bias=bias)
    model = huggingface_model(spec, "cpu")
    tokens = torch.zeros(3, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, use_cache=False).logits.sum().backward()
    masked_half = 6 * spec.n_layers * 16 * spec.d_model
    assert counter.get_total_flops() == tokens.numel() * (training_flops_per_token(spec, 16) + masked_half)


def test_attention_in_a_window_costs_what_its_tokens_see():
    T, W = 2000, 300
    whole, windowed = (
        training_flops_per_token(ModelSpec(d_model=32, n_heads=2, n_layers=3, sliding_window=window), T)
        for window in (None, W)
    )
    at = np.arange(T)
    seen = (at[:, None] >= at) & (at[:, None] - at < W)
    saved = 12 * 3 * 32 * (np.tril(np.ones((T, T))).sum() - seen.sum()) / T
    assert whole - windowed == pytest.approx(saved, rel=1e-3)


@pytest.mark.parametrize("window", [64, 1000])
def test_a_window_that_takes_the_whole_sequence_costs_what_no_window_costs(window):
    shape = {"d_model": 32, "n_heads": 2, "n_layers": 3}
    windowed = training_flops_per_token(ModelSpec(**shape, sliding_window=window), 64)
    assert windowed == training_flops_per_token(ModelSpec(**shape), 64)


def test_a_model_without_a_head_has_neither_its_parameters_nor_its_products():
    shape = {"arch": "bert", "d_model": 32, "n_heads": 4, "vocab_size": 64}
    whole, headless = (parameters(ModelSpec(**shape, head=head)) for head in (True, False))
    assert headless.head == 0
    assert headless.total == whole.total - whole.head
    assert whole.multiplied - headless.multiplied == 32 * 32 + 64 * 32


def test_the_cache_holds_keys_and_values_of_each_layer():
    # 22 layers of 4 key-value heads of 64, bf16: TinyLlama-1.1B keeps 22 KiB per token.
    spec = ModelSpec(d_model=2048, n_heads=32, n_kv_heads=4, n_layers=22)
    assert kv_cache_bytes(spec, 2048, 2) == 2048 * 22 * 1024


def test_recomputing_keeps_one_block_s_activations_and_the_others_inputs():
    spec = ModelSpec(n_layers=12)
    one = activation_bytes(spec.model_copy(update={"n_layers": 1}), 1000, 2, recompute=False)
    two = activation_bytes(spec.model_copy(update={"n_layers": 2}), 1000, 2, recompute=False)
    kept = activation_bytes(spec, 1000, 2, recompute=True)
    assert kept == one + 12 * 1000 * 4 * spec.d_model
    assert activation_bytes(spec, 1000, 2, recompute=False) == one + 11 * (two - one)


def test_counting_needs_no_memory_for_the_weights():
    spec = ModelSpec(d_model=2**20, n_heads=2**16, intermediate_size=2**24, vocab_size=2**24, n_layers=100)
    assert parameters(spec).total > 2**50
