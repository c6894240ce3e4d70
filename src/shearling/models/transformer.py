"""The whole network.

- a pre-norm decoder in LLaMA's graph: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases;
- every part is chosen by the specification: norm, placement, feed-forward kind, biases, tied or untied head;
- fp32 residual stream and master weights; the branches compute in bf16 or fp32;
- `forward` ends before the head, since a loss that never holds all logits needs hidden states, not logits.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from shearling.models.initialization import initialize
from shearling.models.layers.attention import SHORT, Attention, Context, KVCache
from shearling.models.layers.feedforward import build_feedforward
from shearling.models.layers.linear import Linear
from shearling.models.layers.normalization import build_norm
from shearling.models.layers.placement import place
from shearling.models.layers.position import build_position
from shearling.models.spec import ModelSpec


class Block(nn.Module):
    """Attention, then feed-forward, each on the residual stream."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attention = place(spec, Attention(spec, layer))
        self.feedforward = place(spec, build_feedforward(spec))

    def forward(self, x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
        x_BTD = self.attention(x_BTD, context.dtype, context)
        return self.feedforward(x_BTD, context.dtype)


class Transformer(nn.Module):
    """A decoder-only language model made from `spec`, its weights drawn from `seed`.

    Attributes:
        dtype: arithmetic of the branches and of the head, torch.float32 unless set.
        checkpoint_activations: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.dtype = torch.float32
        self.checkpoint_activations = False
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.position = build_position(spec.position, spec.head_dim)
        self.layers = nn.ModuleList(Block(spec, layer) for layer in range(spec.n_layers))
        self.final_norm = build_norm(spec.norm, spec.d_model)
        self.head = None if spec.tie_embeddings else Linear(spec.d_model, spec.vocab_size, bias=False)
        initialize(self, spec, seed)

    @property
    def head_weight(self) -> torch.Tensor:
        """The matrix (V, D) that turns hidden states into logits."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens_BT: torch.Tensor,
        document_ids_BT: torch.Tensor | None = None,
        caches: list[KVCache] | None = None,
    ) -> torch.Tensor:
        """Hidden states (B, T, D) in the model's dtype, normed and ready for the head.

        Args:
            tokens_BT: token ids, int64.
            document_ids_BT: which document each token belongs to; attention then stays inside a document.
            caches: from `new_caches`; tokens then continue the sequence that the caches hold.
        """
        context = self._context(tokens_BT, document_ids_BT, caches)
        x_BTD = F.dropout(self.embed(tokens_BT), self.spec.dropout, self.training)
        for layer in self.layers:
            x_BTD = self._run(layer, x_BTD, context)
        return self.final_norm(x_BTD).to(self.dtype)

    def logits(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V) in fp32 of hidden states."""
        return F.linear(hidden_BTD, self.head_weight.to(hidden_BTD.dtype)).float()

    def new_caches(self, batch: int, capacity: int) -> list[KVCache]:
        """Empty caches for `batch` sequences of up to `capacity` tokens, one a layer."""
        shape = (batch, self.spec.kv_heads, capacity, self.spec.head_dim)
        return [KVCache(shape, self.embed.weight.device, self.dtype) for _ in self.layers]

    def _context(
        self, tokens_BT: torch.Tensor, document_ids_BT: torch.Tensor | None, caches: list[KVCache] | None
    ) -> Context:
        start, T = (caches[0].length if caches else 0), tokens_BT.size(1)
        positions_T = torch.arange(start, start + T, device=tokens_BT.device)
        mask = None
        if start and T > 1:  # several new tokens behind a cache: causal, but not square
            mask = positions_T[:, None] >= torch.arange(start + T, device=tokens_BT.device)[None, :]
        elif document_ids_BT is not None:
            same = document_ids_BT[:, None, :, None] == document_ids_BT[:, None, None, :]
            mask = same & torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).tril()
        short = mask is None and caches is None and T <= SHORT and tokens_BT.device.type == "cpu"
        return Context(*self.position.tables(positions_T), mask, short, self.dtype, caches)

    def _run(self, layer: Callable[..., Any], x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
        if self.checkpoint_activations and self.training:
            return checkpoint(layer, x_BTD, context, use_reentrant=False)
        return layer(x_BTD, context)
