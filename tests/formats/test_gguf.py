"""GGUF files of LLaMA models: what the `gguf` package reads and writes is what we write and read."""

import sys
import tracemalloc
from dataclasses import replace

import gguf as package
import numpy as np
import pytest
from gguf_models import SIZES, rope, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from shearling.errors import UserError
from shearling.formats import checkpoint as checkpoint_module
from shearling.formats.checkpoint import StoredTensor
from shearling.formats.gguf import read_gguf, write_gguf
from shearling.formats.gguf.rope import read_scaling, rope_factors
from shearling.formats.gguf.values import Metadata
from shearling.models.rope import inverse_frequencies
from shearling.models.spec import Llama3ScalingSpec, ModelSpec, RoPESpec
from shearling.quantization import CODECS, parse_codec

U32, F32, STRING = package.GGUFValueType.UINT32, package.GGUFValueType.FLOAT32, package.GGUFValueType.STRING
WRITTEN = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
Q8_0, Q2_K = package.GGMLQuantizationType.Q8_0, package.GGMLQuantizationType.Q2_K
METADATA = {
    "llama.context_length": (128, U32), "llama.embedding_length": (64, U32), "llama.block_count": (2, U32),
    "llama.feed_forward_length": (96, U32), "llama.attention.head_count": (4, U32),
    "llama.attention.head_count_kv": (2, U32), "llama.attention.layer_norm_rms_epsilon": (1e-5, F32),
}  # fmt: skip
THEIR_NAMES = {
    "attn_norm.weight": (64,), "attn_q.weight": (64, 64), "attn_k.weight": (32, 64), "attn_v.weight": (32, 64),
    "attn_output.weight": (64, 64), "ffn_norm.weight": (64,), "ffn_gate.weight": (96, 64), "ffn_up.weight": (96, 64),
    "ffn_down.weight": (64, 96),
}  # fmt: skip


def silent(count: int) -> None:
    pass


def save(checkpoint, path, codec=None):
    return write_gguf(path, checkpoint, codec=codec and CODECS[codec], progress=silent)


def reread(checkpoint, path, codec=None):
    save(checkpoint, path, codec)
    return read_gguf(path)


def published(path, metadata=None, tensors=None, arch="llama"):
    """A model by the `gguf` package's writer; `metadata` and `tensors` replace, or with None remove, what is usual."""
    draw = np.random.default_rng(0)
    shapes = {"token_embd.weight": (300, 64), "output_norm.weight": (64,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in THEIR_NAMES.items()}
    writer = package.GGUFWriter(path, arch)
    for key, value in ({**METADATA, **(metadata or {})}).items():
        if value is not None:
            writer.add_key_value(key, *value)
    numbers = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, array in ({**numbers, **(tensors or {})}).items():
        if isinstance(array, tuple):
            writer.add_tensor(name, array[0], raw_dtype=array[1])
        elif array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


VARIANTS = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "biases": {"attention_bias": True, "feedforward_bias": True},
    "biases of attention": {"attention_bias": True},
    "all heads their own, another epsilon": {"n_kv_heads": 4, "norm": {"kind": "rmsnorm", "eps": 1e-3}},
    "one head of keys": {"n_kv_heads": 1},
    "rotations by another base": {"position": {"kind": "rope", "theta": 500.0}},
    "rotations interpolated": {"position": rope(kind="linear", factor=4.0)},
    "rotations of LLaMA 3": {"position": rope(kind="llama3", factor=8.0, original_max_seq_len=64)},
    "rotations of YaRN": {"position": rope(kind="yarn", factor=4.0, original_max_seq_len=32)},
    "rotations of YaRN, a factor": {
        "position": rope(kind="yarn", factor=4.0, original_max_seq_len=32, attention_factor=1.3)
    },
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_model_comes_back_as_it_was(tmp_path, options):
    model = tiny(**options)
    back = reread(model, tmp_path / "model.gguf")
    assert back.spec == model.spec
    assert back.tensors.keys() == model.tensors.keys()
    for name in model.tensors:
        assert np.array_equal(back.in_rotary("halves", name).read(), model.tensors[name].read())


@pytest.mark.parametrize("codec", WRITTEN)
def test_the_package_reads_the_same_numbers(tmp_path, codec):
    back = reread(tiny(), tmp_path / "model.gguf", codec)
    ours = {tensor.name: tensor for tensor in package.GGUFReader(tmp_path / "model.gguf").tensors}
    for name, theirs in (("embed.weight", "token_embd.weight"), ("layers.1.feedforward.branch.down_proj.weight",
                         "blk.1.ffn_down.weight"), ("layers.0.attention.branch.k_proj.weight", "blk.0.attn_k.weight"),
                         ("head.weight", "output.weight")):  # fmt: skip
        assert ours[theirs].tensor_type.name == codec.upper()
        expected = package.quants.dequantize(ours[theirs].data, ours[theirs].tensor_type)
        assert np.array_equal(back.tensors[name].read(), expected.reshape(back.tensors[name].shape))


@pytest.mark.parametrize("codec", ["f16", "q8_0"])
def test_vectors_are_float32_whatever_matrices_are(tmp_path, codec):
    save(tiny(attention_bias=True), tmp_path / "model.gguf", codec)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in package.GGUFReader(tmp_path / "model.gguf").tensors}
    vectors = [name for name in kinds if "norm" in name or name.endswith("bias")]
    assert len(vectors) == 13
    assert {kinds[name] for name in vectors} == {"F32"}


def test_metadata_is_what_llama_cpp_asks_for(tmp_path):
    model = replace(tiny(), notes={"name": "Tiny", "license": "mit", "step": 7}, chat_template="{{ messages }}")
    save(model, tmp_path / "model.gguf", "q8_0")
    fields = package.GGUFReader(tmp_path / "model.gguf").fields
    expected = {
        "general.architecture": "llama", "general.type": "model", "general.name": "Tiny", "general.license": "mit",
        "general.file_type": package.LlamaFileType.MOSTLY_Q8_0, "general.quantization_version": 2,
        "llama.vocab_size": 300, "llama.context_length": 128, "llama.embedding_length": 64, "llama.block_count": 2,
        "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16, "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6), "tokenizer.ggml.model": "no_vocab",
        "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip
    found = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    assert found == expected


@pytest.mark.parametrize("codec", WRITTEN)
def test_the_file_type_is_that_of_the_matrices(tmp_path, codec):
    save(tiny(), tmp_path / "model.gguf", codec)
    number = package.GGUFReader(tmp_path / "model.gguf").fields["general.file_type"].contents()
    assert package.LlamaFileType(number).name.endswith(codec.upper())


def test_the_file_type_is_that_of_most_weights_and_not_of_most_bytes(tmp_path):
    model = tiny(d_model=32, n_heads=2, intermediate_size=2000)  # whose rows are no whole blocks
    save(model, tmp_path / "model.gguf", "q4_0")
    reader = package.GGUFReader(tmp_path / "model.gguf")
    assert sum(int(tensor.n_bytes) for tensor in reader.tensors if tensor.tensor_type.name == "F16") > 200_000
    assert reader.fields["general.file_type"].contents() == package.LlamaFileType.MOSTLY_Q4_0


def test_without_a_codec_each_matrix_keeps_its_own(tmp_path):
    first = reread(tiny(), tmp_path / "first.gguf", "q4_1")
    second = reread(first, tmp_path / "second.gguf")
    for name, tensor in first.tensors.items():
        assert second.tensors[name].codec.name == tensor.codec.name
        assert np.array_equal(second.tensors[name].parts[0], tensor.parts[0])


def test_without_a_codec_what_gguf_has_not_becomes_float32(tmp_path):
    model = tiny()
    int8 = parse_codec("int8", 32)
    name = "layers.0.attention.branch.o_proj.weight"
    stored = StoredTensor((64, 64), int8, int8.encode(model.tensors[name].read()))
    model = replace(model, tensors={**model.tensors, name: stored})
    assert "int8 became f32 in 1 matrices" in save(model, tmp_path / "model.gguf")
    assert np.array_equal(read_gguf(tmp_path / "model.gguf").tensors[name].read(), stored.read())


def test_rows_that_are_no_whole_blocks_become_float16_and_that_is_said(tmp_path):
    notes = save(tiny(intermediate_size=80), tmp_path / "model.gguf", "q8_0")
    assert "q8_0 became f16 in 2 matrices" in notes
    kinds = {tensor.name: tensor.tensor_type.name for tensor in package.GGUFReader(tmp_path / "model.gguf").tensors}
    assert [name for name, kind in kinds.items() if kind == "F16"] == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]


def test_progress_adds_up_to_the_tensors_bytes(tmp_path):
    counts = []
    write_gguf(tmp_path / "model.gguf", tiny(), codec=CODECS["q4_0"], progress=counts.append)
    tensors = package.GGUFReader(tmp_path / "model.gguf").tensors
    assert sum(counts) == sum(int(tensor.n_bytes) for tensor in tensors)


def test_writing_takes_the_memory_of_a_piece(tmp_path, monkeypatch):
    model = tiny(vocab_size=100_000)  # 25.6 MB of embeddings, and as much of a head
    monkeypatch.setattr(checkpoint_module, "NUMBERS_AT_ONCE", 1 << 16)
    tracemalloc.start()
    save(model, tmp_path / "model.gguf", "q8_0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "model.gguf").stat().st_size > 13e6
    assert peak < 4e6


def test_reading_takes_no_memory_for_tensors(tmp_path):
    save(tiny(vocab_size=100_000), tmp_path / "model.gguf")
    tracemalloc.start()
    read_gguf(tmp_path / "model.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"placement": {"kind": "post"}}, "placement.kind"),
        ({"qk_norm": {"kind": "per_head"}}, "qk_norm"),
        ({"norm": {"kind": "layernorm"}, "activation": "gelu"}, "activation, norm.kind"),
        ({"position": {"kind": "alibi"}}, "position.kind"),
        ({"sliding_window": 64}, "no sliding window"),
        ({"position": rope(kind="yarn", factor=4.0, original_max_seq_len=32, beta_fast=16.0)}, "beta_fast"),
    ],
    ids=["Post-LN", "QK norm", "GELU", "ALiBi", "window", "YaRN"],
)
def test_what_llama_cpp_would_run_otherwise_is_refused_before_anything_is_written(tmp_path, options, reason):
    model = replace(tiny(), spec=ModelSpec(**{**SIZES, **options}))
    with pytest.raises(UserError, match=reason):
        save(model, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", ["int8", "int4", "nf4", "q4_k", "q6_k", "f64"])
def test_codecs_that_are_not_written_are_refused_with_those_that_are(tmp_path, codec):
    with pytest.raises(UserError, match="f32, f16, bf16, q8_0, q4_0, q4_1"):
        write_gguf(tmp_path / "model.gguf", tiny(), codec=parse_codec(codec), progress=silent)
    assert list(tmp_path.iterdir()) == []


def test_a_window_as_long_as_the_context_is_none(tmp_path):
    back = reread(tiny(sliding_window=128), tmp_path / "model.gguf")
    assert back.spec.sliding_window is None


def test_a_weight_beyond_float16_is_refused(tmp_path):
    model = tiny()
    model.tensors["embed.weight"].parts[0][5, 7] = 1e5
    with pytest.raises(UserError, match="a weight is beyond fp16"):
        save(model, tmp_path / "model.gguf", "f16")


def test_a_published_file_is_read_by_the_definition(tmp_path):
    back = read_gguf(published(tmp_path / "model.gguf"))
    assert back.spec == ModelSpec(**{**SIZES, "tie_embeddings": True, "norm": {"kind": "rmsnorm", "eps": 1e-5}})
    tensors = {tensor.name: tensor.data for tensor in package.GGUFReader(tmp_path / "model.gguf").tensors}
    # By the definition: rows 2i and 2i + 1 of a head there are rows i and i + K/2 here.
    q = tensors["blk.0.attn_q.weight"].reshape(4, 8, 2, 64).transpose(0, 2, 1, 3).reshape(64, 64)
    assert np.array_equal(back.in_rotary("halves", "layers.0.attention.branch.q_proj.weight").read(), q)


def test_what_a_file_says_of_itself_is_noted(tmp_path):
    path = published(tmp_path / "model.gguf", {"general.name": ("Tiny", STRING), "general.license": ("mit", STRING)})
    notes = read_gguf(path).notes
    assert (notes["name"], notes["license"]) == ("Tiny", "mit")


def test_a_window_that_a_file_gives_is_read(tmp_path):
    path = published(tmp_path / "model.gguf", {"llama.attention.sliding_window": (64, U32)})
    assert read_gguf(path).spec.sliding_window == 64


def damaged_scale() -> np.ndarray:
    blocks = package.quants.quantize(np.ones((64, 64), np.float32), Q8_0)
    blocks[3, :2] = np.array([np.nan], np.float16).view(np.uint8)
    return blocks


REFUSED = {
    "another architecture": ({"arch": "qwen2"}, "qwen2.*none that is read here: llama"),
    "a kind that is not read": (
        {"tensors": {"blk.0.ffn_down.weight": (np.zeros((64, 84), np.uint8), Q2_K)}, "metadata":
         {"llama.feed_forward_length": (256, U32)}}, "ffn_down.*of kind Q2_K.*F32, F16, BF16",
    ),
    "no embedding": ({"tensors": {"token_embd.weight": None}}, "token_embd.weight: no such matrix"),
    "no norm": ({"tensors": {"blk.1.ffn_norm.weight": None}}, "blk.1.ffn_norm.weight: no such tensor"),
    "another shape": ({"tensors": {"blk.1.attn_k.weight": np.zeros((64, 64), np.float32)}},
                      r"attn_k.*\[64, 64\].*\[32, 64\]"),
    "a tensor too many": ({"tensors": {"blk.0.attn_q_norm.weight": np.zeros(16, np.float32)}}, "no place for"),
    "three dimensions": ({"tensors": {"blk.0.attn_q.weight": np.zeros((2, 32, 64), np.float32)}}, "3 dimensions"),
    "a scale of NaN": ({"tensors": {"blk.0.attn_q.weight": (damaged_scale(), Q8_0)}}, "scale.*NaN"),
    "a missing key": ({"metadata": {"llama.block_count": None}}, "llama.block_count: missing"),
    "a key in words": ({"metadata": {"llama.block_count": ("two", STRING)}}, "llama.block_count: should be a number"),
    "no layers": ({"metadata": {"llama.block_count": (0, U32)}}, "llama.block_count"),
    "half a layer": ({"metadata": {"llama.block_count": (1.5, F32)}}, "llama.block_count"),
    "an infinite epsilon": ({"metadata": {"llama.attention.layer_norm_rms_epsilon": (float("inf"), F32)}}, "epsilon"),
    "heads that do not divide": ({"metadata": {"llama.attention.head_count": (5, U32)}},
                                 "llama.embedding_length 64 is not a multiple of llama.attention.head_count 5"),
    "longer heads": ({"metadata": {"llama.attention.key_length": (32, U32)}}, "key_length: 32 cannot be expressed"),
    "experts": ({"metadata": {"llama.expert_count": (8, U32)}}, "expert_count: 8 cannot be expressed"),
    "a part of a model": ({"metadata": {"split.count": (3, U32)}}, "split.count: 3.*merge"),
    "LongRoPE": ({"metadata": {"llama.rope.scaling.type": ("longrope", STRING)}}, "scaling.type: 'longrope'"),
    "factors that are no LLaMA's": (
        {"tensors": {"rope_freqs.weight": np.array([1, 3, 1, 2, 1, 1, 1, 1], np.float32)}},
        "rope_freqs.weight: cannot be expressed",
    ),
    "layers of their own": (
        {"metadata": {"llama.attention.head_count_kv": ([2, 4], package.GGUFValueType.ARRAY)}}, "all layers are alike",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path, changes, reason):
    path = published(tmp_path / "model.gguf", **changes)
    with pytest.raises(UserError, match=reason) as refusal:
        read_gguf(path)
    assert str(refusal.value).startswith(f"{path}: ")


@pytest.mark.parametrize("cut", [1, 1000, 20_000])
def test_a_file_that_ends_too_soon_is_refused(tmp_path, cut):
    path = published(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match="beyond the file"):
        read_gguf(path)


def test_tensors_upon_each_other_are_refused(tmp_path):
    path = published(tmp_path / "model.gguf")
    content = path.read_bytes()
    field = package.GGUFReader(path).get_tensor(5).field  # its last part is the offset
    offset = int(field.offset) + sum(int(part.nbytes) for part in field.parts[:-1])
    path.write_bytes(content[:offset] + bytes(8) + content[offset + 8 :])
    with pytest.raises(UserError, match="lies upon"):
        read_gguf(path)


def test_llama_3_2s_factors_are_recognized():
    spec = ModelSpec(**{**SIZES, "d_model": 2048, "n_heads": 32, "n_kv_heads": 8, "max_seq_len": 131072,
                        "position": {"kind": "rope", "theta": 500000.0}})  # fmt: skip
    # As `convert_hf_to_gguf.py` of llama.cpp makes them of factor 32, low 1, high 4 and 8,192 tokens.
    frequencies = 500000.0 ** -(np.arange(0, 64, 2, dtype=np.float64) / 64)
    wavelengths = 2 * np.pi / frequencies
    smooth = (8192 / wavelengths - 1) / (4 - 1)
    factors = np.where(wavelengths < 8192 / 4, 1, np.where(wavelengths > 8192, 32, 1 / ((1 - smooth) / 32 + smooth)))
    found = read_scaling(Metadata({}, "here"), spec, factors.astype(np.float32))
    assert found == {"kind": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_seq_len": 8192}  # fmt: skip


@settings(deadline=None)
@given(
    factor=st.floats(1.5, 64),
    low=st.floats(0.25, 8),
    ratio=st.floats(1.1, 16),
    context=st.integers(64, 1 << 17),
    theta=st.sampled_from([500.0, 1e4, 5e5]),
    head_dim=st.sampled_from([8, 64, 128]),
)
def test_any_scaling_of_llama_3s_comes_back_from_its_factors(factor, low, ratio, context, theta, head_dim):
    scaling = Llama3ScalingSpec(
        factor=factor, low_freq_factor=low, high_freq_factor=low * ratio, original_max_seq_len=context
    )
    sizes = {**SIZES, "d_model": 4 * head_dim}
    plain = ModelSpec(**{**sizes, "position": RoPESpec(theta=theta)})
    scaled = ModelSpec(**{**sizes, "position": RoPESpec(theta=theta, scaling=scaling)})
    factors = rope_factors(scaled)
    found = read_scaling(Metadata({}, "here"), plain, factors)  # which may be another that gives the same
    back = ModelSpec(**{**sizes, "position": {"kind": "rope", "theta": theta, "scaling": found}})
    ours, theirs, unscaled = (inverse_frequencies(spec)[0] for spec in (back, scaled, plain))
    np.testing.assert_allclose(ours / unscaled, theirs / unscaled, rtol=0, atol=2e-6)


def test_without_the_package_nothing_is_written_and_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'shearling\[gguf\]'"):
        write_gguf(tmp_path / "model.gguf", tiny(), progress=lambda _: None)
    assert not list(tmp_path.iterdir())


def test_reading_needs_no_package(tmp_path, monkeypatch):
    write_gguf(tmp_path / "model.gguf", tiny(), progress=lambda _: None)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert read_gguf(tmp_path / "model.gguf").spec == tiny().spec
