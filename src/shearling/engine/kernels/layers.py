"""What stands between the matrix products: norms, rotation, keys and values, attention, the gate."""

from typing import Any

import numpy as np

from shearling.engine.kernels.arithmetic import add, div, exp, fma, largest, mul, peak, splat, sub, total
from shearling.engine.kernels.compiling import part
from shearling.engine.kernels.control import record_at
from shearling.engine.kernels.memory import as_f32, load, load_first, number, put, store
from shearling.engine.kernels.vectors import LANES, Pointer, bf16_at, f32_at, i8_at

CACHE = np.dtype([(name, np.int64) for name in (
    "keep", "attend", "sequences", "kv_heads", "head_dim", "padded", "capacity", "keys", "values",
    "key_scales", "value_scales",
)])  # fmt: skip
"""Keys and values of some sequences: the addresses of their kernels and of their numbers, and the sizes.

Keys and values alike (layers, sequences, kv_heads, capacity, padded); `padded` is a head's width rounded up to 16, with
zeros behind it. Kept as bytes, each key and each value has a scale of its own: (layers, sequences, kv_heads, capacity),
fp32.
"""

cache_at = record_at(CACHE)


@part
def rms_norm(x: int, gain: int, columns: int, eps: float, to: int) -> None:
    """g ⊙ x / √(mean(x²) + eps) (arXiv 1910.07467)."""
    source, gains, target = as_f32(x), as_f32(gain), as_f32(to)
    whole, left = columns // LANES * LANES, columns % LANES
    squares = splat(np.float32(0))
    for i in range(0, whole, LANES):
        squares = fma(load(source, i), load(source, i), squares)
    if left:
        rest = load_first(source, whole, left)
        squares = fma(rest, rest, squares)
    scale = splat(np.float32(1) / np.sqrt(total(squares) / np.float32(columns) + np.float32(eps)))
    for i in range(0, whole, LANES):
        store(target, i, mul(load(gains, i), mul(load(source, i), scale)))
    if left:  # zeros behind the end stay zeros
        store(target, whole, mul(load_first(gains, whole, left), mul(load_first(source, whole, left), scale)))


@part
def gate(x: int, y: int, first: int, last: int) -> None:
    """x ← silu(x) ⊙ y in the columns from `first` to `last`, multiples of 16 (SwiGLU, arXiv 2002.05202)."""
    gates, ups = as_f32(x), as_f32(y)
    one = splat(np.float32(1))
    for i in range(first, last, LANES):
        g = load(gates, i)
        sigmoid = div(one, add(one, exp(sub(splat(np.float32(0)), g))))
        store(gates, i, mul(mul(g, sigmoid), load(ups, i)))


@part
def rotate(x: int, cos: int, sin: int, half: int, adjacent: bool) -> None:
    """Turn a head's pairs, (i, i + K/2) or adjacent ones, by their angles (RoPE, arXiv 2104.09864)."""
    head, cosines, sines = as_f32(x), as_f32(cos), as_f32(sin)
    for i in range(half):
        first, second = (2 * i, 2 * i + 1) if adjacent else (i, i + half)
        a, b, c, s = number(head, first), number(head, second), number(cosines, i), number(sines, i)
        put(head, first, a * c - b * s)
        put(head, second, b * c + a * s)


@part
def keep_scale(scales: int, place: int, x: int, width: int) -> float:
    """Keep the scale with which a vector's largest number becomes 127; returns what to multiply the vector by."""
    most = np.float32(0)
    for i in range(width):
        most = max(most, abs(number(as_f32(x), i)))
    put(as_f32(scales), place, most / np.float32(127))
    return np.float32(127) / most if most > 0 else np.float32(0)


@part
def scores_of(keys: Any, at: int, q: int, scale: float, padded: int, first: int, end: int, scores: int) -> None:
    """q · k · scale for the keys from `first` to `end`; what follows a query meets the zeros behind keys."""
    query, to = as_f32(q), as_f32(scores)
    for time in range(first, end):
        place, sums = at + time * padded, splat(np.float32(0))
        for slot in range(0, padded, LANES):
            sums = fma(load(keys, place + slot), load(query, slot), sums)
        put(to, time, total(sums) * scale)


@part
def weigh(scores: int, begin: int, first: int, end: int) -> float:
    """softmax's numerators in place, over the times from `first` to `end`, 0 around them; returns their sum."""
    s = as_f32(scores)
    stop = (end + LANES - 1) // LANES * LANES
    for time in range(begin, first):
        put(s, time, np.float32(-np.inf))
    for time in range(end, stop):
        put(s, time, np.float32(-np.inf))
    most = splat(np.float32(-np.inf))
    for time in range(begin, stop, LANES):
        most = largest(most, load(s, time))
    most = splat(peak(most))
    together = splat(np.float32(0))
    for time in range(begin, stop, LANES):
        weights = exp(sub(load(s, time), most))
        store(s, time, weights)
        together = add(together, weights)
    return total(together)


@part
def mix(values: Any, at: int, padded: int, scores: int, first: int, end: int, inverse: float, out: int) -> None:
    """The values from `first` to `end`, weighed, times `inverse`: `padded` numbers at `out`."""
    weights, to = as_f32(scores), as_f32(out)
    slot = 0
    while slot < padded:
        wide = slot + 4 * LANES <= padded
        y0 = y1 = y2 = y3 = splat(np.float32(0))
        if wide:
            for time in range(first, end):
                p, place = splat(number(weights, time)), at + time * padded + slot
                y0 = fma(load(values, place), p, y0)
                y1 = fma(load(values, place + LANES), p, y1)
                y2 = fma(load(values, place + 2 * LANES), p, y2)
                y3 = fma(load(values, place + 3 * LANES), p, y3)
            store(to, slot + LANES, mul(y1, splat(inverse)))
            store(to, slot + 2 * LANES, mul(y2, splat(inverse)))
            store(to, slot + 3 * LANES, mul(y3, splat(inverse)))
        else:
            for time in range(first, end):
                y0 = fma(load(values, at + time * padded + slot), splat(number(weights, time)), y0)
        store(to, slot, mul(y0, splat(inverse)))
        slot += 4 * LANES if wide else LANES


@part
def scaled(scores: int, scales: int, first: int, end: int) -> None:
    """Each score times the scale of its time."""
    s, c = as_f32(scores), as_f32(scales)
    for time in range(first, end, LANES):
        store(s, time, mul(load(s, time), load(c, time)))


# The kernels. Both take the addresses of all keys and all values, by their types, and of the CACHE that they are in.
# `head` counts over layers and sequences.


def keep(keys: Any, values: Any, cache: int, head: int, time: int, key: int, value: int) -> None:
    """Put a key and a value, fp32, where a head keeps those of this time."""
    c = cache_at(cache)
    key_factor = value_factor = np.float32(1)
    if c.key_scales:
        key_factor = keep_scale(c.key_scales, head * c.capacity + time, key, c.head_dim)
        value_factor = keep_scale(c.value_scales, head * c.capacity + time, value, c.head_dim)
    place = (head * c.capacity + time) * c.padded
    for i in range(c.head_dim):
        put(keys, place + i, number(as_f32(key), i) * key_factor)
        put(values, place + i, number(as_f32(value), i) * value_factor)


def attend(keys: Any, values: Any, cache: int, head: int, q: int, first: int, end: int, scores: int, out: int) -> None:
    """softmax(q · Kᵀ / √K) · V over the times from `first` to `end`.

    `scores` is room for `capacity` numbers, `out` for `padded` ones, the result.
    """
    c = cache_at(cache)
    begin = first // LANES * LANES
    at, scales = head * c.capacity, 4 * head * c.capacity
    scores_of(keys, at * c.padded, q, np.float32(1 / np.sqrt(c.head_dim)), c.padded, first, end, scores)
    if c.key_scales:
        scaled(scores, c.key_scales + scales, begin, end)
    inverse = np.float32(1) / weigh(scores, begin, first, end)
    if c.value_scales:
        scaled(scores, c.value_scales + scales, begin, end)
    mix(values, at * c.padded, c.padded, scores, first, end, inverse, out)


KEPT: dict[str, tuple[np.dtype[Any], Pointer]] = {
    "f32": (np.dtype(np.float32), f32_at),
    "bf16": (np.dtype(np.uint16), bf16_at),
    "int8": (np.dtype(np.int8), i8_at),
}
"""How keys and values can be kept: what numpy holds them as, and what kernels take them for."""
