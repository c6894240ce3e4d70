"""Tiny LLaMA models as checkpoints, with `transformers` beside them as the oracle."""

import numpy as np
import torch
import transformers as hf

from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.models.spec import ModelSpec

SIZES = {
    "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "intermediate_size": 96, "vocab_size": 300,
    "max_seq_len": 128, "tie_embeddings": False,
}  # fmt: skip
TOKENS = [1, *np.random.default_rng(0).integers(0, 300, 99).tolist()]

OUTSIDE = {
    "model.embed_tokens.weight": "embed.weight",
    "model.norm.weight": "final_norm.weight",
    "lm_head.weight": "head.weight",
}
WITHIN = {
    "input_layernorm": "attention.norm",
    "self_attn": "attention.branch",
    "post_attention_layernorm": "feedforward.norm",
    "mlp": "feedforward.branch",
}


def rope(**scaling):
    """Rotations that are scaled, as an option of ModelSpec."""
    return {"kind": "rope", "theta": 500.0, "scaling": scaling}


def our_name(theirs: str) -> str:
    if theirs in OUTSIDE:
        return OUTSIDE[theirs]
    for module, ours in WITHIN.items():
        theirs = theirs.replace(f".{module}.", f".{ours}.")
    return theirs.removeprefix("model.")


def oracle(spec: ModelSpec, seed: int = 0) -> hf.LlamaForCausalLM:
    """A model of that shape in float32, whose parameters all say something."""
    rope = {"rope_type": "default", "rope_theta": spec.position.theta}
    if spec.position.scaling is not None:
        ours = spec.position.scaling.model_dump(exclude_none=True)
        rope["rope_type"] = ours.pop("kind")
        if "original_max_seq_len" in ours:
            ours["original_max_position_embeddings"] = ours.pop("original_max_seq_len")
        rope |= ours
    config = hf.LlamaConfig(
        hidden_size=spec.d_model, num_hidden_layers=spec.n_layers, num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.kv_heads, intermediate_size=spec.intermediate_size, vocab_size=spec.vocab_size,
        max_position_embeddings=spec.max_seq_len, rms_norm_eps=spec.norm.eps, rope_parameters=rope,
        tie_word_embeddings=spec.tie_embeddings, attention_bias=spec.attention_bias, mlp_bias=spec.feedforward_bias,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(("norm" in name) + torch.randn_like(parameter) * 0.15)
    return model.eval()


def checkpoint_of(model: hf.LlamaForCausalLM, spec: ModelSpec, **rest) -> Checkpoint:
    """A model of `transformers` as a checkpoint in float32."""
    tensors = {our_name(name): StoredTensor.of(value.numpy()) for name, value in model.state_dict().items()}
    if spec.tie_embeddings:
        del tensors["head.weight"]
    return Checkpoint(spec, tensors, "halves", "models/tiny.bin", **rest)


def tiny(seed: int = 0, rest=None, **options) -> Checkpoint:
    """A tiny checkpoint; `options` are those of ModelSpec, `rest` those of Checkpoint."""
    spec = ModelSpec(**{**SIZES, **options})
    return checkpoint_of(oracle(spec, seed), spec, **(rest or {}))


@torch.no_grad()
def oracle_logits(checkpoint: Checkpoint, tokens=TOKENS, dtype=torch.float64) -> np.ndarray:
    """Logits (T, V) of what a checkpoint holds, by `transformers` in this dtype."""
    model = oracle(checkpoint.spec)
    numbers = {
        name: torch.from_numpy(checkpoint.in_rotary("halves", our_name(name)).read())
        for name in model.state_dict()
        if our_name(name) in checkpoint.tensors
    }
    model.load_state_dict(numbers, strict=not checkpoint.spec.tie_embeddings)
    logits = model.to(dtype)(torch.tensor([tokens])).logits[0]
    assert logits.std() > 0.3  # they say something
    return logits.numpy()
