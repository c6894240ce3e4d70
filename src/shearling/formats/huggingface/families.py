"""What the `transformers` library calls the options and tensors of the models that our graph can express.

A model_type is one `Family` in FAMILIES; reading and writing are the same for all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shearling.formats.huggingface.options import Options
from shearling.formats.huggingface.rope import SCALINGS, flat_rope

SEGMENTS = "type_vocab_size"
"""The key that says how many rows the table of segments has."""

Refused = Mapping[str, tuple[tuple[Any, ...], str]]
"""A key, the values of it that our graph has, and what it lacks for another."""


@dataclass(frozen=True)
class Family:
    """One model_type.

    Attributes:
        architecture: the class of `transformers`; that of the model without its head, where there is one here.
        prefix: what names of tensors begin with, except where a model was saved without its head.
        outside: what begins those names that have no prefix.
        options: their key, and our option with dots.
        defaults: what an absent key stands for; the others must be there.
        scalings: by rope_type, what is added to `options`, below our `position.scaling`.
        values: for a key whose values have names: theirs, and ours.
        fixed: our options, with dots, that all models of this type share.
        refused: besides REFUSED_OF_ALL.
        outer: our module or parameter outside of the blocks, and theirs.
        layers: the list of blocks.
        block: our module in a block, and theirs; several of ours in one of theirs lie there one after the other.
        tied: with tied embeddings, a tensor that is another one again.
        left_out: pattern of the names that have no place here and change neither logits nor hidden states.
        transposed: whether the blocks' matrices are (in, out).
        head: what a name begins with where there is a head; without any, the model gets `head: false`.
        segments: the table whose first row is added to all positions, where there is one.
        flatten: brings under one level what a config nests, and computes what it leaves to be computed.
    """

    architecture: tuple[str, str]
    prefix: str
    outside: str
    options: Mapping[str, str]
    defaults: Options
    values: Mapping[str, Mapping[str, str]]
    fixed: Options
    refused: Refused
    outer: Mapping[str, str]
    layers: str
    block: Mapping[str, str]
    tied: Mapping[str, str]
    left_out: str
    transposed: bool = False
    head: str = ""
    segments: str | None = None
    scalings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    flatten: Callable[[Options], Options] = dict

    def options_of(self, config: Options) -> dict[str, str]:
        """`options` of one flat config, those of its scaled rotations among them."""
        kind = config.get("rope_type")
        scaling = self.scalings.get(kind, {}) if isinstance(kind, str) else {}
        return {**self.options, **{theirs: f"position.scaling.{ours}" for theirs, ours in scaling.items()}}

    def tensor(self, ours: str, tied: bool) -> str:
        """Their name, without the prefix, of the tensor that holds our parameter."""
        if ours.startswith("layers."):
            _, number, inside = ours.split(".", 2)
            return f"{self.layers}.{number}.{_lookup(self.block, inside)}"
        theirs = _lookup(self.outer, ours)
        return self.tied.get(theirs, theirs) if tied else theirs

    def full_name(self, name: str, head: bool) -> str:
        """The name that `transformers` saves it under, in a model that has its head, or in one that has none."""
        return name if not head or name.startswith(self.outside) else self.prefix + name


def _lookup(names: Mapping[str, str], ours: str) -> str:
    module, _, leaf = ours.rpartition(".")
    return names[ours] if ours in names else f"{names[module]}.{leaf}"


def _flat_gpt2(config: Options) -> Options:
    width = config.get("n_embd")
    return {**config, "n_inner": 4 * width} if config.get("n_inner") is None and isinstance(width, int) else config


REFUSED_OF_ALL: Refused = {
    "auto_map": ((None,), "the graph is in code that comes with the model"),
    "pruned_heads": ((None, {}), "all blocks have the same number of heads here"),
    "quantization_config": ((None,), "quantized weights are not read"),
    "sliding_window": ((None,), "there is no windowed attention here"),
}

LLAMA = Family(
    architecture=("LlamaForCausalLM", ""),
    prefix="model.",
    outside="lm_head.",
    options={
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "intermediate_size",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_seq_len",
        "hidden_act": "activation",
        "rms_norm_eps": "norm.eps",
        "rope_theta": "position.theta",
        "attention_bias": "attention_bias",
        "mlp_bias": "feedforward_bias",
        "attention_dropout": "attention_dropout",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
    },
    values={"hidden_act": {"silu": "swiglu", "swish": "swiglu"}},
    fixed={"arch": "llama", "norm.kind": "rmsnorm", "position.kind": "rope"},
    refused={
        "rope_type": (("default", *SCALINGS), f"rotary positions are scaled as {', '.join(SCALINGS)}, or not, here"),
        "unknown_rope_option": ((None,), "rotary positions have no such option here"),
        "partial_rotary_factor": ((None, 1.0), "rotary positions turn the whole head here"),
        "truncate": ((None, True), "YaRN's ramp lies between whole numbers here"),
    },
    outer={"embed": "embed_tokens", "final_norm": "norm", "head": "lm_head"},
    layers="layers",
    block={
        "attention.norm": "input_layernorm",
        "attention.branch.q_proj": "self_attn.q_proj",
        "attention.branch.k_proj": "self_attn.k_proj",
        "attention.branch.v_proj": "self_attn.v_proj",
        "attention.branch.o_proj": "self_attn.o_proj",
        "feedforward.norm": "post_attention_layernorm",
        "feedforward.branch.gate_proj": "mlp.gate_proj",
        "feedforward.branch.up_proj": "mlp.up_proj",
        "feedforward.branch.down_proj": "mlp.down_proj",
    },
    tied={"lm_head.weight": "embed_tokens.weight"},
    left_out=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",  # computed from rope_theta
    scalings=SCALINGS,
    flatten=flat_rope,
)

_LLAMA_S_BIASES = ("attention_bias", "mlp_bias")

MISTRAL = replace(
    LLAMA,
    architecture=("MistralForCausalLM", ""),
    options={
        **{key: option for key, option in LLAMA.options.items() if key not in _LLAMA_S_BIASES},
        "sliding_window": "sliding_window",
    },
    defaults={
        **{key: value for key, value in LLAMA.defaults.items() if key not in _LLAMA_S_BIASES},
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
)

GPT2 = Family(
    architecture=("GPT2LMHeadModel", ""),
    prefix="transformer.",
    outside="lm_head.",
    options={
        "n_embd": "d_model",
        "n_layer": "n_layers",
        "n_head": "n_heads",
        "n_inner": "intermediate_size",
        "vocab_size": "vocab_size",
        "n_positions": "max_seq_len",
        "activation_function": "activation",
        "layer_norm_epsilon": "norm.eps",
        "embd_pdrop": "dropout",
        "resid_pdrop": "dropout",
        "attn_pdrop": "attention_dropout",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "tie_word_embeddings": True,
    },
    values={"activation_function": {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf"}},
    fixed={
        "arch": "gpt2",
        "norm.kind": "layernorm",
        "position.kind": "learned",
        "attention_bias": True,
        "feedforward_bias": True,
    },
    refused={
        "scale_attn_weights": ((True,), "attention's scores are divided by the square root of the head's width here"),
        "scale_attn_by_inverse_layer_idx": ((False,), "attention's scores have the same scale in all blocks here"),
        "add_cross_attention": ((False,), "there is no cross-attention here"),
    },
    outer={"embed": "wte", "position": "wpe", "final_norm": "ln_f", "head": "lm_head"},
    layers="h",
    block={
        "attention.norm": "ln_1",
        "attention.branch.q_proj": "attn.c_attn",
        "attention.branch.k_proj": "attn.c_attn",
        "attention.branch.v_proj": "attn.c_attn",
        "attention.branch.o_proj": "attn.c_proj",
        "feedforward.norm": "ln_2",
        "feedforward.branch.up_proj": "mlp.c_fc",
        "feedforward.branch.down_proj": "mlp.c_proj",
    },
    tied={"lm_head.weight": "wte.weight"},
    left_out=r"h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask
    transposed=True,
    flatten=_flat_gpt2,
)

BERT = Family(
    architecture=("BertForMaskedLM", "BertModel"),
    prefix="bert.",
    outside="cls.",
    options={
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "intermediate_size",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_seq_len",
        "hidden_act": "activation",
        "layer_norm_eps": "norm.eps",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "tie_word_embeddings": True,
        SEGMENTS: 2,
    },
    values={"hidden_act": {"gelu": "gelu_erf"}},  # the masked-token head has no other
    fixed={
        "arch": "bert",
        "norm.kind": "layernorm",
        "placement.kind": "post",
        "position.kind": "learned",
        "embedding_norm": True,
        "final_norm": False,
        "attention_bias": True,
        "feedforward_bias": True,
        "init": "plain",
    },
    refused={
        "position_embedding_type": ((None, "absolute"), "positions are added to the embeddings here"),
        "is_decoder": ((False,), "an encoder reads both ways here"),
        "add_cross_attention": ((False,), "there is no cross-attention here"),
    },
    outer={
        "embed": "embeddings.word_embeddings",
        "position": "embeddings.position_embeddings",
        "embed_norm": "embeddings.LayerNorm",
        "transform.dense_proj": "cls.predictions.transform.dense",
        "transform.norm": "cls.predictions.transform.LayerNorm",
        "head": "cls.predictions.decoder",
        "head_bias": "cls.predictions.decoder.bias",
    },
    layers="encoder.layer",
    block={
        "attention.branch.q_proj": "attention.self.query",
        "attention.branch.k_proj": "attention.self.key",
        "attention.branch.v_proj": "attention.self.value",
        "attention.branch.o_proj": "attention.output.dense",
        "attention.norm": "attention.output.LayerNorm",
        "feedforward.branch.up_proj": "intermediate.dense",
        "feedforward.branch.down_proj": "output.dense",
        "feedforward.norm": "output.LayerNorm",
    },
    tied={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    # The bias beside an untied decoder is one that nothing adds.
    left_out=r"embeddings\.position_ids|pooler\..*|cls\.seq_relationship\..*|cls\.predictions\.bias",
    head="cls.predictions.",
    segments="embeddings.token_type_embeddings.weight",
)

FAMILIES: dict[str, Family] = {"llama": LLAMA, "mistral": MISTRAL, "gpt2": GPT2, "bert": BERT}
"""By model_type."""
