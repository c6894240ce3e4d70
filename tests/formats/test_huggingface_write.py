"""Folders that we write: `transformers` loads them and computes what we compute."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from oracles import in_memory
from safetensors import safe_open

from shearling.data.tokenizers import load_tokenizer
from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, StoredTensor, rotary_heads, rotary_order
from shearling.formats.huggingface import read_huggingface, write_huggingface
from shearling.formats.in_torch import load_transformer
from shearling.formats.llama2c import read_llama2c
from shearling.formats.specification import expected_shapes
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer
from shearling.quantization import CODECS

SMALL = {
    "d_model": 32, "n_layers": 2, "n_heads": 4, "intermediate_size": 40, "vocab_size": 61, "max_seq_len": 24,
    "init_std": 0.2,
}  # fmt: skip
GELU = {
    "activation": "gelu", "norm": {"kind": "layernorm"}, "position": {"kind": "learned"}, "attention_bias": True,
    "feedforward_bias": True,
}  # fmt: skip
GPT2 = {"arch": "gpt2", **GELU}
BERT = {
    **GELU, "arch": "bert", "activation": "gelu_erf", "placement": {"kind": "post"}, "embedding_norm": True,
    "final_norm": False,
}  # fmt: skip
LLAMA3 = {"kind": "llama3", "factor": 3.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_seq_len": 8}
YARN = {"kind": "yarn", "factor": 3.0, "original_max_seq_len": 8, "beta_fast": 2.0, "beta_slow": 0.5}

SPECS = {
    "llama tied": {},
    "llama untied, grouped": {"tie_embeddings": False, "n_kv_heads": 2},
    "llama, one key head, biases": {"n_kv_heads": 1, "attention_bias": True, "feedforward_bias": True},
    "llama, eps and theta": {"norm": {"kind": "rmsnorm", "eps": 1e-3}, "position": {"kind": "rope", "theta": 50.0}},
    "llama, linear": {"position": {"kind": "rope", "scaling": {"kind": "linear", "factor": 4.0}}},
    "llama, llama3": {"position": {"kind": "rope", "theta": 100.0, "scaling": LLAMA3}},
    "llama, yarn": {"position": {"kind": "rope", "theta": 100.0, "scaling": YARN}},
    "llama, yarn of its own length": {"position": {"kind": "rope", "scaling": {**YARN, "attention_factor": 0.7}}},
    "llama, gains scaled at first": {"placement": {"kind": "lns_gain"}},
    "mistral": {"sliding_window": 5, "n_kv_heads": 2, "tie_embeddings": False},
    "gpt2": GPT2,
    "gpt2 untied, exact GELU": {**GPT2, "tie_embeddings": False, "activation": "gelu_erf"},
    "bert": BERT,
    "bert untied": {**BERT, "tie_embeddings": False},
}
TOKENS = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))


def model_of(**options) -> Transformer:
    """A model all of whose parameters count: no bias is 0 and no gain 1."""
    model = Transformer(ModelSpec(**{**SMALL, **options}), seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def adjacent(checkpoint: Checkpoint) -> Checkpoint:
    """The same as Meta's files have it."""
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        heads = rotary_heads(checkpoint.spec, name)
        tensors[name] = tensor.reordered(rotary_order(tensor.shape[0], heads, "adjacent")) if heads else tensor
    return Checkpoint(spec=checkpoint.spec, tensors=tensors, rotary="adjacent", origin="Meta's")


@torch.no_grad()
def our_logits(model: Transformer) -> torch.Tensor:
    return model.logits(model(TOKENS))


@torch.no_grad()
def their_logits(folder: Path) -> torch.Tensor:
    config = hf.AutoConfig.from_pretrained(folder)
    auto = hf.AutoModelForMaskedLM if config.model_type == "bert" else hf.AutoModelForCausalLM
    model, report = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()(TOKENS).logits


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.std() > 0.3  # they say something
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", SPECS.values(), ids=SPECS)
class TestLogits:
    def test_of_transformers_equal_ours(self, options, tmp_path):
        model = model_of(**options)
        write_huggingface(tmp_path, in_memory(model))
        assert_same(our_logits(model), their_logits(tmp_path))

    def test_from_several_files(self, options, tmp_path):
        model = model_of(**options)
        write_huggingface(tmp_path, in_memory(model), shard_bytes=20_000)
        files = sorted(tmp_path.glob("*.safetensors"))
        assert len(files) > 2
        assert all(file.stat().st_size < 25_000 for file in files)
        assert_same(our_logits(model), their_logits(tmp_path))

    def test_and_what_is_read_back_is_what_was_written(self, options, tmp_path):
        model = model_of(**options)
        write_huggingface(tmp_path, in_memory(model))
        found = load_transformer(read_huggingface(tmp_path))
        for name, parameter in model.state_dict().items():
            assert torch.equal(found.state_dict()[name], parameter), name
        assert torch.equal(our_logits(found), our_logits(model))


@pytest.mark.parametrize("options", [{}, {"n_kv_heads": 2, "attention_bias": True}], ids=["all heads", "grouped"])
def test_rotary_rows_that_lie_side_by_side_are_brought_apart(options, tmp_path):
    model = model_of(**options)
    write_huggingface(tmp_path, adjacent(in_memory(model)))
    assert_same(our_logits(model), their_logits(tmp_path))


class TestDtypes:
    def stored(self, folder: Path) -> dict[str, torch.Tensor]:
        with safe_open(folder / "model.safetensors", "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    @pytest.mark.parametrize("options", [{}, GPT2], ids=["llama", "gpt2"])
    @pytest.mark.parametrize(("codec", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
    def test_matrices_are_rounded_as_torch_rounds_and_vectors_are_not(self, options, codec, dtype, tmp_path):
        model = model_of(**options)
        write_huggingface(tmp_path, in_memory(model), codec=CODECS[codec])
        assert {t.dtype for t in self.stored(tmp_path).values() if t.ndim > 1} == {dtype}
        found = load_transformer(read_huggingface(tmp_path)).state_dict()
        for name, parameter in model.state_dict().items():
            rounded = parameter.to(dtype).float() if parameter.ndim > 1 else parameter
            assert torch.equal(found[name], rounded), name
        assert hf.AutoModelForCausalLM.from_pretrained(tmp_path).dtype == dtype

    def test_without_a_codec_each_tensor_keeps_its_own(self, tmp_path):
        whole = in_memory(model_of())
        half = {
            name: StoredTensor(tensor.shape, CODECS["bf16"], CODECS["bf16"].encode(tensor.read()))
            for name, tensor in whole.tensors.items()
            if "q_proj" in name
        }
        mixed = Checkpoint(whole.spec, {**whole.tensors, **half}, "halves", "mixed")
        write_huggingface(tmp_path, mixed)
        for name, tensor in self.stored(tmp_path).items():
            assert tensor.dtype == (torch.bfloat16 if "q_proj" in name else torch.float32)
        assert hf.AutoConfig.from_pretrained(tmp_path).dtype == torch.float32

    def test_a_codec_that_the_format_cannot_hold_is_kept_as_fp32(self, tmp_path):
        whole = in_memory(model_of())
        wide = {name: StoredTensor(t.shape, CODECS["f64"], CODECS["f64"].encode(t.read()))
                for name, t in whole.tensors.items()}  # fmt: skip
        write_huggingface(tmp_path, Checkpoint(whole.spec, wide, "halves", "wide"))
        assert {tensor.dtype for tensor in self.stored(tmp_path).values()} == {torch.float32}


class _Blocks(type(CODECS["f32"])):
    name = "q8_0"


NO_MODEL = [
    ({"norm": {"kind": "layernorm"}}, r"our model: model\.norm\.kind: no llama model"),
    (
        {"placement": {"kind": "sandwich"}, "qk_norm": {"kind": "l2"}},
        r"model\.placement\.kind, model\.qk_norm: no llama",
    ),
    ({"sliding_window": 4, "attention_bias": True}, r"model\.attention_bias: no mistral model"),
    ({**GPT2, "sliding_window": 4}, r"model\.sliding_window: no gpt2 model"),
    ({**GPT2, "norm": {"kind": "layernorm", "bias": False}}, r"model\.norm\.bias: no gpt2 model"),
    ({**GPT2, "norm": {"kind": "ssnorm"}}, r"model\.norm\.kind: no gpt2 model"),
    ({**GPT2, "attention_bias": False}, r"model\.attention_bias: no gpt2 model"),
    ({**GPT2, "activation": "swiglu"}, r"model\.activation: no gpt2 model"),
    ({**GPT2, "position": {"kind": "rope"}}, r"model\.position\.kind: no gpt2 model"),
    ({**GPT2, "n_kv_heads": 2}, r"model\.n_kv_heads: no gpt2 model"),
    ({**GPT2, "embedding_norm": True}, r"model\.embedding_norm: no gpt2 model"),
    ({**GPT2, "placement": {"kind": "deepnorm"}}, r"model\.placement\.kind"),
    ({**GPT2, "logit_softcap": 30.0}, r"model\.logit_softcap: no gpt2 model"),
    ({"value_embeddings": 1, "activation": "relu2"}, r"model\.activation, model\.value_embeddings: no llama"),
    ({**BERT, "final_norm": True}, r"model\.final_norm: no bert model"),
    ({**BERT, "activation": "gelu"}, r"model\.activation: no bert model"),
]


class TestRefuses:
    @pytest.mark.parametrize(("options", "message"), NO_MODEL, ids=[message for _, message in NO_MODEL])
    def test_a_model_that_transformers_has_not_and_writes_nothing(self, options, message, tmp_path):
        with pytest.raises(UserError, match=message) as error:
            write_huggingface(tmp_path / "new", in_memory(model_of(**options)))
        assert len(str(error.value).splitlines()) == 1
        assert not (tmp_path / "new").exists()

    def test_a_weight_beyond_the_codec(self, tmp_path):
        checkpoint = in_memory(model_of())
        checkpoint.tensors["embed.weight"].parts[0][5, 7] = -1e5
        with pytest.raises(UserError, match="a weight is beyond fp16"):
            write_huggingface(tmp_path / "new", checkpoint, codec=CODECS["f16"])

    def test_quantized_weights(self, tmp_path):
        with pytest.raises(UserError, match=r"q8_0: a Hugging Face folder takes f32, f16, bf16.*\.gguf"):
            write_huggingface(tmp_path / "new", in_memory(model_of()), codec=_Blocks())
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("name", ["final_norm.weight", "embed_norm.weight"])
    def test_a_model_with_a_tensor_less_or_more(self, name, tmp_path):
        checkpoint = in_memory(model_of())
        tensors = dict(checkpoint.tensors)
        if tensors.pop(name, None) is None:
            tensors[name] = StoredTensor.of(np.ones(32, np.float32))
        with pytest.raises(UserError, match=f"our model: {name}"):
            write_huggingface(tmp_path / "new", Checkpoint(checkpoint.spec, tensors, "halves", "our model"))
        assert not (tmp_path / "new").exists()


def test_dropout_and_initialization_are_no_reason_to_refuse(tmp_path):
    options = {
        "dropout": 0.1,
        "attention_dropout": 0.2,
        "init": "depth",
        "placement": {"residual_warmup": 10, "kind": "pre"},
    }
    model = model_of(**options)
    write_huggingface(tmp_path, in_memory(model))
    assert_same(our_logits(model), their_logits(tmp_path))


def test_an_encoder_without_its_head(tmp_path):
    model = model_of(**BERT, head=False)
    write_huggingface(tmp_path, in_memory(model))
    theirs = hf.AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), theirs(TOKENS).last_hidden_state, rtol=0, atol=1e-5)
    assert not read_huggingface(tmp_path).spec.head


TEXTS = ("Once upon a time", " two  spaces, ", "Zoë 東京 🙂", "<s> </s> [INST]", "line\n\n\ttab 123", "")


@pytest.fixture(scope="module", params=["llama2/tokenizer.model", "tok512/tok512.bin", "gpt2"])
def tokenizer(request, assets):
    return load_tokenizer(assets / "tokenizers" / request.param)


class TestTokenizers:
    @pytest.fixture
    def folder(self, tokenizer, tmp_path):
        checkpoint = in_memory(
            model_of(vocab_size=tokenizer.vocab_size),
            load_tokenizer=lambda: tokenizer,
            chat_template="{% for m in messages %}{{ bos_token }}{{ m['content'] }}{% endfor %}",
            stop_ids=(tokenizer.bos_id,),
        )
        assert write_huggingface(tmp_path, checkpoint) == []
        return tmp_path

    def test_auto_tokenizer_encodes_and_decodes_as_ours(self, folder, tokenizer):
        theirs = hf.AutoTokenizer.from_pretrained(folder)
        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
            assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
        assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
        assert theirs.model_max_length == 24

    def test_what_we_read_back_is_the_same(self, folder, tokenizer):
        found = read_huggingface(folder)
        assert found.tokenizer.sha256 == tokenizer.sha256
        assert found.stop_ids == (tokenizer.bos_id,)
        assert found.chat_template.startswith("{% for m in messages %}")

    def test_auto_tokenizer_has_the_chat_template(self, folder, tokenizer):
        theirs = hf.AutoTokenizer.from_pretrained(folder)
        text = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert text == f"{theirs.bos_token}hi"

    def test_generation_ends_at_our_stop_tokens(self, folder, tokenizer):
        options = hf.AutoModelForCausalLM.from_pretrained(folder).generation_config
        assert (options.bos_token_id, options.eos_token_id) == (tokenizer.bos_id, tokenizer.bos_id)


def test_transformers_tells_the_story_that_llama2c_tells(assets, tmp_path):
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    tok512 = assets / "tokenizers" / "tok512" / "tok512.bin"
    write_huggingface(tmp_path, read_llama2c(assets / "models" / "stories260K.bin", tok512))
    model, tokenizer = hf.AutoModelForCausalLM.from_pretrained(tmp_path), hf.AutoTokenizer.from_pretrained(tmp_path)
    ids = model.generate(torch.tensor([[tokenizer.bos_token_id]]), max_new_tokens=40, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).startswith(story)


def test_without_a_tokenizer_nothing_is_said_of_special_tokens(tmp_path):
    assert write_huggingface(tmp_path, in_memory(model_of())) == [
        "our model has no tokenizer: put its files into the folder"
    ]
    config = hf.AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id) == (None, None)
    assert read_huggingface(tmp_path).stop_ids == ()


def test_several_stop_tokens_are_a_list(tmp_path):
    write_huggingface(tmp_path, in_memory(model_of(), stop_ids=(7, 9)))
    assert hf.AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [7, 9]
    assert read_huggingface(tmp_path).stop_ids == (7, 9)


def test_progress_counts_every_byte_of_the_weights(tmp_path):
    written = []
    write_huggingface(tmp_path, in_memory(model_of()), progress=written.append, shard_bytes=20_000)
    assert sum(written) == sum(
        file.stat().st_size for file in tmp_path.iterdir() if not file.name.endswith("index.json")
    )


def test_the_index_says_where_each_tensor_is_and_what_all_take(tmp_path):
    checkpoint = in_memory(model_of())
    write_huggingface(tmp_path, checkpoint, shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "np") as opened:
            assert name in opened.keys()  # noqa: SIM118


def test_memory_does_not_grow_with_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr("shearling.formats.checkpoint.NUMBERS_AT_ONCE", 1 << 16)
    spec = ModelSpec(**{**SMALL, "vocab_size": 300_000})
    tensors = {name: StoredTensor.of(np.broadcast_to(np.float32(0.5), shape))
               for name, shape in expected_shapes(spec).items()}  # fmt: skip
    checkpoint = Checkpoint(spec, tensors, "halves", "a large model")
    tracemalloc.start()
    write_huggingface(tmp_path, checkpoint, codec=CODECS["f16"])
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
    assert (tmp_path / "model.safetensors").stat().st_size > 19_000_000


@pytest.mark.parametrize("options", SPECS.values(), ids=SPECS)
def test_names_and_shapes_are_told_without_making_the_model(options):
    model = model_of(**options)
    assert expected_shapes(model.spec) == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_a_model_loaded_in_torch_takes_either_order_of_rotary_rows():
    model = model_of(n_kv_heads=2)
    found = load_transformer(adjacent(in_memory(model)))
    assert torch.equal(our_logits(found), our_logits(model))


def test_a_model_loaded_in_torch_may_have_scalars():
    model = model_of(placement={"kind": "skipinit"})
    found = load_transformer(in_memory(model))
    assert torch.equal(our_logits(found), our_logits(model))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("final_norm.weight", None, r"our model: final_norm\.weight: this tensor is missing"),
        (
            "final_norm.weight",
            (31,),
            r"final_norm\.weight: its shape is \(31,\), and the model's options ask for \(32,\)",
        ),
        ("head.weight", (61, 32), r"head\.weight: no place for this tensor \(1 such\)"),
    ],
)
def test_a_model_loaded_in_torch_must_be_whole(name, shape, message):
    checkpoint = in_memory(model_of())
    tensors = {key: tensor for key, tensor in checkpoint.tensors.items() if key != name}
    if shape:
        tensors[name] = StoredTensor.of(np.ones(shape, np.float32))
    with pytest.raises(UserError, match=message):
        load_transformer(Checkpoint(checkpoint.spec, tensors, "halves", "our model"))
