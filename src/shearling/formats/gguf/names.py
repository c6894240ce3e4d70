"""What GGUF calls LLaMA's tensors, and how it numbers the ways to store them (`gguf.constants`)."""

KINDS = {
    0: "f32", 1: "f16", 30: "bf16", 28: "f64", 8: "q8_0", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 12: "q4_k",
    13: "q5_k", 14: "q6_k",
}  # fmt: skip
"""GGML's number of a way to store numbers, and the codec that reads it."""

OTHER_KINDS = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""Those that no codec here reads, for messages."""

WRITTEN = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
"""Codecs that a matrix can be written with; the others pass from a GGUF file to another as they are."""

FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q4_k": 15, "q5_k": 17, "q6_k": 18,
    "bf16": 32,
}  # fmt: skip
"""`general.file_type` by the codec of most of a file's weights."""

ROPE_FACTORS = "rope_freqs.weight"
"""LLaMA 3's scaling: what each pair's rotation is divided by, (K/2,)."""

_OUTSIDE = {
    "embed.weight": "token_embd.weight",
    "final_norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}
_MODULES = {
    "attention.norm": "attn_norm",
    "attention.branch.q_proj": "attn_q",
    "attention.branch.k_proj": "attn_k",
    "attention.branch.v_proj": "attn_v",
    "attention.branch.o_proj": "attn_output",
    "feedforward.norm": "ffn_norm",
    "feedforward.branch.gate_proj": "ffn_gate",
    "feedforward.branch.up_proj": "ffn_up",
    "feedforward.branch.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """What GGUF calls one of our tensors: `layers.3.attention.norm.weight` is `blk.3.attn_norm.weight`."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, layer, rest = name.split(".", 2)
    module, _, parameter = rest.rpartition(".")
    return f"blk.{layer}.{_MODULES[module]}.{parameter}"
