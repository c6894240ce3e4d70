"""Products with quantized weights, in tiles of sixteen rows."""

from typing import Any

import numpy as np
from numba.extending import overload

from shearling.engine.kernels.arithmetic import (
    add,
    dot4,
    fma,
    high_nibbles,
    low_nibbles,
    mul,
    shifted_sum,
    splat,
    splat_int,
    times,
    to_floats,
)
from shearling.engine.kernels.compiling import inlined, part
from shearling.engine.kernels.memory import (
    address,
    as_f32,
    byte,
    like,
    load,
    load_bytes,
    load_int,
    load_word,
    number,
    prefetch,
    put,
    store,
)
from shearling.engine.kernels.records import BLOCK, matrix_at, vectors_at
from shearling.engine.kernels.vectors import LANES, bytes_at, nibbles_at

INSIDE = {"error_model": "numpy", "forceinline": True}
"""How what a type chooses is compiled: into the loop that asks for it."""

AHEAD = 8
"""Blocks by which weights are asked for before they are needed."""


def weights_of(values: Any, block: int, quad: int) -> Any:
    """64 unsigned weights: four columns, the quad-th of a block, of a tile's sixteen rows."""


@overload(weights_of, jit_options=INSIDE)
def _weights_of(values: Any, block: int, quad: int) -> Any:
    def of_bytes(values: Any, block: int, quad: int) -> Any:
        return load_bytes(address(values) + block * (BLOCK * LANES) + quad * 64)

    def of_nibbles(values: Any, block: int, quad: int) -> Any:
        pair = load_bytes(address(values) + block * (BLOCK * LANES // 2) + quad % 4 * 64)
        return high_nibbles(pair) if quad >= 4 else low_nibbles(pair)

    return {bytes_at: of_bytes, nibbles_at: of_nibbles}[values]


def fetch(values: Any, block: int) -> None:
    """Ask for a block of weights ahead of time."""


@overload(fetch, jit_options=INSIDE)
def _fetch(values: Any, block: int) -> Any:
    size = {bytes_at: BLOCK * LANES, nibbles_at: BLOCK * LANES // 2}[values]

    def ask(values: Any, block: int) -> None:
        for line in range(0, size, 64):
            prefetch(address(values) + block * size + line)

    return ask


@inlined
def dot_block(values: Any, block: int, x: int, start: Any) -> Any:
    """Sixteen rows' sums over a block of unsigned weights times a vector's whole numbers, and `start`."""
    high, low = splat_int(np.int32(0)), start
    for quad in range(8):
        weights = weights_of(values, block, quad)
        high = dot4(high, weights, load_word(x + quad * 4))
        low = dot4(low, weights, load_word(x + BLOCK + quad * 4))
    return shifted_sum(high, low)


@inlined
def dot_blocks(values: Any, a: int, b: int, x: int, y: int, start_x: Any, start_y: Any) -> Any:
    """The same of two tiles' blocks, a and b, and two vectors, each loaded once."""
    zero = splat_int(np.int32(0))
    ax, ay, bx, by = zero, zero, zero, zero
    ax_low, bx_low, ay_low, by_low = start_x, start_x, start_y, start_y
    for quad in range(8):
        of_a, of_b = weights_of(values, a, quad), weights_of(values, b, quad)
        word = load_word(x + quad * 4)
        ax, bx = dot4(ax, of_a, word), dot4(bx, of_b, word)
        word = load_word(x + BLOCK + quad * 4)
        ax_low, bx_low = dot4(ax_low, of_a, word), dot4(bx_low, of_b, word)
        word = load_word(y + quad * 4)
        ay, by = dot4(ay, of_a, word), dot4(by, of_b, word)
        word = load_word(y + BLOCK + quad * 4)
        ay_low, by_low = dot4(ay_low, of_a, word), dot4(by_low, of_b, word)
    return shifted_sum(ax, ax_low), shifted_sum(bx, bx_low), shifted_sum(ay, ay_low), shifted_sum(by, by_low)


@part
def emit(matrix: Any, row: int, y: Any, out: int, adding: bool) -> None:
    """Write, or add, sixteen rows' results for one token."""
    if matrix.bias:
        y = add(y, load(as_f32(matrix.bias), row))
    to = as_f32(out)
    store(to, row, add(y, load(to, row)) if adding else y)


@inlined
def plus(y: Any, whole: Any, scale: Any, x_scale: Any) -> Any:
    """`y`, and what a block adds to it."""
    return fma(to_floats(whole), mul(scale, x_scale), y)


@part
def plus_minimums(y: Any, minimums: Any, m: Any, tile: int, x: Any, token: int) -> Any:
    """`y`, and what the minimums of a tile's groups add to it."""
    groups, at = x.blocks // m.blocks_per_scale, token * x.blocks
    for group in range(groups):
        minimum = load(minimums, (tile * groups + group) * LANES)
        for _ in range(m.blocks_per_scale):
            y = fma(minimum, splat(number(as_f32(x.totals), at)), y)
            at += 1
    return y


@part
def one_tile(values: Any, scales: Any, minimums: Any, m: Any, tile: int, x: Any, token: int, out: Any) -> None:
    """A tile's rows times one vector."""
    each, offset = m.blocks_per_scale, splat_int(np.int32(-m.offset))
    first, group = tile * x.blocks, tile * (x.blocks // each)
    at = token * x.blocks
    x_scales, x_sums, quants = as_f32(x.scales + 4 * at), x.sums + 4 * at, x.quants + at * (2 * BLOCK)
    y = splat(np.float32(0))
    for begin in range(0, x.blocks, each):
        scale = load(scales, group * LANES)
        for block in range(begin, begin + each):
            fetch(values, first + block + AHEAD)
            start = times(offset, load_int(x_sums + 4 * block))
            whole = dot_block(values, first + block, quants + block * (2 * BLOCK), start)
            y = plus(y, whole, scale, splat(number(x_scales, block)))
        group += 1
    if m.minimums:
        y = plus_minimums(y, minimums, m, tile, x, token)
    to, stride, adding = out
    emit(m, tile * LANES, y, to + 4 * token * stride, adding)


@part
def two_tiles(values: Any, scales: Any, minimums: Any, m: Any, tile: int, x: Any, token: int, n: int, out: Any) -> None:
    """Two tiles' rows times two vectors; meanwhile this pair's part of the next two tiles is fetched."""
    pair, pairs = token // 2, n // 2
    begins, ends = pair * x.blocks // pairs, (pair + 1) * x.blocks // pairs
    each, offset = m.blocks_per_scale, splat_int(np.int32(-m.offset))
    groups = x.blocks // each
    a, b, group = tile * x.blocks, (tile + 1) * x.blocks, tile * groups
    at = token * x.blocks
    x_scales, x_sums, quants = as_f32(x.scales + 4 * at), x.sums + 4 * at, x.quants + at * (2 * BLOCK)
    y_ax = y_bx = y_ay = y_by = splat(np.float32(0))
    for begin in range(0, x.blocks, each):
        scale_a, scale_b = load(scales, group * LANES), load(scales, (group + groups) * LANES)
        for block in range(begin, begin + each):
            other = block + x.blocks
            if begins <= block < ends:
                fetch(values, b + x.blocks + block)
                fetch(values, b + 2 * x.blocks + block)
            ax, bx, ay, by = dot_blocks(
                values, a + block, b + block, quants + block * (2 * BLOCK), quants + other * (2 * BLOCK),
                times(offset, load_int(x_sums + 4 * block)), times(offset, load_int(x_sums + 4 * other)),
            )  # fmt: skip
            x_scale, y_scale = splat(number(x_scales, block)), splat(number(x_scales, other))
            y_ax, y_bx = plus(y_ax, ax, scale_a, x_scale), plus(y_bx, bx, scale_b, x_scale)
            y_ay, y_by = plus(y_ay, ay, scale_a, y_scale), plus(y_by, by, scale_b, y_scale)
        group += 1
    if m.minimums:
        y_ax = plus_minimums(y_ax, minimums, m, tile, x, token)
        y_bx = plus_minimums(y_bx, minimums, m, tile + 1, x, token)
        y_ay = plus_minimums(y_ay, minimums, m, tile, x, token + 1)
        y_by = plus_minimums(y_by, minimums, m, tile + 1, x, token + 1)
    to, stride, adding = out
    row = tile * LANES
    emit(m, row, y_ax, to + 4 * token * stride, adding)
    emit(m, row + LANES, y_bx, to + 4 * token * stride, adding)
    emit(m, row, y_ay, to + 4 * (token + 1) * stride, adding)
    emit(m, row + LANES, y_by, to + 4 * (token + 1) * stride, adding)


@part
def tiles(values: Any, scales: Any, minimums: Any, m: Any, units: Any, x: Any, n: int, out: Any) -> None:
    """The rows of some tiles times all vectors."""
    tile, last = units
    while tile < last:
        together = 2 if n > 1 and tile + 2 <= last else 1
        token = 0
        if together == 2:
            while token + 2 <= n:
                two_tiles(values, scales, minimums, m, tile, x, token, n, out)
                token += 2
        while token < n:
            one_tile(values, scales, minimums, m, tile, x, token, out)
            if together == 2:
                one_tile(values, scales, minimums, m, tile + 1, x, token, out)
            token += 1
        tile += together


def value_of(values: Any, block: int, quad: int, place: int) -> Any:
    """One unsigned weight."""


@overload(value_of, jit_options=INSIDE)
def _value_of(values: Any, block: int, quad: int, place: int) -> Any:
    def of_bytes(values: Any, block: int, quad: int, place: int) -> int:
        return byte(address(values) + (block * 8 + quad) * 64 + place)

    def of_nibbles(values: Any, block: int, quad: int, place: int) -> int:
        pair = byte(address(values) + (block * 4 + quad % 4) * 64 + place)
        return pair >> 4 if quad >= 4 else pair & 15

    return {bytes_at: of_bytes, nibbles_at: of_nibbles}[values]


@part
def row_of_tiles(values: Any, scales: Any, minimums: Any, m: Any, row: int, out: int) -> None:
    """A row of a quantized matrix."""
    blocks, tile, lane = m.columns // BLOCK, row // LANES, row % LANES
    for block in range(blocks):
        place = (tile * (blocks // m.blocks_per_scale) + block // m.blocks_per_scale) * LANES + lane
        scale, minimum = number(scales, place), number(minimums, place) if m.minimums else np.float32(0)
        for i in range(BLOCK):
            value = value_of(values, tile * blocks + block, i // 4, lane * 4 + i % 4)
            put(as_f32(out), block * BLOCK + i, scale * np.float32(value - m.offset) + minimum)


def multiply_tiles(
    values: Any, scales: Any, matrix: int, x: int, n: int, out: int, stride: int, adding: int, first: int, last: int
) -> None:
    """Quantized rows."""
    m = matrix_at(matrix)
    minimums = like(scales, m.minimums)
    tiles(values, scales, minimums, m, (first, last), vectors_at(x), n, (out, stride, adding != 0))


def look_up_in_tiles(values: Any, scales: Any, matrix: int, row: int, out: int) -> None:
    """A quantized row."""
    m = matrix_at(matrix)
    row_of_tiles(values, scales, like(scales, m.minimums), m, row, out)
