"""The model as its equations say, in plain numpy: what faster engines are held to, and what checks converted files.

Weights stay in their file. Each matrix is decoded where it is needed, some rows at a time, and dropped again, so that
memory is that of the hidden values, whatever the model's size.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from shearling.engine.session import Engine, Session, fitting_context
from shearling.errors import UserError
from shearling.formats.checkpoint import NUMBERS_AT_ONCE, Checkpoint, Rotary
from shearling.formats.pages import PagesHeld
from shearling.models.norm_spec import RMSNormSpec
from shearling.models.rope import inverse_frequencies
from shearling.quantization import FloatArray


class ReferenceEngine(Engine):
    """Any model of LLaMA's graph, in float32: grouped queries, scaled rotations, a sliding window, biases, either head.

    Args:
        context: the longest sequence, in tokens; None: what the model was made for.

    Raises:
        UserError: the model is of another graph.
    """

    def __init__(self, checkpoint: Checkpoint, context: int | None = None) -> None:
        if beyond := checkpoint.spec.beyond_llama():
            raise UserError(f"{checkpoint.origin}: {', '.join(beyond)}: beyond LLaMA's graph, which is what runs here")
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.context = fitting_context(checkpoint.spec, context)

    def session(self, sequences: int = 1) -> Session:
        return _ReferenceSession(self.checkpoint, self.context, sequences)


class _ReferenceSession(Session):
    def __init__(self, checkpoint: Checkpoint, context: int, sequences: int) -> None:
        super().__init__(checkpoint.spec, context, sequences)
        spec = self._spec = checkpoint.spec
        self._checkpoint = checkpoint
        assert isinstance(spec.norm, RMSNormSpec), "LLaMA's graph has no other"
        self._eps = np.float32(spec.norm.eps)
        self._held = PagesHeld(checkpoint.tensors.values())
        self._frequencies, self._length = inverse_frequencies(spec)
        empty = np.empty((spec.kv_heads, 0, spec.head_dim), np.float32)
        self._kept = [[(empty, empty) for _ in range(spec.n_layers)] for _ in range(sequences)]

    def _feed(self, tokens: Sequence[int], sequence: int, *, every: bool) -> FloatArray:
        positions_T = np.arange(self.lengths[sequence], self.lengths[sequence] + len(tokens))
        x_TD = self._checkpoint.tensors["embed.weight"].read(np.asarray(tokens))
        for layer in range(self._spec.n_layers):
            x_TD = x_TD + self._attention(x_TD, layer, positions_T, sequence)
            x_TD = x_TD + self._feedforward(x_TD, layer)
        x_TD = self._norm(x_TD if every else x_TD[-1:], "final_norm")
        return self._product(x_TD, "embed" if self._spec.tie_embeddings else "head")

    def _step(self, tokens: Sequence[int], sequences: list[int]) -> FloatArray:
        each = zip(tokens, sequences, strict=True)
        return np.concatenate([self._feed([token], sequence, every=False) for token, sequence in each])

    def _norm(self, x_TD: FloatArray, name: str) -> FloatArray:
        """g ⊙ x / sqrt(mean(x²) + eps) (arXiv 1910.07467)."""
        g_D = self._checkpoint.tensors[f"{name}.weight"].read()
        return g_D * x_TD / np.sqrt(np.mean(x_TD**2, axis=1, keepdims=True) + self._eps)

    def _product(self, x_TI: FloatArray, name: str) -> FloatArray:
        """x Wᵀ + b, some rows of W at a time."""
        tensors = self._checkpoint.tensors
        W_OI = tensors[f"{name}.weight"]
        y_TO = np.empty((len(x_TI), W_OI.shape[0]), np.float32)
        at_once = max(1, NUMBERS_AT_ONCE // W_OI.shape[1])
        for start in range(0, W_OI.shape[0], at_once):
            rows = slice(start, start + at_once)
            y_TO[:, rows] = x_TI @ W_OI.read(rows).T
        self._held.count(W_OI.nbytes)
        return y_TO + tensors[f"{name}.bias"].read() if f"{name}.bias" in tensors else y_TO

    def _feedforward(self, x_TD: FloatArray, layer: int) -> FloatArray:
        """W_down (silu(W_gate h) ⊙ W_up h), h = N(x) (arXiv 2002.05202)."""
        name = f"layers.{layer}.feedforward"
        h_TD = self._norm(x_TD, f"{name}.norm")
        gate_TF = self._product(h_TD, f"{name}.branch.gate_proj")
        up_TF = self._product(h_TD, f"{name}.branch.up_proj")
        with np.errstate(over="ignore"):  # where e^−x is infinite, silu is 0
            silu_TF = gate_TF / (1 + np.exp(-gate_TF))
        return self._product(silu_TF * up_TF, f"{name}.branch.down_proj")

    def _attention(self, x_TD: FloatArray, layer: int, positions_T: Any, sequence: int) -> FloatArray:
        """W_o softmax(Q Kᵀ / sqrt(K)) V, masked, n_heads / n_kv_heads queries a key (arXiv 2305.13245)."""
        name = f"layers.{layer}.attention"
        h_TD = self._norm(x_TD, f"{name}.norm")
        q_HTK, k_GTK, v_GTK = (
            _heads(self._product(h_TD, f"{name}.branch.{module}_proj"), self._spec.head_dim) for module in "qkv"
        )
        q_HTK, k_GTK = self._turned(q_HTK, positions_T), self._turned(k_GTK, positions_T)
        k_GSK, v_GSK = self._remembered(k_GTK, v_GTK, layer, sequence)
        groups = self._spec.n_heads // self._spec.kv_heads
        q_GRTK = q_HTK.reshape(-1, groups, *q_HTK.shape[1:])
        scores_GRTS = q_GRTK @ k_GSK[:, None].swapaxes(2, 3) / np.float32(math.sqrt(self._spec.head_dim))
        scores_GRTS[:, :, ~self._seen(positions_T, k_GSK.shape[1])] = -np.inf
        weights_GRTS = np.exp(scores_GRTS - scores_GRTS.max(axis=3, keepdims=True))
        weights_GRTS /= weights_GRTS.sum(axis=3, keepdims=True)
        y_GRTK = weights_GRTS @ v_GSK[:, None]
        y_TD = y_GRTK.reshape(q_HTK.shape).swapaxes(0, 1).reshape(len(x_TD), -1)
        return self._product(y_TD, f"{name}.branch.o_proj")

    def _remembered(
        self, k_GTK: FloatArray, v_GTK: FloatArray, layer: int, sequence: int
    ) -> tuple[FloatArray, FloatArray]:
        """Keys and values of all tokens so far, the new ones behind those that the sequence holds."""
        length = self.lengths[sequence]
        keys, values = self._kept[sequence][layer]
        keys = np.concatenate((keys[:, :length], k_GTK), axis=1)
        values = np.concatenate((values[:, :length], v_GTK), axis=1)
        self._kept[sequence][layer] = keys, values
        return keys, values

    def _seen(self, positions_T: Any, n_keys: int) -> Any:
        """Which keys a token sees: those up to its own, or as many of them as the window takes (arXiv 2310.06825)."""
        distance_TS = positions_T[:, None] - np.arange(n_keys)
        return (distance_TS >= 0) & (distance_TS < (self._spec.sliding_window or math.inf))

    def _turned(self, x_HTK: FloatArray, positions_T: Any) -> FloatArray:
        """Each pair of coordinates turned by position · its frequency (arXiv 2104.09864); the pairs stay in place."""
        angles = positions_T.astype(np.float32)[:, None] * self._frequencies
        cos, sin = np.float32(self._length) * np.cos(angles), np.float32(self._length) * np.sin(angles)
        at_first, at_second = _pairs(x_HTK.shape[2], self._checkpoint.rotary)
        first, second = x_HTK[..., at_first], x_HTK[..., at_second]
        turned_HTK = np.empty_like(x_HTK)
        turned_HTK[..., at_first] = first * cos - second * sin
        turned_HTK[..., at_second] = second * cos + first * sin
        return turned_HTK


def _heads(x_TD: FloatArray, head_dim: int) -> FloatArray:
    return x_TD.reshape(len(x_TD), -1, head_dim).swapaxes(0, 1)


def _pairs(head_dim: int, rotary: Rotary) -> tuple[slice, slice]:
    """Where the first and the second coordinates of a head's pairs lie."""
    half = head_dim // 2
    return (slice(half), slice(half, None)) if rotary == "halves" else (slice(0, None, 2), slice(1, None, 2))
