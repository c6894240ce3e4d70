"""Tiny models of `transformers` of each family that is read here, and folders of them."""

import json
from pathlib import Path

import transformers as hf
from oracles import shaken

SIZES = {"vocab_size": 61, "max_position_embeddings": 24}
LLAMA = {
    **SIZES, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0,
        "eos_token_id": 0}  # fmt: skip
BERT = {**SIZES, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}


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


def saved(model, folder: Path, **options) -> Path:
    shaken(model).save_pretrained(folder, **options)
    return folder


def edit(folder: Path, **options) -> None:
    """Changes config.json; a key whose value is `...` goes."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | options
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
