"""Matrix products: weights, in whatever bits they come, with the vectors of one or several tokens.

Floats lie as in their files, row by row. Quantized weights lie in tiles of sixteen rows, so that one `dot4` takes four
columns of a tile with the same four numbers of a vector. Vectors meet them as whole numbers of 16 bits, with a scale
for each block of 32, held as two bytes: their rounding is far below that of the weights. Sums within a block are exact
and blocks are added in order, whatever the number of tokens and threads: what comes out for a token does not depend on
what is computed beside it.
"""

from typing import Any

import numpy as np
from numba.extending import overload

from shearling.engine.compiling import inlined, part
from shearling.engine.simd import (
    LANES,
    add,
    address,
    as_bf16,
    as_bytes,
    as_f16,
    as_f32,
    as_nibbles,
    byte,
    bytes_at,
    dot4,
    fma,
    high_nibbles,
    largest,
    load,
    load_bytes,
    load_first,
    load_int,
    load_word,
    low_nibbles,
    magnitude,
    mul,
    nibbles_at,
    number,
    peak,
    prefetch,
    put,
    put_int,
    record_at,
    shifted_sum,
    splat,
    splat_int,
    store,
    store_halves,
    times,
    to_floats,
    total,
)

BLOCK = 32
AHEAD = 8
"""Blocks by which weights are asked for before they are needed."""

MOST = np.float32(127 * 257)
"""The largest whole number of a vector: 256 · 127 + 127."""

MATRIX = np.dtype([(name, np.int64) for name in (
    "multiply", "look_up", "rows", "columns", "values", "scales", "minimums", "blocks_per_scale", "offset", "bias",
    "unit_bytes",
)])  # fmt: skip
"""A matrix that is ready to be multiplied with: the addresses of its kernels, its sizes, where its numbers lie.

Quantized: w = scale · (value − offset) + minimum with unsigned values. `minimums` and `bias` are 0 where there are
none. Values lie as (tiles, blocks, 8, 16, 4) bytes, or with the quads 4 to 7 of a block in the upper nibbles of 0 to
3; scales and minimums, fp16 or fp32, as (tiles, blocks / blocks_per_scale, 16). `unit_bytes` of values belong to
sixteen rows.
"""

VECTORS = np.dtype([(name, np.int64) for name in ("stride", "floats", "blocks", "quants", "scales", "sums", "totals")])
"""Addresses of the vectors of several tokens.

Floats: fp32 (n, stride). Quantized: bytes (n, blocks, 2, 32), the high ones before the low ones; scales, fp32, and the
sums of a block's whole numbers, int32, and these times the scale, fp32, all (n, blocks). What lies behind the end of a vector is zero.
"""

matrix_at, vectors_at = record_at(MATRIX), record_at(VECTORS)


@part
def quantize(x: Any, token: int) -> None:
    """Write the vector of a token as whole numbers of 16 bits."""
    floats = as_f32(x.floats + 4 * token * x.stride)
    scales, totals = as_f32(x.scales + 4 * token * x.blocks), as_f32(x.totals + 4 * token * x.blocks)
    for block in range(x.blocks):
        first, second = load(floats, block * BLOCK), load(floats, block * BLOCK + LANES)
        most = peak(largest(magnitude(first), magnitude(second)))
        inverse = splat(MOST / most if most > 0 else np.float32(0))
        put(scales, block, most / MOST)
        at = x.quants + (token * x.blocks + block) * 2 * BLOCK
        whole = store_halves(at, mul(first, inverse)) + store_halves(at + LANES, mul(second, inverse))
        put_int(x.sums + 4 * (token * x.blocks + block), np.int32(whole))
        put(totals, block, np.float32(whole) * (most / MOST))


def weights_of(values: Any, block: int, quad: int) -> Any:
    """64 unsigned weights: four columns, the quad-th of a block, of a tile's sixteen rows."""


@overload(weights_of, inline="always")
def _weights_of(values: Any, block: int, quad: int) -> Any:
    def of_bytes(values: Any, block: int, quad: int) -> Any:
        return load_bytes(address(values) + block * (BLOCK * LANES) + quad * 64)

    def of_nibbles(values: Any, block: int, quad: int) -> Any:
        pair = load_bytes(address(values) + block * (BLOCK * LANES // 2) + quad % 4 * 64)
        return high_nibbles(pair) if quad >= 4 else low_nibbles(pair)

    return {bytes_at: of_bytes, nibbles_at: of_nibbles}[values]


def fetch(values: Any, block: int) -> None:
    """Ask for a block of weights ahead of time."""


@overload(fetch, inline="always")
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
def two_tiles(values: Any, scales: Any, minimums: Any, m: Any, tile: int, x: Any, token: int, out: Any) -> None:
    """Two tiles' rows times two vectors."""
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
            ax, bx, ay, by = dot_blocks(
                values, a + block, b + block, quants + block * (2 * BLOCK), quants + other * (2 * BLOCK),
                times(offset, load_int(x_sums + 4 * block)), times(offset, load_int(x_sums + 4 * other)),
            )  # fmt: skip
            x_scale, y_scale = splat(number(x_scales, block)), splat(number(x_scales, other))
            y_ax, y_bx = plus(y_ax, ax, scale_a, x_scale), plus(y_bx, bx, scale_b, x_scale)
            y_ay, y_by = plus(y_ay, ay, scale_a, y_scale), plus(y_by, by, scale_b, y_scale)
        group += 1
    if m.minimums:
        y_ax, y_bx = plus_minimums(y_ax, minimums, m, tile, x, token), plus_minimums(y_bx, minimums, m, tile + 1, x, token)
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
            for block in range(2 * x.blocks):
                fetch(values, (tile + 2) * x.blocks + block)
            while token + 2 <= n:
                two_tiles(values, scales, minimums, m, tile, x, token, out)
                token += 2
        while token < n:
            one_tile(values, scales, minimums, m, tile, x, token, out)
            if together == 2:
                one_tile(values, scales, minimums, m, tile + 1, x, token, out)
            token += 1
        tile += together


@part
def finish(matrix: Any, row: int, y: Any, out: Any, token: int) -> None:
    """Write, or add, one row's result for one token."""
    to, stride, adding = out
    result = total(y)
    if matrix.bias:
        result += number(as_f32(matrix.bias), row)
    place = as_f32(to + 4 * token * stride)
    put(place, row, result + number(place, row) if adding else result)


@part
def rows(weights: Any, matrix: Any, units: Any, x: Any, n: int, out: Any) -> None:
    """Some rows of floats, sixteen a unit, times all vectors."""
    columns = matrix.columns
    whole, left = columns // LANES * LANES, columns % LANES
    last = min(units[1] * LANES, matrix.rows)
    row = units[0] * LANES
    while row < last:
        r0, r1, r2, r3 = row * columns, (row + 1) * columns, (row + 2) * columns, (row + 3) * columns
        if row + 4 <= last:
            for token in range(n):
                vector = as_f32(x.floats + 4 * token * x.stride)
                y0 = y1 = y2 = y3 = splat(np.float32(0))
                for i in range(0, whole, LANES):
                    z = load(vector, i)
                    y0 = fma(load(weights, r0 + i), z, y0)
                    y1 = fma(load(weights, r1 + i), z, y1)
                    y2 = fma(load(weights, r2 + i), z, y2)
                    y3 = fma(load(weights, r3 + i), z, y3)
                if left:
                    z = load(vector, whole)
                    y0 = fma(load_first(weights, r0 + whole, left), z, y0)
                    y1 = fma(load_first(weights, r1 + whole, left), z, y1)
                    y2 = fma(load_first(weights, r2 + whole, left), z, y2)
                    y3 = fma(load_first(weights, r3 + whole, left), z, y3)
                finish(matrix, row, y0, out, token)
                finish(matrix, row + 1, y1, out, token)
                finish(matrix, row + 2, y2, out, token)
                finish(matrix, row + 3, y3, out, token)
            row += 4
        else:
            for token in range(n):
                vector = as_f32(x.floats + 4 * token * x.stride)
                y = splat(np.float32(0))
                for i in range(0, whole, LANES):
                    y = fma(load(weights, r0 + i), load(vector, i), y)
                if left:
                    y = fma(load_first(weights, r0 + whole, left), load(vector, whole), y)
                finish(matrix, row, y, out, token)
            row += 1


def value_of(values: Any, block: int, quad: int, place: int) -> int:
    """One unsigned weight."""


@overload(value_of, inline="always")
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


# The kernels. A product takes addresses of a MATRIX, of VECTORS and of fp32 (n, stride) to write or add to, and which
# units of sixteen rows are asked for; a look-up the address of a MATRIX, a row, and where to write it.


def multiply_f32(matrix: int, x: int, n: int, out: int, stride: int, adding: int, first: int, last: int) -> None:
    """Rows of fp32."""
    m = matrix_at(matrix)
    rows(as_f32(m.values), m, (first, last), vectors_at(x), n, (out, stride, adding != 0))


def multiply_f16(matrix: int, x: int, n: int, out: int, stride: int, adding: int, first: int, last: int) -> None:
    """Rows of fp16."""
    m = matrix_at(matrix)
    rows(as_f16(m.values), m, (first, last), vectors_at(x), n, (out, stride, adding != 0))


def multiply_bf16(matrix: int, x: int, n: int, out: int, stride: int, adding: int, first: int, last: int) -> None:
    """Rows of bf16."""
    m = matrix_at(matrix)
    rows(as_bf16(m.values), m, (first, last), vectors_at(x), n, (out, stride, adding != 0))


def multiply_bytes_f16(matrix: int, x: int, n: int, out: int, stride: int, adding: int, first: int, last: int) -> None:
    """Tiles of bytes, scales fp16."""
    m = matrix_at(matrix)
    lows = as_f16(m.minimums if m.minimums else m.scales)
    tiles(as_bytes(m.values), as_f16(m.scales), lows, m, (first, last), vectors_at(x), n, (out, stride, adding != 0))


def multiply_bytes_f32(matrix: int, x: int, n: int, out: int, stride: int, adding: int, first: int, last: int) -> None:
    """Tiles of bytes, scales fp32."""
    m = matrix_at(matrix)
    lows = as_f32(m.minimums if m.minimums else m.scales)
    tiles(as_bytes(m.values), as_f32(m.scales), lows, m, (first, last), vectors_at(x), n, (out, stride, adding != 0))


def multiply_nibbles_f16(
    matrix: int, x: int, n: int, out: int, stride: int, adding: int, first: int, last: int
) -> None:
    """Tiles of nibbles, scales fp16."""
    m = matrix_at(matrix)
    lows = as_f16(m.minimums if m.minimums else m.scales)
    tiles(as_nibbles(m.values), as_f16(m.scales), lows, m, (first, last), vectors_at(x), n, (out, stride, adding != 0))


def multiply_nibbles_f32(
    matrix: int, x: int, n: int, out: int, stride: int, adding: int, first: int, last: int
) -> None:
    """Tiles of nibbles, scales fp32."""
    m = matrix_at(matrix)
    lows = as_f32(m.minimums if m.minimums else m.scales)
    tiles(as_nibbles(m.values), as_f32(m.scales), lows, m, (first, last), vectors_at(x), n, (out, stride, adding != 0))


def look_up_f32(matrix: int, row: int, out: int) -> None:
    """A row of fp32."""
    m = matrix_at(matrix)
    for column in range(m.columns):
        put(as_f32(out), column, number(as_f32(m.values), row * m.columns + column))


def look_up_f16(matrix: int, row: int, out: int) -> None:
    """A row of fp16."""
    m = matrix_at(matrix)
    for column in range(m.columns):
        put(as_f32(out), column, number(as_f16(m.values), row * m.columns + column))


def look_up_bf16(matrix: int, row: int, out: int) -> None:
    """A row of bf16."""
    m = matrix_at(matrix)
    for column in range(m.columns):
        put(as_f32(out), column, number(as_bf16(m.values), row * m.columns + column))


def look_up_bytes_f16(matrix: int, row: int, out: int) -> None:
    """A row of tiles of bytes, scales fp16."""
    m = matrix_at(matrix)
    lows = as_f16(m.minimums if m.minimums else m.scales)
    row_of_tiles(as_bytes(m.values), as_f16(m.scales), lows, m, row, out)


def look_up_bytes_f32(matrix: int, row: int, out: int) -> None:
    """A row of tiles of bytes, scales fp32."""
    m = matrix_at(matrix)
    lows = as_f32(m.minimums if m.minimums else m.scales)
    row_of_tiles(as_bytes(m.values), as_f32(m.scales), lows, m, row, out)


def look_up_nibbles_f16(matrix: int, row: int, out: int) -> None:
    """A row of tiles of nibbles, scales fp16."""
    m = matrix_at(matrix)
    lows = as_f16(m.minimums if m.minimums else m.scales)
    row_of_tiles(as_nibbles(m.values), as_f16(m.scales), lows, m, row, out)


def look_up_nibbles_f32(matrix: int, row: int, out: int) -> None:
    """A row of tiles of nibbles, scales fp32."""
    m = matrix_at(matrix)
    lows = as_f32(m.minimums if m.minimums else m.scales)
    row_of_tiles(as_nibbles(m.values), as_f32(m.scales), lows, m, row, out)


KERNELS = {
    "f32": (multiply_f32, look_up_f32),
    "f16": (multiply_f16, look_up_f16),
    "bf16": (multiply_bf16, look_up_bf16),
    "bytes f16": (multiply_bytes_f16, look_up_bytes_f16),
    "bytes f32": (multiply_bytes_f32, look_up_bytes_f32),
    "nibbles f16": (multiply_nibbles_f16, look_up_nibbles_f16),
    "nibbles f32": (multiply_nibbles_f32, look_up_nibbles_f32),
}
"""By how a matrix is stored: its product and its look-up."""
