"""Hugging Face folders: what `transformers` computes from them is what we compute."""

import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from shearling.errors import UserError
from shearling.formats.huggingface import read_huggingface
from shearling.formats.in_torch import load_transformer

SIZES = {"vocab_size": 61, "max_position_embeddings": 24}
LLAMA = {
    **SIZES, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0,
        "eos_token_id": 0}  # fmt: skip
BERT = {**SIZES, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 58], [60, 0, 7, 9, 32, 3, 8, 4, 6, 2, 6]])


def llama(**options):
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**LLAMA, **options}))


def scaled(kind, **options):
    return llama(rope_parameters={"rope_type": kind, "rope_theta": 100.0, "factor": 3.0, **options})


def yarn():
    return scaled("yarn", original_max_position_embeddings=8)


def mistral(**options):
    return hf.MistralForCausalLM(hf.MistralConfig(**{**LLAMA, **options}))


def gpt2(**options):
    return hf.GPT2LMHeadModel(hf.GPT2Config(**{**GPT2, **options}))


def bert(**options):
    return hf.BertForMaskedLM(hf.BertConfig(**{**BERT, **options}))


def shaken(model):
    """Every parameter moved, so that no bias is 0 and no gain 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def saved(model, folder: Path, **options) -> Path:
    shaken(model).save_pretrained(folder, **options)
    return folder


def load_folder(folder: Path):
    return load_transformer(read_huggingface(folder))


@torch.no_grad()
def our_logits(folder: Path, tokens=TOKENS) -> torch.Tensor:
    model = load_folder(folder)
    return model.logits(model(tokens))


@torch.no_grad()
def their_logits(model, tokens=TOKENS) -> torch.Tensor:
    logits = model(tokens).logits
    assert logits.std() > 0.3  # they say something
    return logits


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


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
        assert_same(our_logits(saved(model, tmp_path)), their_logits(model))

    def test_from_several_files(self, make, tmp_path):
        model = make()
        saved(model, tmp_path, max_shard_size="15KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert_same(our_logits(tmp_path), their_logits(model))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_from_weights_of_half_width_are_computed_in_fp32(self, make, dtype, tmp_path):
        model = make()
        saved(model.to(dtype), tmp_path)
        assert {tensor.dtype for tensor in load_folder(tmp_path).state_dict().values()} == {torch.float32}
        theirs = type(model).from_pretrained(tmp_path, dtype=torch.float32)
        assert_same(our_logits(tmp_path), their_logits(theirs))


@pytest.mark.parametrize("make", [lambda: llama(tie_word_embeddings=True), gpt2], ids=["llama", "gpt2"])
def test_a_tied_model_saved_without_its_head_has_logits_all_the_same(make, tmp_path):
    model = shaken(make())
    model.base_model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert_same(our_logits(tmp_path), their_logits(model))


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
        assert_same(our_logits(tmp_path), their_logits(model))

    def test_of_gpt2_with_stored_masks(self, tmp_path):
        model = gpt2()
        saved(model, tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights |= {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 24, 24),
            "transformer.h.0.attn.masked_bias": -torch.ones(()),
        }
        save_file(weights, tmp_path / "model.safetensors")
        assert_same(our_logits(tmp_path), their_logits(model))

    def test_of_llama_with_rotary_options_beside_the_others(self, tmp_path):
        model = llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
        saved(model, tmp_path)
        edit(tmp_path, rope_parameters=None, rope_theta=500.0, rope_scaling=None)
        assert_same(our_logits(tmp_path), their_logits(model))

    @pytest.mark.parametrize("key", ["type", "rope_type"])
    def test_of_llama_with_scaling_beside_theta(self, key, tmp_path):
        model = scaled("yarn", original_max_position_embeddings=8)
        saved(model, tmp_path)
        scaling = {key: "yarn", "factor": 3.0, "original_max_position_embeddings": 8}
        edit(tmp_path, rope_parameters=..., rope_theta=100.0, rope_scaling=scaling)
        assert_same(our_logits(tmp_path), their_logits(model))

    def test_of_llama_whose_factor_is_that_of_the_lengths(self, tmp_path):
        model = yarn()
        saved(model, tmp_path)
        scaling = {"rope_type": "yarn", "rope_theta": 100.0, "factor": None, "original_max_position_embeddings": 8}
        edit(tmp_path, rope_parameters=scaling)
        assert_same(our_logits(tmp_path), their_logits(model))

    def test_of_llama_whose_old_length_stands_outside(self, tmp_path):
        saved(scaled("yarn"), tmp_path)
        edit(tmp_path, original_max_position_embeddings=6)
        theirs = hf.LlamaForCausalLM.from_pretrained(tmp_path)
        assert theirs.config.rope_parameters["original_max_position_embeddings"] == 6
        assert_same(our_logits(tmp_path), their_logits(theirs))

    def test_of_mistral_whose_config_does_not_tell_its_window(self, tmp_path):
        saved(mistral(), tmp_path)
        edit(tmp_path, sliding_window=...)
        assert read_huggingface(tmp_path).spec.sliding_window == hf.MistralConfig().sliding_window


def edit(folder: Path, **options) -> None:
    """Changes config.json; a key whose value is `...` goes."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | options
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {make.__name__: saved(make(), folder / make.__name__) for make in (llama, mistral, yarn, gpt2, bert)}


@pytest.fixture
def copy(originals, tmp_path):
    """A folder to spoil: `copy("gpt2")`."""
    return lambda name: shutil.copytree(originals[name], tmp_path / name)


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
