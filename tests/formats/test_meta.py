"""Meta's folders, made here from models of `transformers`: what those compute from them is what we compute."""

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from meta_folders import PARAMS, llama, split, state_of
from oracles import TOKENS, assert_same, our_logits, their_logits

from shearling.errors import UserError
from shearling.formats.meta import Params, read_meta
from shearling.formats.pages import PagesHeld
from shearling.models.spec import Llama3ScalingSpec
from shearling.quantization import CODECS


def logits(folder: Path, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return our_logits(read_meta(folder), tokens)


class TestLogitsAreThoseOfTransformers:
    @pytest.mark.parametrize("embedding_by_rows", [False, True], ids=["LLaMA 1 and 2", "LLaMA 3"])
    @pytest.mark.parametrize("count", [1, 2])
    def test_from_one_file_and_from_several(self, count, embedding_by_rows, meta_folder):
        model = llama()
        assert_same(logits(meta_folder(split(state_of(model), count, embedding_by_rows))), their_logits(model))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_of_weights_of_half_width(self, dtype, meta_folder):
        model = llama()
        state = {name: tensor.to(dtype) for name, tensor in state_of(model).items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(dtype))
        assert_same(logits(meta_folder(split(state, 2, True))), their_logits(model))

    def test_without_grouped_queries(self, meta_folder):
        model = llama(num_key_value_heads=4)
        assert_same(logits(meta_folder([state_of(model)], n_kv_heads=...)), their_logits(model))

    def test_with_a_vocabulary_that_only_the_tensors_tell(self, meta_folder):
        model = llama()
        assert_same(logits(meta_folder(split(state_of(model), 2, True), vocab_size=-1)), their_logits(model))

    def test_with_another_theta_and_epsilon(self, meta_folder):
        rope = {"rope_type": "default", "rope_theta": 500.0}
        model = llama(rope_parameters=rope, rms_norm_eps=1e-3)
        assert_same(logits(meta_folder([state_of(model)], rope_theta=500.0, norm_eps=1e-3)), their_logits(model))

    def test_with_the_slowed_rotations_of_llama_3_1(self, meta_folder):
        rope = {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
        # Heads of 16, as long wavelengths as any, and positions enough that the slowed ones can be told.
        model = llama(rope_parameters=rope, num_attention_heads=2, max_position_embeddings=131072)
        tokens = torch.arange(1500)[None] * 7 % 64
        sizes = {"n_heads": 2, "rope_theta": 500000.0}
        slowed = their_logits(model, tokens)
        folder = meta_folder([state_of(model)], **sizes, use_scaled_rope=True)
        assert_same(logits(folder, tokens), slowed)
        (folder / "params.json").write_text(json.dumps({**PARAMS, **sizes}))
        assert (logits(folder, tokens) - slowed).abs().max() > 0.01

    def test_of_parameters_as_a_module_has_them(self, meta_folder):
        model = llama()
        state = {name: torch.nn.Parameter(tensor) for name, tensor in state_of(model).items()}
        assert_same(logits(meta_folder([state])), their_logits(model))


def test_stored_frequencies_are_left_out(meta_folder):
    state = state_of(llama()) | {
        "rope.freqs": torch.ones(4),
        "layers.0.attention.inner_attention.rope.freqs": torch.ones(4),
    }
    assert not any("rope" in name for name in read_meta(meta_folder([state])).tensors)


def test_without_a_head_the_embedding_is_one(meta_folder):
    state = state_of(llama(tie_word_embeddings=True))
    del state["output.weight"]
    checkpoint = read_meta(meta_folder([state]))
    assert checkpoint.spec.tie_embeddings
    assert "head.weight" not in checkpoint.tensors


def test_a_head_that_is_the_embeddings_memory_is_tied(meta_folder):
    state = state_of(llama(tie_word_embeddings=True))
    state["output.weight"] = state["tok_embeddings.weight"].detach()
    assert read_meta(meta_folder([state])).spec.tie_embeddings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_one_file_nothing_is_copied(meta_folder, dtype):
    folder = meta_folder([{name: tensor.to(dtype) for name, tensor in state_of(llama()).items()}])
    checkpoint = read_meta(folder)
    tensor = checkpoint.tensors["layers.1.attention.branch.q_proj.weight"]
    start = tensor.parts[0].ctypes.data
    mapped = [
        range(*(int(end, 16) for end in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("consolidated.00.pth")
    ]
    assert any(start in addresses for addresses in mapped)


@pytest.mark.parametrize(
    ("params", "length"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({}, 4096),
        ({"rope_theta": 1e6}, 16384),
        ({"rope_theta": 500000.0}, 8192),
        ({"rope_theta": 500000.0, "use_scaled_rope": True}, 131072),
        ({"max_seq_len": 77}, 77),
    ],
    ids=["LLaMA 1", "LLaMA 2", "Code Llama", "LLaMA 3", "LLaMA 3.1", "told"],
)
def test_the_context_is_that_of_the_published_models(params, length, meta_folder):
    assert read_meta(meta_folder([state_of(llama())], **params)).spec.max_seq_len == length


def test_a_factor_that_is_told_is_taken(meta_folder):
    folder = meta_folder([state_of(llama())], use_scaled_rope=True, rope_scaling_factor=32.0)
    assert read_meta(folder).spec.position.scaling == Llama3ScalingSpec(factor=32.0, original_max_seq_len=8192)


@pytest.mark.parametrize(("dim", "factor"), [(2048, 32.0), (3072, 32.0), (4096, 8.0)])
def test_the_factor_of_llama_3_2_is_known_by_its_width(dim, factor):
    params = Params.model_validate({**PARAMS, "dim": dim, "use_scaled_rope": True})
    assert params.scaling["factor"] == factor


class TestTheTokenizer:
    @pytest.fixture
    def folder(self, meta_folder):
        return meta_folder([state_of(llama())])

    def test_beside_the_model_is_found(self, folder, assets):
        shutil.copy(assets / "tokenizers" / "llama2" / "tokenizer.model", folder)
        assert read_meta(folder).load_tokenizer().vocab_size == 32000

    def test_is_none_where_there_is_none(self, folder):
        assert read_meta(folder).tokenizer is None

    def test_of_tiktoken_is_refused_with_what_to_take(self, folder):
        (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
        with pytest.raises(UserError, match=r"tokenizer.model: a tiktoken vocabulary.* tokenizer.json"):
            _ = read_meta(folder).tokenizer


class TestPieces:
    @pytest.mark.parametrize("embedding_by_rows", [False, True])
    def test_are_joined_in_any_rows(self, embedding_by_rows, meta_folder):
        state = state_of(llama())
        tensors = read_meta(meta_folder(split(state, 2, embedding_by_rows))).tensors
        for ours, theirs in (
            ("embed", "tok_embeddings"),
            ("layers.1.feedforward.branch.down_proj", "layers.1.feed_forward.w2"),
        ):
            tensor, whole = tensors[f"{ours}.weight"], state[f"{theirs}.weight"].numpy()
            for rows in (
                slice(None),
                slice(5, 9),
                slice(10, 40),
                slice(31, 33),
                slice(20, 99),
                slice(7, 7),
                slice(-3, None),
            ):
                np.testing.assert_array_equal(tensor.read(rows), whole[rows])
            shuffled = np.random.default_rng(0).permutation(len(whole))
            np.testing.assert_array_equal(tensor.reordered(shuffled).read(), whole[shuffled])

    def test_are_not_joined_for_what_is_known_of_a_tensor_beforehand(self, meta_folder):
        model = llama(vocab_size=20_000, tie_word_embeddings=False)
        folder = meta_folder(split(state_of(model), 2, True), vocab_size=20_000)
        checkpoint = read_meta(folder)
        tracemalloc.start()
        n_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        PagesHeld(checkpoint.tensors.values())
        for piece in checkpoint.tensors["embed.weight"].encoded(CODECS["f32"]):
            assert piece[0].shape == (20_000, 32)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())
        assert peak < 1.1 * 4 * 20_000 * 32  # the one that was read
