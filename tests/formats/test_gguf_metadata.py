"""GGUF's metadata with any values under the keys that mean something: a model comes of it, or one clear error."""

import numpy as np
from gguf_bytes import array, entry, gguf, string, tensor, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shearling.errors import UserError
from shearling.formats.gguf import read_gguf
from shearling.models.rope import inverse_frequencies

SIZES = {
    "llama.context_length": 128, "llama.embedding_length": 64, "llama.block_count": 1, "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
}  # fmt: skip
SHAPES = {
    "token_embd.weight": (300, 64), "output_norm.weight": (64,), "blk.0.attn_norm.weight": (64,),
    "blk.0.attn_q.weight": (64, 64), "blk.0.attn_k.weight": (32, 64), "blk.0.attn_v.weight": (32, 64),
    "blk.0.attn_output.weight": (64, 64), "blk.0.ffn_norm.weight": (64,), "blk.0.ffn_gate.weight": (96, 64),
    "blk.0.ffn_up.weight": (96, 64), "blk.0.ffn_down.weight": (64, 96),
}  # fmt: skip
USUAL = {
    **{key: entry(key, "u32", value) for key, value in SIZES.items()},
    "general.architecture": entry("general.architecture", "str", "llama"),
    "llama.attention.layer_norm_rms_epsilon": entry("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
}
KEYS = (
    *USUAL, "general.alignment", "general.name", "llama.rope.freq_base",
    "llama.rope.dimension_count", "llama.attention.sliding_window", "llama.attention.key_length",
    "llama.attention.causal", "llama.expert_count", "llama.rope.scaling.type", "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length", "llama.rope.scaling.attn_factor",
    "llama.rope.scaling.yarn_beta_fast", "llama.rope.scaling.yarn_beta_slow", "llama.rope.scale_linear", "split.count",
    "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix", "tokenizer.chat_template",
)  # fmt: skip
WORDS = ("", "llama", "gpt2", "none", "yarn", "linear", "llama3", "longrope", "gpt-2", "a b", "ab", "</s>")
VALUES = {
    "u32": st.sampled_from([0, 1, 2, 3, 4, 8, 64, 96, 1 << 20, (1 << 28) + 1, (1 << 32) - 1]),
    "i32": st.sampled_from([-(1 << 31), -1, 0, 1, 2, 64]),
    "u64": st.sampled_from([0, 2, 64, 1 << 40, (1 << 64) - 1]),
    "f32": st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0, 64.0, -1.0, 1e-30, 3e38, float("nan"), float("inf")]),
    "f64": st.sampled_from([0.0, 1e300, 5e-324, -1.0]),
    "bool": st.sampled_from([0, 1]),
    "str": st.sampled_from(WORDS),
}


@st.composite
def entries(draw) -> bytes:
    """A metadata entry of any type under a key that means something."""
    key, kind = draw(st.sampled_from(KEYS)), draw(st.sampled_from(sorted(VALUES)))
    if draw(st.booleans()):
        return array(key, kind, draw(st.lists(VALUES[kind], max_size=6)))
    return entry(key, kind, draw(VALUES[kind]))


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(entries(), max_size=4), factors=st.none() | st.lists(VALUES["f32"], min_size=8, max_size=8))
def test_whatever_metadata_says_it_is_a_model_or_one_clear_error(tmp_path, changes, factors):
    changed = {key: change for change in changes for key in KEYS if change.startswith(string(key))}
    shapes = SHAPES if factors is None else {**SHAPES, "rope_freqs.weight": (8,)}
    content = b"".join(np.ones(shape, "f4").tobytes() for shape in SHAPES.values())
    content += np.array(factors or [], "f4").tobytes()
    places = np.cumsum([0, *(4 * int(np.prod(shape)) for shape in shapes.values())]).tolist()
    tensors = [tensor(name, shape[::-1], 0, places[i]) for i, (name, shape) in enumerate(shapes.items())]
    path = written(tmp_path, gguf([*(USUAL | changed).values()], tensors, content))
    try:
        checkpoint = read_gguf(path)
        inverse = inverse_frequencies(checkpoint.spec)[0]
        assert checkpoint.tokenizer is None or checkpoint.tokenizer.vocab_size <= 300
    except UserError as error:
        refusal = str(error)
        assert refusal.startswith(f"{path}: ")
        assert len(refusal.splitlines()) <= 2
    else:
        assert np.isfinite(inverse).all()
