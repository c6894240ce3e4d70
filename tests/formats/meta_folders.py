"""Meta's folders, made of models of `transformers`."""

import json
from functools import partial
from pathlib import Path

import torch
from oracles import adjacent_rows, drawn_llama

PARAMS = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64, "multiple_of": 16, "norm_eps": 1e-5,
}  # fmt: skip

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}  # fmt: skip
llama = partial(drawn_llama, **SIZES)


def state_of(model) -> dict[str, torch.Tensor]:
    """Its weights under Meta's names, the rows of queries and keys in Meta's order."""
    names = {
        "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output",
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers": "layers",
    }  # fmt: skip
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    state = {}
    for name, tensor in model.state_dict().items():
        count = next((n for module, n in heads.items() if module in name), None)
        if count:
            tensor = adjacent_rows(tensor, count)
        for theirs, metas in names.items():
            name = name.replace(theirs, metas)
        state[name] = tensor.clone()
    return state


def split(state: dict[str, torch.Tensor], count: int, embedding_by_rows: bool) -> list[dict[str, torch.Tensor]]:
    """As model parallelism over `count` processes holds it."""

    def axis_of(name: str) -> int | None:
        by_columns = "wo" in name or "w2" in name or ("tok_embeddings" in name and not embedding_by_rows)
        return None if "norm" in name else int(by_columns)

    shards = [{} for _ in range(count)]
    for name, tensor in state.items():
        axis = axis_of(name)
        pieces = [tensor] * count if axis is None else tensor.chunk(count, axis)
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = piece.clone()
    return shards


def save(folder: Path, shards: list[dict], **params) -> Path:
    """A folder of these shards; a parameter that is `...` goes."""
    folder.mkdir()
    for index, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{index:02d}.pth")
    described = {key: value for key, value in {**PARAMS, **params}.items() if value is not ...}
    (folder / "params.json").write_text(json.dumps(described))
    return folder
