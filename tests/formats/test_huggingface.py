"""Hugging Face folders: what `transformers` computes from them is what we compute."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from huggingface_folders import BERT, bert, edit, gpt2, llama, mistral, saved, scaled, yarn
from oracles import TOKENS, assert_same, our_logits, shaken, their_logits
from safetensors.torch import load_file, save_file

from shearling.errors import UserError
from shearling.formats.huggingface import read_huggingface
from shearling.formats.in_torch import load_transformer


def load_folder(folder: Path):
    return load_transformer(read_huggingface(folder))


def logits(folder: Path) -> torch.Tensor:
    return our_logits(read_huggingface(folder))


MODELS = {
    "llama tied": lambda: llama(tie_word_embeddings=True),
    "llama untied, biases": lambda: llama(tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "llama other rotations": lambda: llama(
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, num_key_value_heads=4, rms_norm_eps=1e-3
    ),
    "llama, linear": lambda: scaled("linear"),
    "llama, llama3": lambda: scaled(
        "llama3", low_freq_factor=1.0, high_freq_factor=2.0, original_max_position_embeddings=8
    ),
    "llama, yarn": lambda: scaled("yarn", original_max_position_embeddings=8, beta_fast=2.0, beta_slow=0.5),
    "llama, yarn of its own length": lambda: scaled("yarn", original_max_position_embeddings=8, attention_factor=0.7),
    "llama, yarn as DeepSeek has it": lambda: scaled("yarn", mscale=0.707, mscale_all_dim=2.0),
    "mistral, windowed": lambda: mistral(sliding_window=4),
    "mistral, tied, no window": lambda: mistral(sliding_window=None, tie_word_embeddings=True),
    "gpt2": lambda: gpt2(layer_norm_epsilon=1e-3),
    "gpt2 untied, exact GELU": lambda: gpt2(tie_word_embeddings=False, activation_function="gelu", n_inner=48),
    "bert": lambda: bert(layer_norm_eps=1e-3),
    "bert untied, one segment": lambda: bert(tie_word_embeddings=False, type_vocab_size=1),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
class TestLogits:
    def test_equal_those_of_transformers(self, make, tmp_path):
        model = make()
        assert_same(logits(saved(model, tmp_path)), their_logits(model))

    def test_from_several_files(self, make, tmp_path):
        model = make()
        saved(model, tmp_path, max_shard_size="15KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert_same(logits(tmp_path), their_logits(model))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_from_weights_of_half_width_are_computed_in_fp32(self, make, dtype, tmp_path):
        model = make()
        saved(model.to(dtype), tmp_path)
        assert {tensor.dtype for tensor in load_folder(tmp_path).state_dict().values()} == {torch.float32}
        theirs = type(model).from_pretrained(tmp_path, dtype=torch.float32)
        assert_same(logits(tmp_path), their_logits(theirs))


@pytest.mark.parametrize("make", [lambda: llama(tie_word_embeddings=True), gpt2], ids=["llama", "gpt2"])
def test_a_tied_model_saved_without_its_head_has_logits_all_the_same(make, tmp_path):
    model = shaken(make())
    model.base_model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert_same(logits(tmp_path), their_logits(model))


class TestABertWithoutItsHead:
    @pytest.fixture
    def encoder(self):
        return shaken(hf.BertModel(hf.BertConfig(**BERT)))

    def test_gives_the_hidden_states_of_transformers(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        with torch.no_grad():
            assert_same(load_folder(tmp_path)(TOKENS), encoder(TOKENS).last_hidden_state)

    def test_refuses_logits(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        model = load_folder(tmp_path)
        with pytest.raises(UserError, match=r"model\.head is false"):
            model.logits(model(TOKENS))


def test_a_loaded_model_can_be_trained_and_its_weights_share_no_memory(tmp_path):
    model = load_folder(saved(gpt2(), tmp_path))
    assert not model.training
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in model.parameters())
    weights = model.state_dict()
    save_file(weights, tmp_path / "again.safetensors")  # refuses tensors that share memory


class TestOldFolders:
    def test_of_bert_with_gammas_betas_and_what_else_was_stored(self, tmp_path):
        model = bert()
        saved(model, tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in weights.items()
        }
        old |= {
            "bert.embeddings.position_ids": torch.arange(24)[None],
            "bert.pooler.dense.weight": torch.ones(32, 32),
            "cls.seq_relationship.bias": torch.ones(2),
            "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"].clone(),
        }
        save_file(old, tmp_path / "model.safetensors")
        assert_same(logits(tmp_path), their_logits(model))

    def test_of_gpt2_with_stored_masks(self, tmp_path):
        model = gpt2()
        saved(model, tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights |= {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 24, 24),
            "transformer.h.0.attn.masked_bias": -torch.ones(()),
        }
        save_file(weights, tmp_path / "model.safetensors")
        assert_same(logits(tmp_path), their_logits(model))

    def test_of_llama_with_rotary_options_beside_the_others(self, tmp_path):
        model = llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
        saved(model, tmp_path)
        edit(tmp_path, rope_parameters=None, rope_theta=500.0, rope_scaling=None)
        assert_same(logits(tmp_path), their_logits(model))

    @pytest.mark.parametrize("key", ["type", "rope_type"])
    def test_of_llama_with_scaling_beside_theta(self, key, tmp_path):
        model = scaled("yarn", original_max_position_embeddings=8)
        saved(model, tmp_path)
        scaling = {key: "yarn", "factor": 3.0, "original_max_position_embeddings": 8}
        edit(tmp_path, rope_parameters=..., rope_theta=100.0, rope_scaling=scaling)
        assert_same(logits(tmp_path), their_logits(model))

    def test_of_llama_whose_factor_is_that_of_the_lengths(self, tmp_path):
        model = yarn()
        saved(model, tmp_path)
        scaling = {"rope_type": "yarn", "rope_theta": 100.0, "factor": None, "original_max_position_embeddings": 8}
        edit(tmp_path, rope_parameters=scaling)
        assert_same(logits(tmp_path), their_logits(model))

    def test_of_llama_whose_old_length_stands_outside(self, tmp_path):
        saved(scaled("yarn"), tmp_path)
        edit(tmp_path, original_max_position_embeddings=6)
        theirs = hf.LlamaForCausalLM.from_pretrained(tmp_path)
        assert theirs.config.rope_parameters["original_max_position_embeddings"] == 6
        assert_same(logits(tmp_path), their_logits(theirs))

    def test_of_mistral_whose_config_does_not_tell_its_window(self, tmp_path):
        saved(mistral(), tmp_path)
        edit(tmp_path, sliding_window=...)
        assert read_huggingface(tmp_path).spec.sliding_window == hf.MistralConfig().sliding_window


class TestWhatLiesBesideTheWeights:
    @pytest.mark.parametrize(
        ("config", "generation", "expected"),
        [
            (5, None, (5,)),
            ([5, 7, 5], None, (5, 7)),
            (None, None, ()),
            (5, {"eos_token_id": [8, 9]}, (8, 9)),
            (5, {"temperature": 1.0}, (5,)),
            ([-1, 60, 61], None, (60,)),
        ],
    )
    def test_tokens_that_end_a_text(self, copy, config, generation, expected):
        folder = copy("llama")
        edit(folder, eos_token_id=config)
        (folder / "generation_config.json").unlink(missing_ok=True)
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        assert read_huggingface(folder).stop_ids == expected

    @pytest.mark.parametrize("value", ["</s>", [True], {"a": 1}, [[2]], 2.0])
    def test_what_is_no_token_ends_none(self, copy, value):
        folder = copy("llama")
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(UserError, match=r"generation_config.json: eos_token_id: should be a token"):
            read_huggingface(folder)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (None, None),
            ("{{ a }}", "{{ a }}"),
            ([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}], "d"),
            ([{"name": ["default"]}, 3], None),
        ],
    )
    def test_the_chat_template_in_the_tokenizer_s_options(self, copy, given, expected):
        folder = copy("llama")
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
        assert read_huggingface(folder).chat_template == expected

    def test_a_chat_template_of_its_own_goes_first(self, copy):
        folder = copy("llama")
        assert read_huggingface(folder).chat_template is None
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
        (folder / "chat_template.jinja").write_text("{{ 'ä' }}", encoding="utf-8")
        assert read_huggingface(folder).chat_template == "{{ 'ä' }}"

    @pytest.mark.parametrize("given", [3, {"default": "a"}, "half a pair: \ud800"])
    def test_a_chat_template_that_is_no_text_is_refused(self, copy, given):
        folder = copy("llama")
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
        with pytest.raises(UserError, match=r"tokenizer_config.json: chat_template: should be a text"):
            read_huggingface(folder)

    @pytest.mark.parametrize("given", ["true", 1, []])
    def test_a_bos_that_is_neither_added_nor_not_is_refused(self, copy, given):
        folder = copy("llama")
        (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": given}))
        with pytest.raises(UserError, match=r"tokenizer_config\.json: add_bos_token: should be true or false"):
            read_huggingface(folder)

    def test_the_tokenizer_is_loaded_when_it_is_asked_for(self, copy, assets):
        folder = copy("llama")
        assert read_huggingface(folder).tokenizer is None
        shutil.copy(assets / "tokenizers" / "llama2" / "tokenizer.model", folder)
        assert read_huggingface(folder).load_tokenizer().vocab_size == 32000
        (folder / "tokenizer.model").write_bytes(b"no such thing")
        damaged = read_huggingface(folder)
        with pytest.raises(UserError, match=r"tokenizer\.model"):
            _ = damaged.tokenizer


def test_weights_are_views_of_the_files(tmp_path):
    tensors = read_huggingface(saved(gpt2(), tmp_path)).tensors
    computed = [name for name, tensor in tensors.items() if tensor.parts[0].flags.owndata]
    assert computed == []
    assert not any(tensor.parts[0].flags.writeable for tensor in tensors.values())


def test_reading_imports_no_torch(copy):
    code = (
        "import sys; from pathlib import Path; from shearling.formats.huggingface import read_huggingface\n"
        f"for folder in {[str(copy(name)) for name in ('llama', 'gpt2', 'bert')]!r}:\n"
        "    for tensor in read_huggingface(Path(folder)).tensors.values(): tensor.read()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
