"""Hugging Face folders that cannot be: each is refused by its file and key, in no more memory than it takes."""

import json
import os
import random
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from huggingface_folders import edit
from safetensors.torch import load_file, save_file

from shearling.errors import UserError
from shearling.formats.huggingface import read_huggingface

CANNOT = "cannot be expressed"
REFUSED = [
    ("llama", {"model_type": "mamba"}, "model_type: 'mamba' is none that is read here: llama, mistral, gpt2, bert"),
    ("llama", {"model_type": ["llama"]}, "model_type"),
    ("llama", {"model_type": ...}, "model_type: None"),
    ("llama", {"hidden_size": ...}, "hidden_size: missing"),
    ("llama", {"hidden_size": "32"}, 'hidden_size: should be a valid integer, not "32"'),
    ("llama", {"num_hidden_layers": True}, "num_hidden_layers: should be a valid integer, not true"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers: should be less than or equal to 1024"),
    ("llama", {"vocab_size": -1}, "vocab_size: should be greater than 0"),
    ("llama", {"rms_norm_eps": [1]}, r"rms_norm_eps: should be a valid number, not \[1\]"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps: should be a finite number"),
    ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ("llama", {"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
    ("llama", {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    ("llama", {"head_dim": 16}, f"head_dim: 16 {CANNOT}"),
    ("llama", {"hidden_act": "relu"}, 'hidden_act: "relu" is none'),
    ("llama", {"hidden_act": {}}, "hidden_act"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, f'rope_type: "dynamic" {CANNOT}'),
    ("llama", {"rope_scaling": {"type": "longrope"}}, f'rope_type: "longrope" {CANNOT}'),
    ("llama", {"rope_scaling": {"type": ["yarn"]}}, f"rope_type: .* {CANNOT}"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor: missing"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, 'factor: should be a valid number, not "2"'),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor: should be greater than 0"),
    ("llama", {"rope_scaling": {"type": "llama3", "factor": 2.0}}, "low_freq_factor, high_freq_factor: missing"),
    ("llama", {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 4, "high_freq_factor": 1}},
     r"high_freq_factor 1\.0 should be greater than low_freq_factor 4\.0"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, f"truncate: false {CANNOT}"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": "a", "mscale_all_dim": 1}},
     "attention_factor: should be a valid number"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2**40}},
     "original_max_position_embeddings: should be less than"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1, "rope_parameters": None},
     r"rope_theta 1\.0 should be greater than 1"),
    ("llama", {"rope_scaling": {"full_attention": {"factor": 2.0}}}, f'unknown_rope_option: "full_attention" {CANNOT}'),
    ("llama", {"rope_scaling": 7}, f"rope_type: 7 {CANNOT}"),
    ("llama", {"rope_parameters": {"rope_theta": "big"}}, "rope_theta: should be a valid number"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, f"partial_rotary_factor: 0.5 {CANNOT}"),
    ("llama", {"sliding_window": 8}, f"sliding_window: 8 {CANNOT}"),
    ("llama", {"quantization_config": {"bits": 4}}, f"quantization_config: .* {CANNOT}"),
    ("llama", {"auto_map": {"AutoModel": "a.B"}}, f"auto_map: .* {CANNOT}"),
    ("gpt2", {"activation_function": "relu"}, 'activation_function: "relu" is none'),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, f"scale_attn_by_inverse_layer_idx: true {CANNOT}"),
    ("gpt2", {"scale_attn_weights": False}, f"scale_attn_weights: false {CANNOT}"),
    ("gpt2", {"resid_pdrop": 0.3}, "resid_pdrop: 0.3: it is 0.1 elsewhere"),
    ("gpt2", {"n_embd": "wide"}, "n_embd: should be a valid integer"),
    ("gpt2", {"n_inner": 64}, r"mlp\.c_fc\.weight: its shape is \[32, 128\], and config.json asks for \[32, 64\]"),
    ("bert", {"position_embedding_type": "relative_key"}, f"position_embedding_type: .* {CANNOT}"),
    ("bert", {"is_decoder": True}, f"is_decoder: true {CANNOT}"),
    ("bert", {"hidden_act": "gelu_new"}, 'hidden_act: "gelu_new" is none'),
    ("bert", {"type_vocab_size": 3}, "token_type_embeddings.weight: its shape"),
    ("bert", {"type_vocab_size": None}, "token_type_embeddings.weight: its shape"),
    ("bert", {"num_hidden_layers": 1}, r"encoder\.layer\.1\..*: no place for this tensor"),
    ("bert", {"num_hidden_layers": 3}, r"encoder\.layer\.2\..*: no weight file holds this tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_a_config_that_cannot_be_is_refused_by_file_and_key(copy, name, options, message):
    folder = copy(name)
    edit(folder, **options)
    with pytest.raises(UserError, match=message) as error:
        read_huggingface(folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


HOSTILE = (
    None, True, -1, 0, 1, 2, 3, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e-300, 1e300, "", "1", "yarn", "llama3",
    "linear", "default", [], [1], {}, {"a": 1}, {"rope_type": "yarn"}, {"type": "llama3", "factor": 8}, [[]],
)  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "mistral", "yarn", "gpt2", "bert"])
def test_mutated_configs_are_read_or_refused(copy, name):
    """Whatever they say: no other error, and no more memory than the files take."""
    folder = copy(name)
    file, draw = folder / "config.json", random.Random(name)
    whole = file.read_bytes()
    (folder / "generation_config.json").unlink(missing_ok=True)
    read = 0
    tracemalloc.start()
    for _ in range(400):
        changed = json.loads(whole)
        for _ in range(draw.choice((1, 1, 2, 4))):
            rotary = changed.get("rope_parameters")
            place = rotary if isinstance(rotary, dict) and draw.random() < 0.4 else changed
            place[draw.choice([*place, "rope_scaling", "factor"])] = draw.choice(HOSTILE)
        content = bytearray(json.dumps(changed).encode())
        if draw.random() < 0.3:
            content[draw.randrange(len(content))] = draw.randrange(256)
        file.write_bytes(content)
        try:
            read_huggingface(folder)
            read += 1
        except UserError as error:
            assert str(folder) in str(error)  # noqa: PT017 (most cases raise, and some need not)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert read > 10


class TestRefusesWeights:
    def change(self, folder: Path, **tensors) -> None:
        """Sets tensors by name (`__` for a dot); None takes one away."""
        weights = load_file(folder / "model.safetensors")
        weights |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors")

    def refused(self, folder: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            read_huggingface(folder)
        assert str(folder) in str(error.value)

    def test_that_are_pickled(self, copy):
        folder = copy("gpt2")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        self.refused(folder, r"pickled \(pytorch_model.bin\).* save_pretrained")

    def test_that_are_not_there(self, copy):
        folder = copy("gpt2")
        (folder / "model.safetensors").unlink()
        self.refused(folder, "no weights")

    @pytest.mark.parametrize("size", [0, 5, 200, 20000])
    def test_of_a_file_cut_short(self, copy, size):
        folder = copy("gpt2")
        os.truncate(folder / "model.safetensors", size)
        self.refused(folder, "model.safetensors: no whole safetensors file")

    def test_without_one_of_the_tensors(self, copy):
        folder = copy("gpt2")
        self.change(folder, transformer__h__1__ln_1__bias=None)
        self.refused(folder, r"h\.1\.ln_1\.bias: no weight file holds this tensor")

    def test_with_half_a_masked_token_head(self, copy):
        folder = copy("bert")
        self.change(folder, cls__predictions__transform__dense__weight=None)
        self.refused(folder, r"cls\.predictions\.transform\.dense\.weight: no weight file")

    def test_of_another_shape(self, copy):
        folder = copy("gpt2")
        self.change(folder, transformer__h__0__attn__c_attn__weight=torch.zeros(96, 32))
        self.refused(folder, r"transformer\.h\.0\.attn\.c_attn\.weight: its shape is \[96, 32\].* \[32, 96\]")

    def test_of_integers(self, copy):
        folder = copy("llama")
        self.change(folder, model__norm__weight=torch.zeros(32, dtype=torch.int8))
        self.refused(folder, r"model\.norm\.weight: I8 is no dtype")

    def test_of_a_classifier(self, copy):
        folder = copy("bert")
        self.change(folder, classifier__weight=torch.zeros(2, 32))
        self.refused(folder, r"classifier\.weight: no place for this tensor")

    def test_with_a_head_that_is_tied_and_differs(self, copy):
        folder = copy("gpt2")
        self.change(folder, lm_head__weight=torch.zeros(61, 32))
        self.refused(folder, r"lm_head\.weight: not equal to wte\.weight, though tie_word_embeddings")

    def test_under_two_names(self, copy):
        folder = copy("gpt2")
        self.change(folder, wte__weight=torch.zeros(61, 32))
        self.refused(folder, r"wte\.weight: there twice")

    @pytest.mark.parametrize(
        "name", ["../model.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "code.py", "", "\0.safetensors"]
    )
    def test_that_an_index_has_outside_of_the_folder_or_in_another_format(self, copy, name):
        folder = copy("gpt2") / "inner"
        folder.mkdir()
        shutil.copy(folder.parent / "config.json", folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
        self.refused(folder, "weight_map: .* is no safetensors file of this folder")

    @pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"weight_map": {"a": 3}}', b"\xff", b"[" * 100000])
    def test_of_an_index_that_is_none(self, copy, index):
        folder = copy("gpt2")
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_bytes(index)
        self.refused(folder, "index.json")

    def test_of_an_index_whose_file_is_missing(self, copy):
        folder = copy("gpt2")
        (folder / "model.safetensors").unlink()
        listed = {"weight_map": {"wte.weight": "model-1.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
        self.refused(folder, "model-1.safetensors: no whole safetensors file")
