"""The whole network.

- a decoder in LLaMA's graph by default: Pre-LN, RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases;
- every part is chosen by the specification: norm, placement, positions, feed-forward kind, biases, tied or untied head;
- an encoder that reads both ways and predicts masked tokens (BERT) is the same network without the causal mask;
- fp32 residual stream and master weights; the branches compute in bf16 or fp32;
- `forward` ends before the head, since a loss that never holds all logits needs hidden states, not logits.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from shearling.errors import UserError
from shearling.models.head import Head
from shearling.models.initialization import initialize
from shearling.models.layers.attention import SHORT, Context, KVCache
from shearling.models.layers.linear import Linear
from shearling.models.layers.normalization import StoredGain, build_norm
from shearling.models.layers.placement import Where
from shearling.models.layers.placements import place, placement_class
from shearling.models.layers.position import build_position
from shearling.models.spec import ModelSpec
from shearling.seeding import derive_seed


class Block(nn.Module):
    """Attention, then feed-forward, each on the residual stream. Blocks are numbered from 1."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attention = place(spec, Where(layer, spec.n_layers, "attention"))
        self.feedforward = place(spec, Where(layer, spec.n_layers, "feedforward"), self.attention)

    def forward(self, x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
        return self.feedforward(self.attention(x_BTD, context), context)


class MaskedTokenHead(nn.Module):
    """What BERT has before the head: N(gelu(W x + b)) (arXiv 1810.04805)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.dense_proj = Linear(spec.d_model, spec.d_model)
        self.norm = build_norm(spec.norm, spec.d_model)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.norm(F.gelu(self.dense_proj(x_BTD)))


class Transformer(nn.Module):
    """A language model made from `spec`, its weights drawn from `seed`.

    Attributes:
        dtype: arithmetic of the branches and of the head, torch.float32 unless set.
        checkpoint_activations: recompute each block in the backward pass instead of keeping its activations.
        step: training steps taken, for a placement that changes with them; infinite in a model that is not in training.
    """

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # what a user's class draws belongs to the seed as well
            torch.manual_seed(derive_seed(seed, "modules"))
            self._build(spec)
        initialize(self, spec, seed)
        self.constrain()

    def _build(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.dtype = torch.float32
        self.checkpoint_activations = False
        self.step = math.inf
        self.spherical = placement_class(spec.placement).spherical
        d_model, V = spec.d_model, spec.vocab_size
        self.embed = nn.Embedding(V, d_model, _weight=torch.empty(V, d_model))  # drawn below
        width = spec.kv_heads * spec.head_dim
        self.value_embed = nn.ModuleList(
            nn.Embedding(V, width, _weight=torch.empty(V, width)) for _ in range(spec.value_embeddings)
        )
        self.embed_scale = nn.Parameter(torch.tensor(math.sqrt(d_model))) if spec.learned_embedding_scale else None
        self.position = build_position(spec)
        self.embed_norm = build_norm(spec.norm, d_model) if spec.embedding_norm else None
        self.layers = nn.ModuleList(Block(spec, layer) for layer in range(1, spec.n_layers + 1))
        self.final_norm = build_norm(spec.norm, d_model) if spec.final_norm else nn.Identity()
        masked_tokens = spec.head and not spec.causal
        self.transform = MaskedTokenHead(spec) if masked_tokens else None
        self.head = None if spec.tie_embeddings else Linear(d_model, V, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(V)) if masked_tokens else None
        self.head_gain = StoredGain((V, 1), 1.0, d_model**-0.5) if self.spherical and spec.head else None

    @property
    def blocks(self) -> list[Block]:
        """The layers, for those who look inside."""
        return cast(list[Block], list(self.layers))

    @property
    def lm_head(self) -> Head:
        """What turns hidden states into logits.

        Raises:
            UserError: the model was made without a head.
        """
        if not self.spec.head:
            raise UserError("model.head is false: this model gives hidden states and no logits: take one with a head")
        weight = self.embed.weight if self.head is None else self.head.weight
        if self.head_gain is not None:
            weight = self.head_gain(weight)
        if self.head_bias is not None:
            weight = torch.cat((weight, self.head_bias[:, None]), dim=1)
        return Head(weight, self.spec.logit_softcap)

    def forward(
        self,
        tokens_BT: torch.Tensor,
        document_ids_BT: torch.Tensor | None = None,
        caches: list[KVCache] | None = None,
    ) -> torch.Tensor:
        """Hidden states (B, T, D) in the model's dtype, ready for the head: (B, T, D + 1) if that has a bias.

        Args:
            tokens_BT: token ids, int64.
            document_ids_BT: which document each token belongs to; attention then stays inside a document.
            caches: from `new_caches`; tokens then continue the sequence that the caches hold.
        """
        values = [table(tokens_BT) for table in self.value_embed]
        return self.hidden(self.embed(tokens_BT), document_ids_BT, caches, values)

    def hidden(
        self,
        embeddings_BTD: torch.Tensor,
        document_ids_BT: torch.Tensor | None = None,
        caches: list[KVCache] | None = None,
        values: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """As `forward`, from what stands in for the tokens' embeddings, before their scale, positions and norm, and
        for their value embeddings, where the model has such."""
        x_BTD, context = self.enter(embeddings_BTD, document_ids_BT, caches, values)
        for layer in self.layers:
            x_BTD = self._run(layer, x_BTD, context)
        return self.leave(x_BTD)

    def enter(
        self,
        embeddings_BTD: torch.Tensor,
        document_ids_BT: torch.Tensor | None = None,
        caches: list[KVCache] | None = None,
        values: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, Context]:
        """The stream that the first block gets, and the context that all blocks get."""
        start, T = (caches[0].length if caches else 0), embeddings_BTD.size(1)
        positions_T = torch.arange(start, start + T, device=embeddings_BTD.device)
        x_BTD = embeddings_BTD if self.embed_scale is None else self.embed_scale * embeddings_BTD
        added_TD = self.position.embedding(positions_T)
        if added_TD is not None:
            x_BTD = x_BTD + added_TD
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(x_BTD)
        x_BTD = F.dropout(x_BTD, self.spec.dropout, self.training)
        return self.blocks[0].attention.enter(x_BTD), self._context(positions_T, document_ids_BT, caches, values)

    def leave(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """What the head gets, from the stream after the last block."""
        hidden_BTD = self.blocks[-1].feedforward.leave(x_BTD, self.final_norm).to(self.dtype)
        if self.transform is not None:
            hidden_BTD = self.transform(hidden_BTD)
        return hidden_BTD if self.head_bias is None else F.pad(hidden_BTD, (0, 1), value=1.0)

    def logits(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V) in fp32 of hidden states."""
        return self.lm_head.logits(hidden_BTD)

    def new_caches(self, batch: int, capacity: int) -> list[KVCache]:
        """Empty caches for `batch` sequences of up to `capacity` tokens, one a layer.

        Raises:
            UserError: the model reads both ways, so that what it made of a token changes with later ones.
        """
        if not self.spec.causal:
            raise UserError(f"a model of arch {self.spec.arch} fills in masked tokens and continues no text")
        shape = (batch, self.spec.kv_heads, capacity, self.spec.head_dim)
        return [KVCache(shape, self.embed.weight.device, self.dtype) for _ in self.layers]

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the weights back to where the placement holds them; to be called after each optimizer step."""
        for block in self.blocks:
            block.attention.constrain()
            block.feedforward.constrain()
        if self.spherical:
            for table in (self.embed, self.head):
                if table is not None:
                    table.weight.copy_(F.normalize(table.weight, dim=1))

    def _context(
        self,
        positions_T: torch.Tensor,
        document_ids_BT: torch.Tensor | None,
        caches: list[KVCache] | None,
        values: Sequence[torch.Tensor],
    ) -> Context:
        causal, T, device = self.spec.causal, len(positions_T), positions_T.device
        start = caches[0].length if caches else 0
        keys_S = torch.arange(start + T, device=device)
        bias = self.position.bias(positions_T, keys_S)
        mask = None
        window = self.spec.sliding_window or math.inf
        # Several new tokens behind a cache see causally, but not in a square, which is all that kernels know.
        if document_ids_BT is not None or bias is not None or (start and T > 1) or start + T > window:
            mask = positions_T[:, None] >= keys_S if causal else torch.ones(T, T, dtype=torch.bool, device=device)
            if start + T > window:
                mask = mask & (positions_T[:, None] - keys_S < window)
            if document_ids_BT is not None:
                mask = mask & (document_ids_BT[:, None, :, None] == document_ids_BT[:, None, None, :])
            if bias is not None:
                mask = bias.masked_fill(~mask, -torch.inf)
        alike = mask is None or mask.ndim == 2  # for all sequences and heads
        short = alike and caches is None and T <= SHORT and device.type == "cpu"
        changing = self.spec.placement.residual_warmup is not None
        step = torch.tensor(self.step, device=device, dtype=torch.float32) if changing else None
        rotation = self.position.rotation(positions_T)
        return Context(rotation, mask, causal and not start, short, self.dtype, caches, step, values)

    def _run(self, layer: Callable[..., Any], x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
        if self.checkpoint_activations and self.training:
            return checkpoint(layer, x_BTD, context, use_reentrant=False)
        return layer(x_BTD, context)
