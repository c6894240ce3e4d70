"""A model's forward pass, walked by all threads together."""

import os
from typing import Any

import numpy as np
from numba import types

from shearling.engine.kernels.compiling import part
from shearling.engine.kernels.control import atomic_add, atomic_load, atomic_store, call, pause
from shearling.engine.kernels.layers import cache_at, gate, rms_norm, rotate
from shearling.engine.kernels.memory import as_f32, number, prefetch, put
from shearling.engine.kernels.products import quantize
from shearling.engine.kernels.records import MATRIX, VECTORS, matrix_at, vectors_at
from shearling.engine.kernels.vectors import LANES

Q, K, V, O, GATE, UP, DOWN = range(7)  # noqa: E741 (the field's name)
IN_A_LAYER, HEAD = 7, 1
"""A layer's matrices, in the order they are listed; the embedding and the head follow those of all layers."""

NORMED, MIXED, HIDDEN = range(3)
IN_A_SET = 3
"""The vectors that products take, in the order they are listed."""

PLAN = np.dtype(
    [(name, np.int64) for name in (
        # the model
        "d_model", "n_layers", "n_heads", "kv_heads", "head_dim", "window", "adjacent", "quantized",
        "matrices", "norms", "cosines", "sines", "cache",
        # the tokens of this pass
        "count", "tokens", "sequences", "times", "ends", "end_count", "logits", "logit_stride",
        # room
        "sets", "stream", "stride", "queries", "keys", "values", "qkv_stride", "ups", "scores", "score_stride",
        "threads", "barrier",
    )]
    + [("eps", np.float64)]
)  # fmt: skip
"""What a pass needs to know. Addresses are of int64 or fp32.

The model: its sizes; `matrices` MATRIX (7 · n_layers + 2,); `window` 0 where there is none; `adjacent` 1 where rows 2i
and 2i + 1 turn together; `quantized` 1 if any matrix is; `norms` (2 · n_layers + 1, stride); `cosines` and `sines`
(context, head_dim / 2); the CACHE. Each of `count` tokens has a sequence and a time in it; logits (end_count,
logit_stride) are made of the tokens that `ends` lists. Room: `scores` has `score_stride` numbers a thread; `sets` are
VECTORS (3 · threads,); `barrier` is the address of two numbers, 64 bytes apart.
"""

MATRIX_BYTES, VECTORS_BYTES = MATRIX.itemsize, VECTORS.itemsize

FETCHED = 1 << 18
"""Bytes that a thread fetches ahead at most: they wait in its core's cache."""

PATIENCE = 4000
"""Turns of a waiting loop, a few tens of microseconds, before a thread lets another one have its core."""

if hasattr(os, "sched_yield"):
    give_way = types.ExternalFunction("sched_yield", types.int32())
else:

    @part
    def give_way() -> int:
        """Nothing to give way with on this system."""
        return 0


@part
def meet(plan: Any, thread: int, which: int) -> None:
    """Wait until all threads are here, and meanwhile fetch what this one needs of a matrix that comes next."""
    if plan.threads == 1:
        return
    turn = atomic_load(plan.barrier + 64)
    if atomic_add(plan.barrier, 1) == plan.threads - 1:
        atomic_store(plan.barrier, 0)
        atomic_store(plan.barrier + 64, turn + 1)
        return
    m = matrix_at(plan.matrices + which * MATRIX_BYTES)
    first, last = share(m.rows, thread, plan.threads)
    ahead, end = m.values + first * m.unit_bytes, m.values + last * m.unit_bytes
    end = min(end, ahead + FETCHED)
    spins = 0
    while atomic_load(plan.barrier + 64) == turn:
        if ahead < end:
            prefetch(ahead)
            ahead += 64
        else:
            pause()
            spins += 1
            if spins > PATIENCE:
                give_way()


@part
def share(rows: int, thread: int, threads: int) -> tuple[int, int]:
    """The units of sixteen rows that are this thread's."""
    units = (rows + LANES - 1) // LANES
    return units * thread // threads, units * (thread + 1) // threads


@part
def multiply(plan: Any, which: int, x: int, n: int, out: int, stride: int, adding: int, thread: int) -> None:
    """This thread's share of a matrix's rows times the vectors of n tokens."""
    matrix = plan.matrices + which * MATRIX_BYTES
    m = matrix_at(matrix)
    first, last = share(m.rows, thread, plan.threads)
    call(m.multiply, (m.values, m.scales, matrix, x, n, out, stride, adding, first, last))


@part
def vectors(plan: Any, which: int, thread: int, count: int) -> int:
    """Vectors for products: a thread's own for a single token, the first thread's for several."""
    return plan.sets + (IN_A_SET * (thread if count == 1 else 0) + which) * VECTORS_BYTES


@part
def whole(address: int, index: int) -> int:
    """The index-th of some int64."""
    return atomic_load(address + 8 * index)


@part
def normed(plan: Any, which: int, x: Any, token: int, source: int) -> None:
    """A token's vector of the stream behind a norm, ready for a product."""
    gain = plan.norms + 4 * which * plan.stride
    rms_norm(plan.stream + 4 * source * plan.stride, gain, plan.d_model, plan.eps, x.floats + 4 * token * x.stride)
    if plan.quantized:
        quantize(x, token)


@part
def norm_all(plan: Any, which: int, x: Any, thread: int) -> None:
    """The same for all tokens. A single one is normed by each thread for itself: that takes less than waiting."""
    if plan.count == 1:
        normed(plan, which, x, 0, 0)
        return
    for token in range(thread, plan.count, plan.threads):
        normed(plan, which, x, token, token)
    meet(plan, thread, which // 2 * IN_A_LAYER + (GATE if which % 2 else Q))


@part
def quantize_all(plan: Any, x: Any, thread: int, which: int) -> None:
    """Vectors that are complete as floats, made ready for a product; a single one by each thread for itself."""
    if not plan.quantized:
        return
    if plan.count == 1:
        quantize(x, 0)
        return
    for token in range(thread, plan.count, plan.threads):
        quantize(x, token)
    meet(plan, thread, which)


@part
def rotate_and_keep(plan: Any, layer: int, thread: int) -> None:
    """Turn queries and keys by their times; put keys and values into the cache."""
    cache = cache_at(plan.cache)
    heads = plan.n_heads + plan.kv_heads
    half, width = plan.head_dim // 2, 4 * plan.head_dim
    for task in range(thread, plan.count * heads, plan.threads):
        token, head = task // heads, task % heads
        time, sequence = whole(plan.times, token), whole(plan.sequences, token)
        cos, sin = plan.cosines + 4 * time * half, plan.sines + 4 * time * half
        row = 4 * token * plan.qkv_stride
        if head < plan.n_heads:
            rotate(plan.queries + row + head * width, cos, sin, half, plan.adjacent)
        else:
            group = head - plan.n_heads
            key = plan.keys + row + group * width
            rotate(key, cos, sin, half, plan.adjacent)
            place = (layer * cache.sequences + sequence) * plan.kv_heads + group
            call(
                cache.keep, (cache.keys, cache.values, plan.cache, place, time, key, plan.values + row + group * width)
            )


@part
def attend_all(plan: Any, layer: int, mixed: Any, thread: int) -> None:
    """Attention of each token's heads over the times up to its own."""
    cache = cache_at(plan.cache)
    group = plan.n_heads // plan.kv_heads
    scores = plan.scores + 4 * thread * plan.score_stride
    result = scores + 4 * cache.capacity
    for task in range(thread, plan.count * plan.n_heads, plan.threads):
        token, head = task // plan.n_heads, task % plan.n_heads
        end, sequence = whole(plan.times, token) + 1, whole(plan.sequences, token)
        first = max(0, end - plan.window) if plan.window else 0
        place = (layer * cache.sequences + sequence) * plan.kv_heads + head // group
        query = plan.queries + 4 * (token * plan.qkv_stride + head * plan.head_dim)
        call(cache.attend, (cache.keys, cache.values, plan.cache, place, query, first, end, scores, result))
        to = mixed.floats + 4 * (token * mixed.stride + head * plan.head_dim)
        for i in range(plan.head_dim):
            put(as_f32(to), i, number(as_f32(result), i))


@part
def attention(plan: Any, layer: int, thread: int) -> None:
    """x ← x + W_o · attention(N(x))."""
    first, n = layer * IN_A_LAYER, plan.count
    x, mixed = vectors(plan, NORMED, thread, n), vectors(plan, MIXED, thread, n)
    norm_all(plan, 2 * layer, vectors_at(x), thread)
    multiply(plan, first + Q, x, n, plan.queries, plan.qkv_stride, 0, thread)
    multiply(plan, first + K, x, n, plan.keys, plan.qkv_stride, 0, thread)
    multiply(plan, first + V, x, n, plan.values, plan.qkv_stride, 0, thread)
    meet(plan, thread, first + O)
    rotate_and_keep(plan, layer, thread)
    meet(plan, thread, first + O)
    attend_all(plan, layer, vectors_at(mixed), thread)
    meet(plan, thread, first + O)
    quantize_all(plan, vectors_at(mixed), thread, first + O)
    multiply(plan, first + O, mixed, n, plan.stream, plan.stride, 1, thread)
    meet(plan, thread, first + GATE)


@part
def feedforward(plan: Any, layer: int, thread: int) -> None:
    """x ← x + W_down (silu(W_gate N(x)) ⊙ W_up N(x))."""
    first, n = layer * IN_A_LAYER, plan.count
    x, h = vectors(plan, NORMED, thread, n), vectors(plan, HIDDEN, thread, n)
    hidden = vectors_at(h)
    norm_all(plan, 2 * layer + 1, vectors_at(x), thread)
    multiply(plan, first + GATE, x, n, hidden.floats, hidden.stride, 0, thread)
    multiply(plan, first + UP, x, n, plan.ups, hidden.stride, 0, thread)
    begin, end = share(matrix_at(plan.matrices + (first + GATE) * MATRIX_BYTES).rows, thread, plan.threads)
    for token in range(n):
        row = 4 * token * hidden.stride
        gate(hidden.floats + row, plan.ups + row, begin * LANES, end * LANES)
    meet(plan, thread, first + DOWN)
    quantize_all(plan, hidden, thread, first + DOWN)
    multiply(plan, first + DOWN, h, n, plan.stream, plan.stride, 1, thread)
    meet(plan, thread, first + IN_A_LAYER + (Q if layer + 1 < plan.n_layers else HEAD))


@part
def head(plan: Any, thread: int) -> None:
    """Logits of the tokens that are asked for."""
    n = plan.end_count
    x = vectors(plan, NORMED, thread, n)
    if n == 1:
        normed(plan, 2 * plan.n_layers, vectors_at(x), 0, whole(plan.ends, 0))
    else:
        for end in range(thread, n, plan.threads):
            normed(plan, 2 * plan.n_layers, vectors_at(x), end, whole(plan.ends, end))
        meet(plan, thread, plan.n_layers * IN_A_LAYER + HEAD)
    multiply(plan, plan.n_layers * IN_A_LAYER + HEAD, x, n, plan.logits, plan.logit_stride, 0, thread)
    meet(plan, thread, Q)


@part
def forward(plans: Any, thread: int) -> None:
    """One thread's part of the pass that the first PLAN describes."""
    plan = plans[0]
    embedding = plan.matrices + plan.n_layers * IN_A_LAYER * MATRIX_BYTES
    m = matrix_at(embedding)
    for token in range(thread, plan.count, plan.threads):
        to = plan.stream + 4 * token * plan.stride
        call(m.look_up, (m.values, m.scales, embedding, whole(plan.tokens, token), to))
    meet(plan, thread, Q)
    for layer in range(plan.n_layers):
        attention(plan, layer, thread)
        feedforward(plan, layer, thread)
    head(plan, thread)
