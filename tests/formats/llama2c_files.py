"""llama2.c's files, laid out from the format's description, and models to write as such."""

import struct
from functools import partial

import numpy as np
import torch
from oracles import adjacent_rows, drawn_llama, in_memory

from shearling.formats.checkpoint import Checkpoint
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 24, "rms_norm_eps": 1e-5}  # fmt: skip
llama = partial(drawn_llama, **SIZES)


def quantized(weight: np.ndarray, group: int) -> bytes:
    """As llama2.c's quantize_q80: groups along the flattened tensor, its integers and then its scales."""
    groups = weight.astype(np.float32).reshape(-1, group)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    return np.round(groups / scales[:, None]).astype(np.int8).tobytes() + scales.astype("<f4").tobytes()


def file_of(model, version: int, group: int = 16) -> bytes:
    """The file that the format's description asks for; of version 0 the rotary tables too."""
    c, w = model.config, {name: tensor.detach() for name, tensor in model.state_dict().items()}
    layers = range(c.num_hidden_layers)

    def of_layers(name, heads=None):
        found = [w[f"model.layers.{layer}.{name}.weight"] for layer in layers]
        return [adjacent_rows(weight, heads) if heads else weight for weight in found]

    embedding, final = [w["model.embed_tokens.weight"]], [w["model.norm.weight"]]
    attention_norms, ffn_norms = of_layers("input_layernorm"), of_layers("post_attention_layernorm")
    attention = [
        *of_layers("self_attn.q_proj", c.num_attention_heads), *of_layers("self_attn.k_proj", c.num_key_value_heads),
        *of_layers("self_attn.v_proj"), *of_layers("self_attn.o_proj"),
    ]  # fmt: skip
    ffn = [*of_layers("mlp.gate_proj"), *of_layers("mlp.down_proj"), *of_layers("mlp.up_proj")]
    head = [] if c.tie_word_embeddings else [w["lm_head.weight"]]
    sizes = [c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads]
    if version == 0:
        head_size = c.hidden_size // c.num_attention_heads
        frequencies = 10000.0 ** (-torch.arange(0, head_size, 2).float() / head_size)
        angles = torch.outer(torch.arange(c.max_position_embeddings).float(), frequencies)
        header = struct.pack("<7i", *sizes, c.vocab_size if not head else -c.vocab_size, c.max_position_embeddings)
        body = [*embedding, *attention_norms, *attention, *ffn_norms, *ffn, *final, angles.cos(), angles.sin(), *head]
        return header + b"".join(tensor.numpy().tobytes() for tensor in body)
    header = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, c.vocab_size, c.max_position_embeddings, not head)
    body = [*attention_norms, *ffn_norms, *final, *embedding, *attention, *ffn, *head]
    if version == 1:
        return header.ljust(256, b"\0") + b"".join(tensor.numpy().tobytes() for tensor in body)
    header += struct.pack("<i", group)
    return header.ljust(256, b"\0") + b"".join(
        tensor.numpy().tobytes() if tensor.dim() == 1 else quantized(tensor.numpy(), group) for tensor in body
    )


def checkpoint_of(**options) -> Checkpoint:
    """A model of our own, with its weights in memory."""
    sizes = {"d_model": 32, "n_layers": 1, "n_heads": 4, "intermediate_size": 48, "vocab_size": 61, "max_seq_len": 8}
    spec = ModelSpec.model_validate({**sizes, "norm": {"kind": "rmsnorm", "eps": 1e-5}, **options})
    return in_memory(Transformer(spec), "outputs/tiny")
