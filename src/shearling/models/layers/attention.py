"""Grouped-query attention through PyTorch's fused kernels, and its cache of keys and values."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from shearling.models.layers.linear import Linear
from shearling.models.layers.position import rotate
from shearling.models.spec import ModelSpec

SHORT = 512
"""Tokens up to which scores in memory beat the fused kernel on a CPU, in training."""


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
        cos, sin: rotary tables of the positions at hand, (T, K/2) in fp32.
        mask: which keys a query sees, boolean (B, 1, T, S); None means plainly causal.
        short: plainly causal and short enough for `short_attention`.
        dtype: arithmetic of the branches; the residual stream stays fp32.
        caches: one cache a layer while generating, else None.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor | None
    short: bool
    dtype: torch.dtype
    caches: list[KVCache] | None = None


def short_attention(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor) -> torch.Tensor:
    """Causal softmax(Q Kᵀ / sqrt(K)) V with all scores in memory: on a CPU the faster way while T is short.

    Its products are plain batched ones, forward and backward; the fused kernel's backward pass runs at a fraction of
    their speed there. Called under `checkpoint`: scores are cheaper made again than kept for the backward pass.
    Scores are rounded to the dtype of q; the softmax of each row is fp32 inside.
    """
    B, H, T, K = q_BHTK.shape
    q, k, v = (x.reshape(B * H, T, K) for x in (q_BHTK, k_BHTK, v_BHTK))
    future_1TT = torch.full((1, T, T), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(future_1TT, q, k.transpose(1, 2), alpha=K**-0.5)
    return torch.bmm(torch.softmax(scores, dim=-1), v).view(B, H, T, K)


class Attention(nn.Module):
    """softmax(Q Kᵀ / sqrt(K)) V per head, causal, with n_heads / n_kv_heads queries a key (arXiv 2305.13245)."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = spec.head_dim
        self.groups = spec.n_heads // spec.kv_heads
        self.dropout = spec.attention_dropout
        kv_width = spec.kv_heads * spec.head_dim
        self.q_proj = Linear(spec.d_model, spec.d_model, bias=spec.attention_bias)
        self.k_proj = Linear(spec.d_model, kv_width, bias=spec.attention_bias)
        self.v_proj = Linear(spec.d_model, kv_width, bias=spec.attention_bias)
        self.o_proj = Linear(spec.d_model, spec.d_model, bias=spec.attention_bias)

    def forward(self, x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
        B, T, D = x_BTD.shape
        q_BTHK = rotate(self.q_proj(x_BTD).view(B, T, -1, self.head_dim), context.cos, context.sin)
        k_BTHK = rotate(self.k_proj(x_BTD).view(B, T, -1, self.head_dim), context.cos, context.sin)
        v_BTHK = self.v_proj(x_BTD).view(B, T, -1, self.head_dim)
        q, k, v = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2)
        if context.caches is not None:
            k, v = context.caches[self.layer].append(k, v)
        if self.groups > 1:  # the CPU's fused kernel takes no grouped keys; repeating them costs less than its fallback
            k, v = k.repeat_interleave(self.groups, dim=1), v.repeat_interleave(self.groups, dim=1)
        dropout = self.dropout if self.training else 0.0
        if context.short and not dropout:
            y_BHTK = checkpoint(short_attention, q, k, v, use_reentrant=False, preserve_rng_state=False)
        else:
            y_BHTK = F.scaled_dot_product_attention(
                q, k, v, attn_mask=context.mask, is_causal=context.mask is None and T > 1, dropout_p=dropout
            )
        return self.o_proj(y_BHTK.transpose(1, 2).reshape(B, T, D))
