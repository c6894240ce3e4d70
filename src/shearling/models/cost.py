"""What a model costs: parameters, FLOPs and bytes.

Parameters are counted on the modules themselves, made without storage, so that no formula can drift from a part that
somebody adds.
"""

import functools
from dataclasses import dataclass

import torch
from torch import nn

from shearling.models.roles import is_projection
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

HEAD_LOGITS = 2**24
"""Logits that the head's loss holds at once: with fewer its products slow down, with more nothing is gained."""

HEAD_EXACT_LOGITS = 2**21
"""How many of them it holds in fp32: 8 MB, which a shared cache takes."""


@dataclass(frozen=True)
class Parameters:
    """Parameter counts by part. Biases count with the part that they belong to."""

    embedding: int
    """Table of token embeddings, V·D, of learned positions and of value embeddings."""
    head: int
    """What turns hidden states into logits and is not the embedding's transpose."""
    attention: int
    """Query, key, value and output projections."""
    feedforward: int
    """Its two or three projections."""
    norms: int
    """Norms, and the scalars and vectors of placements."""
    multiplied: int
    """Matrix entries that each token is multiplied with: the head counts, tied or not; looking up is no product."""

    @property
    def total(self) -> int:
        """All parameters, each once."""
        return self.embedding + self.head + self.non_embedding

    @property
    def non_embedding(self) -> int:
        """All but the tables at both ends, as in arXiv 2001.08361, section 2.1."""
        return self.attention + self.feedforward + self.norms


@functools.lru_cache(maxsize=16)
def parameters(spec: ModelSpec) -> Parameters:
    """Counts the parameters that a model of this shape has.

    Raises:
        UserError: a user's own norm or placement cannot be made.
    """
    with torch.device("meta"):
        model = Transformer(spec)
    counts = dict.fromkeys(("embedding", "head", "attention", "feedforward", "norms"), 0)
    for name, parameter in model.named_parameters():
        counts[_part(name)] += parameter.numel()
    multiplied = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    if model.head is None and spec.head:
        multiplied += model.embed.weight.numel()
    return Parameters(**counts, multiplied=multiplied)


def _part(name: str) -> str:
    if name.startswith(("embed.", "position.", "value_embed.")):
        return "embedding"
    if name.startswith(("head", "transform.")):
        return "head"
    if is_projection(name):
        return "attention" if ".attention." in name else "feedforward"
    return "norms"


def training_flops_per_token(spec: ModelSpec, seq_len: int, predicted: float = 1.0) -> int:
    """FLOPs to train on one token of sequences of `seq_len` tokens: the backward pass counts twice the forward.

    6 for each matrix entry that a token meets, and attention's two products with the tokens it sees. The usual
    12·L·T·D of arXiv 2204.02311 (appendix B) counts the whole T×T square, which an encoder needs; causal attention
    needs half of it, so 6·L·T·D are counted there, whether or not a kernel skips the other half. Of a window of W < T
    tokens, W - W²/2T are seen on average: 12·L·D·(W - W²/2T). Norms, softmax and the optimizer are left out, and so is
    what checkpoint_activations computes a second time.

    Args:
        predicted: share of the positions that predict something; only those meet the head.
    """
    idle = round((1 - predicted) * spec.vocab_size * spec.d_model)
    window = min(spec.sliding_window or seq_len, seq_len)
    seen = window - window**2 / (2 * seq_len) if spec.causal else seq_len
    return 6 * (parameters(spec).multiplied - idle) + round(12 * spec.n_layers * seen * spec.d_model)


def kv_cache_bytes(spec: ModelSpec, tokens: int, bytes_per_value: int) -> int:
    """Bytes of the keys and values that generation keeps for `tokens` tokens of one sequence."""
    return 2 * spec.n_layers * spec.kv_heads * spec.head_dim * tokens * bytes_per_value


def activation_bytes(spec: ModelSpec, tokens: int, bytes_per_value: int, recompute: bool) -> int:
    """Bytes that the forward pass of `tokens` tokens keeps for the backward pass; an estimate, for Pre-LN.

    After arXiv 2205.05198, section 4, without the attention matrix, which fused attention never writes. Per token and
    block: the residual stream before each sublayer in fp32 (8·D); and at `bytes_per_value` both normalized inputs
    (2·D), queries and keys before and after rotation and values (2·D + 3·D_kv), attention's result (D), and the
    feed-forward's hidden values (4·F for SwiGLU: gate, up, silu(gate), their product; 2·F for GELU). With
    `recompute`, every block keeps only its input, and one block at a time all of this. The last norm keeps its input
    in fp32. The head adds hidden states and their gradient, a chunk of logits, and the gradient of its weight in fp32.
    """
    d_model, d_kv = spec.d_model, spec.kv_heads * spec.head_dim
    hidden = (4 if spec.activation == "swiglu" else 2) * spec.intermediate_size
    block = 8 * d_model + bytes_per_value * (5 * d_model + 3 * d_kv + hidden)
    blocks = spec.n_layers * 4 * d_model + block if recompute else spec.n_layers * block
    chunk = min(HEAD_LOGITS, tokens * spec.vocab_size) * bytes_per_value + 4 * HEAD_EXACT_LOGITS
    head = 4 * spec.vocab_size * d_model + chunk
    return tokens * (blocks + d_model * (4 + 2 * bytes_per_value)) + head
