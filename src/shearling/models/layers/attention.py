"""Grouped-query attention through PyTorch's fused kernels, and its cache of keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from shearling.models.layers.linear import Linear
from shearling.models.layers.normalization import StoredGain, build_norm, unit
from shearling.models.layers.position import rotate
from shearling.models.spec import L2QKNormSpec, ModelSpec

SHORT = 512
"""Tokens up to which scores in memory beat the fused kernel on a CPU, in training."""

QUERIES = 128
"""Causal queries that `short_attention` takes at once: fewer skip more of the scores, and make smaller products."""


class KVCache:
    """Keys and values of one layer, allocated once: (B, n_kv_heads, capacity, K) each."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> None:
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new positions and give back all of them so far."""
        stop = self.length + k_BHTK.size(2)
        self.keys[:, :, self.length : stop] = k_BHTK
        self.values[:, :, self.length : stop] = v_BHTK
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]


@dataclass
class Context:
    """What every block of one forward pass shares.

    Attributes:
        rotation: cosines and sines of the positions at hand, (T, K/2) each in fp32, where positions are rotary.
        mask: which keys a query sees, boolean (T, S) or (B, 1, T, S), or what is added to the scores, (H, T, S); None:
            see `causal`.
        causal: without a mask, whether a query sees only the keys up to itself.
        short: short enough for `short_attention`, without a cache, its mask the same for all sequences and heads.
        dtype: arithmetic of the branches; the residual stream stays fp32.
        caches: one cache a layer while generating, else None.
        step: the training step, a scalar, for what changes with it; None where nothing does.
        values: for each table of value embeddings the tokens' rows, (B, T, n_kv_heads · K).
    """

    rotation: tuple[torch.Tensor, torch.Tensor] | None
    mask: torch.Tensor | None
    causal: bool
    short: bool
    dtype: torch.dtype
    caches: list[KVCache] | None = None
    step: torch.Tensor | None = None
    values: Sequence[torch.Tensor] = ()


def short_attention(
    q_BHTK: torch.Tensor,
    k_BHTK: torch.Tensor,
    v_BHTK: torch.Tensor,
    scale: float,
    causal: bool,
    mask_TT: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(Q Kᵀ · scale, masked) V with scores in memory: on a CPU the faster way while T is short.

    Its products are plain batched ones, forward and backward; the fused kernel's backward pass runs at a fraction of
    their speed there. Causal queries meet, block by block, the keys up to the block's last alone. Scores are made
    again in the backward pass, which is cheaper than to keep them; they are rounded to the dtype of q, the softmax of
    each row is fp32 inside.
    """
    B, H, T, K = q_BHTK.shape
    q, k, v = (x.reshape(B * H, T, K).contiguous() for x in (q_BHTK, k_BHTK, v_BHTK))
    return _short_attention(q, k, v, scale, causal, mask_TT).view(B, H, T, K)


@torch.library.custom_op("shearling::short_attention", mutates_args=())
def _short_attention(
    q_NTK: torch.Tensor, k_NTK: torch.Tensor, v_NTK: torch.Tensor, scale: float, causal: bool, mask: torch.Tensor | None
) -> torch.Tensor:
    # An operator of its own, as torch.compile would find the backward pass's scores in the forward pass and keep them.
    blocks = [
        torch.bmm(_weights(q_NTK, k_NTK, rows, seen, scale, causal, mask), v_NTK[:, :seen])
        for rows, seen in _query_blocks(q_NTK.size(1), causal)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


@torch.library.custom_op("shearling::short_attention_backward", mutates_args=())
def _short_attention_backward(
    dy_NTK: torch.Tensor,
    q_NTK: torch.Tensor,
    k_NTK: torch.Tensor,
    v_NTK: torch.Tensor,
    scale: float,
    causal: bool,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    nothing = q_NTK.new_zeros(1)
    dq_NTK, dk_NTK, dv_NTK = torch.empty_like(q_NTK), torch.zeros_like(k_NTK), torch.zeros_like(v_NTK)
    for rows, seen in _query_blocks(q_NTK.size(1), causal):
        q, k, v, dy = q_NTK[:, rows], k_NTK[:, :seen], v_NTK[:, :seen], dy_NTK[:, rows]
        weights = _weights(q_NTK, k_NTK, rows, seen, scale, causal, mask)
        dweights = torch.bmm(dy, v.transpose(1, 2))
        dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)
        dq_NTK[:, rows] = torch.baddbmm(nothing, dscores, k, beta=0, alpha=scale)
        dk_NTK[:, :seen] += torch.baddbmm(nothing, dscores.transpose(1, 2), q, beta=0, alpha=scale)
        dv_NTK[:, :seen] += torch.bmm(weights.transpose(1, 2), dy)
    return dq_NTK, dk_NTK, dv_NTK


@_short_attention.register_fake
def _(q_NTK: torch.Tensor, *others: Any) -> torch.Tensor:
    return torch.empty_like(q_NTK)


@_short_attention_backward.register_fake
def _(
    dy_NTK: torch.Tensor, q_NTK: torch.Tensor, k_NTK: torch.Tensor, v_NTK: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(q_NTK), torch.empty_like(k_NTK), torch.empty_like(v_NTK)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scale, ctx.causal, mask = inputs
    ctx.save_for_backward(*tensors, mask)


def _gradients(ctx: Any, dy_NTK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    q_NTK, k_NTK, v_NTK, mask = ctx.saved_tensors
    return *_short_attention_backward(dy_NTK, q_NTK, k_NTK, v_NTK, ctx.scale, ctx.causal, mask), None, None, None


_short_attention.register_autograd(_gradients, setup_context=_keep)


def _query_blocks(T: int, causal: bool) -> list[tuple[slice, int]]:
    """Rows of queries that are taken at once, and how many keys they may see."""
    if not causal:
        return [(slice(0, T), T)]
    return [(slice(first, min(first + QUERIES, T)), min(first + QUERIES, T)) for first in range(0, T, QUERIES)]


def _weights(
    q_NTK: torch.Tensor,
    k_NTK: torch.Tensor,
    rows: slice,
    seen: int,
    scale: float,
    causal: bool,
    mask_TT: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax of the scores of some rows of queries with the first `seen` keys, (N, rows, seen)."""
    q, k = q_NTK[:, rows], k_NTK[:, :seen]
    if mask_TT is not None:
        added = q.new_zeros(1, q.size(1), seen).masked_fill(~mask_TT[rows, :seen], -torch.inf)
    else:
        added = q.new_full((1, q.size(1), seen), -torch.inf).triu(rows.start + 1) if causal else q.new_zeros(1)
    return torch.softmax(torch.baddbmm(added, q, k.transpose(1, 2), alpha=scale), dim=-1)


def attend(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHK: torch.Tensor,
    context: Context,
    *,
    layer: int,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """softmax(Q Kᵀ · scale, masked) V of each head, (B, T, H, K), by the kernel that is fastest here.

    Keys and values may have fewer heads, each for several query heads. While generating, they join layer's cache.
    """
    q, k, v = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2)
    if context.caches is not None:
        k, v = context.caches[layer].append(k, v)
    groups = q.size(1) // k.size(1)
    if groups > 1:  # the CPU's fused kernel takes no grouped keys; repeating them costs less than its fallback
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if context.short and not dropout:
        y_BHTK = short_attention(q, k, v, scale, context.causal, context.mask)
    else:
        mask = context.mask if context.mask is None or context.mask.dtype == torch.bool else context.mask.to(q.dtype)
        y_BHTK = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and context.causal and q.size(2) > 1,
            dropout_p=dropout, scale=scale,
        )  # fmt: skip
    return y_BHTK.transpose(1, 2)


class Attention(nn.Module):
    """softmax(Q Kᵀ / sqrt(K)) V per head, with n_heads / n_kv_heads queries a key (arXiv 2305.13245).

    Args:
        layer: number of the block, from 0.
        inside: what a placement asks for in here: `qkv_norm` (queries, keys, values, per head), `unit` (queries and
            keys of unit length times a gain, after rotation), `output_norm` (before the output projection),
            `head_scale` (a gain on each head's result).
    """

    def __init__(self, spec: ModelSpec, layer: int, inside: frozenset[str] = frozenset()) -> None:
        super().__init__()
        d_model, K, H, kv_width = spec.d_model, spec.head_dim, spec.n_heads, spec.kv_heads * spec.head_dim
        self.layer = layer
        self.head_dim = K
        self.groups = H // spec.kv_heads
        self.dropout = spec.attention_dropout
        self.scale = K**-0.5
        self.value_table = spec.value_table(layer)
        self.own_share = self.table_share = None
        if self.value_table is not None:
            self.own_share, self.table_share = (nn.Parameter(torch.tensor(0.5)) for _ in range(2))
        self.rotary = spec.position.kind == "rope"
        self.q_proj = Linear(d_model, d_model, bias=spec.attention_bias)
        self.k_proj = Linear(d_model, kv_width, bias=spec.attention_bias)
        self.v_proj = Linear(d_model, kv_width, bias=spec.attention_bias)
        self.o_proj = Linear(d_model, d_model, bias=spec.attention_bias)
        qk_norm = spec.qk_norm.kind if spec.qk_norm else None
        self.whole_norm = qk_norm == "projection"
        self.head_norm = qk_norm == "per_head" or "qkv_norm" in inside
        if self.whole_norm or self.head_norm:
            self.q_norm = build_norm(spec.norm, K if self.head_norm else d_model)
            self.k_norm = build_norm(spec.norm, K if self.head_norm else kv_width)
        self.v_norm = build_norm(spec.norm, K) if "qkv_norm" in inside else None
        self.output_norm = build_norm(spec.norm, d_model) if "output_norm" in inside else None
        self.head_scale = nn.Parameter(torch.ones(H, 1)) if "head_scale" in inside else None
        self.qk_scale = self.unit_gain = None
        if isinstance(spec.qk_norm, L2QKNormSpec):
            self.qk_scale, self.scale = nn.Parameter(torch.full((H, 1), spec.qk_norm.scale)), 1.0
        if "unit" in inside:
            self.unit_gain, self.scale = StoredGain((H, K), 1.0, d_model**-0.5), K**0.5

    def queries_keys(self, x_BTD: torch.Tensor, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (B, T, H, K) and keys (B, T, n_kv_heads, K), normed and turned as they meet in the scores."""
        q, k = self.q_proj(x_BTD), self.k_proj(x_BTD)
        if self.whole_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.unflatten(-1, (-1, self.head_dim)), k.unflatten(-1, (-1, self.head_dim))
        if self.head_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.qk_scale is not None:
            q, k = (self.qk_scale * unit(q)).to(x_BTD.dtype), unit(k)
        if self.rotary:
            cos_sin: Any = context.rotation
            q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)
        if self.unit_gain is not None:
            q, k = self.unit_gain(unit(q)), self.unit_gain(unit(k))
        return q, k

    def values(self, x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
        """Values (B, T, n_kv_heads · K), with the tokens' rows of the block's table where it has one."""
        v = self.v_proj(x_BTD)
        if self.value_table is None or self.own_share is None or self.table_share is None:
            return v
        return (self.own_share * v + self.table_share * context.values[self.value_table]).to(x_BTD.dtype)

    def forward(self, x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
        q_BTHK, k_BTHK = self.queries_keys(x_BTD, context)
        v_BTHK = self.values(x_BTD, context).unflatten(-1, (-1, self.head_dim))
        if self.v_norm is not None:
            v_BTHK = self.v_norm(v_BTHK)
        dropout = self.dropout if self.training else 0.0
        y_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, context, layer=self.layer, scale=self.scale, dropout=dropout)
        if self.head_scale is not None:
            y_BTHK = (self.head_scale * y_BTHK).to(x_BTD.dtype)
        y_BTD = y_BTHK.flatten(2)
        if self.output_norm is not None:
            y_BTD = self.output_norm(y_BTD)
        return self.o_proj(y_BTD)
