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

from shearling.engine.compiling import part
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
    load_word,
    low_nibbles,
    magnitude,
    mul,
    nibbles_at,
    number,
    peak,
    put,
    record_at,
    shifted_sum,
    splat,
    splat_int,
    store,
    store_halves,
    to_floats,
    total,
)

BLOCK = 32
TOGETHER = 4
"""Tokens that a loaded weight serves at once; buffers of vectors have room for a multiple of them."""

MOST = np.float32(127 * 257)
"""The largest whole number of a vector: 256 · 127 + 127."""

MATRIX = np.dtype([(name, np.int64) for name in (
    "multiply", "look_up", "rows", "columns", "values", "scales", "minimums", "blocks_per_scale", "offset", "bias",
)])  # fmt: skip
"""A matrix that is ready to be multiplied with: the addresses of its kernels, its sizes, where its numbers lie.

Quantized: w = scale · (value − offset) + minimum with unsigned values. `minimums` and `bias` are 0 where there are
none. Values lie as (tiles, blocks, 8, 16, 4) bytes, or with the quads 4 to 7 of a block in the upper nibbles of 0 to
3; scales and minimums, fp16 or fp32, as (tiles, blocks / blocks_per_scale, 16).
"""

VECTORS = np.dtype([(name, np.int64) for name in ("stride", "floats", "blocks", "quants", "scales", "sums")])
"""Addresses of the vectors of several tokens.

Floats: fp32 (n, stride). Quantized: bytes (n, blocks, 2, 32), the high ones before the low ones; scales and the sums
of a block's whole numbers, both fp32 (n, blocks). What lies behind the end of a vector is zero.
"""

matrix_at, vectors_at = record_at(MATRIX), record_at(VECTORS)


@part
def quantize(x: Any, token: int) -> None:
    """Write the vector of a token as whole numbers of 16 bits."""
    floats = as_f32(x.floats + 4 * token * x.stride)
    scales, sums = as_f32(x.scales + 4 * token * x.blocks), as_f32(x.sums + 4 * token * x.blocks)
    for block in range(x.blocks):
        first, second = load(floats, block * BLOCK), load(floats, block * BLOCK + LANES)
        most = peak(largest(magnitude(first), magnitude(second)))
        inverse = splat(MOST / most if most > 0 else np.float32(0))
        put(scales, block, most / MOST)
        at = x.quants + (token * x.blocks + block) * 2 * BLOCK
        whole = store_halves(at, mul(first, inverse)) + store_halves(at + LANES, mul(second, inverse))
        put(sums, block, np.float32(whole))


def dot_block(values: Any, block: int, x: int, start: Any) -> Any:
    """Sixteen rows' sums over a block of unsigned weights times a vector's whole numbers, and `start`."""


@overload(dot_block, inline="always")
def _dot_block(values: Any, block: int, x: int, start: Any) -> Any:
    def of_bytes(values: Any, block: int, x: int, start: Any) -> Any:
        at = address(values) + block * (BLOCK * LANES)
        high, low = splat_int(np.int32(0)), start
        for quad in range(8):
            weights = load_bytes(at + quad * 64)
            high = dot4(high, weights, load_word(x + quad * 4))
            low = dot4(low, weights, load_word(x + BLOCK + quad * 4))
        return shifted_sum(high, low)

    def of_nibbles(values: Any, block: int, x: int, start: Any) -> Any:
        at = address(values) + block * (BLOCK * LANES // 2)
        high, low = splat_int(np.int32(0)), start
        for quad in range(4):
            pair = load_bytes(at + quad * 64)
            weights = low_nibbles(pair)
            high = dot4(high, weights, load_word(x + quad * 4))
            low = dot4(low, weights, load_word(x + BLOCK + quad * 4))
            weights = high_nibbles(pair)
            high = dot4(high, weights, load_word(x + 16 + quad * 4))
            low = dot4(low, weights, load_word(x + BLOCK + 16 + quad * 4))
        return shifted_sum(high, low)

    return {bytes_at: of_bytes, nibbles_at: of_nibbles}[values]


@part
def emit(matrix: Any, row: int, y: Any, out: int, adding: bool) -> None:
    """Write, or add, sixteen rows' results for one token."""
    if matrix.bias:
        y = add(y, load(as_f32(matrix.bias), row))
    to = as_f32(out)
    store(to, row, add(y, load(to, row)) if adding else y)


@part
def block_of(tile: Any, block: int, scale: Any, minimum: Any, x: Any, token: int, y: Any) -> Any:
    """`y`, and what a block of a tile's columns adds to it for one token."""
    values, first_block, offset, has_minimum = tile
    at = token * x.blocks + block
    x_scale, x_sum = number(as_f32(x.scales), at), number(as_f32(x.sums), at)
    start = splat_int(np.int32(-offset * np.int64(x_sum)))
    whole = dot_block(values, first_block + block, x.quants + at * (2 * BLOCK), start)
    y = fma(to_floats(whole), mul(scale, splat(x_scale)), y)
    return fma(minimum, splat(x_scale * x_sum), y) if has_minimum else y


@part
def tiles(values: Any, scales: Any, minimums: Any, matrix: Any, units: Any, x: Any, n: int, out: Any) -> None:
    """The rows of some tiles times all vectors."""
    to, stride, adding = out
    groups, each = x.blocks // matrix.blocks_per_scale, matrix.blocks_per_scale
    for number_of_tile in range(units[0], units[1]):
        tile = (values, number_of_tile * x.blocks, matrix.offset, matrix.minimums != 0)
        row, first = number_of_tile * LANES, number_of_tile * groups
        token = 0
        while token + TOGETHER <= n:
            y0 = y1 = y2 = y3 = splat(np.float32(0))
            for group in range(groups):
                scale, minimum = load(scales, (first + group) * LANES), load(minimums, (first + group) * LANES)
                for block in range(group * each, (group + 1) * each):
                    y0 = block_of(tile, block, scale, minimum, x, token, y0)
                    y1 = block_of(tile, block, scale, minimum, x, token + 1, y1)
                    y2 = block_of(tile, block, scale, minimum, x, token + 2, y2)
                    y3 = block_of(tile, block, scale, minimum, x, token + 3, y3)
            emit(matrix, row, y0, to + 4 * token * stride, adding)
            emit(matrix, row, y1, to + 4 * (token + 1) * stride, adding)
            emit(matrix, row, y2, to + 4 * (token + 2) * stride, adding)
            emit(matrix, row, y3, to + 4 * (token + 3) * stride, adding)
            token += TOGETHER
        while token < n:
            y = splat(np.float32(0))
            for group in range(groups):
                scale, minimum = load(scales, (first + group) * LANES), load(minimums, (first + group) * LANES)
                for block in range(group * each, (group + 1) * each):
                    y = block_of(tile, block, scale, minimum, x, token, y)
            emit(matrix, row, y, to + 4 * token * stride, adding)
            token += 1


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


@part
def dequantize(scales: Any, minimums: Any, matrix: Any, row: int, column: int, value: int) -> Any:
    """What an unsigned value stands for."""
    blocks = matrix.columns // BLOCK
    group = row // LANES * (blocks // matrix.blocks_per_scale) + column // BLOCK // matrix.blocks_per_scale
    place = group * LANES + row % LANES
    result = number(scales, place) * np.float32(value - matrix.offset)
    return result + number(minimums, place) if matrix.minimums else result


@part
def nibble_at(m: Any, row: int, column: int) -> int:
    """A value of four bits."""
    block, quad = row // LANES * (m.columns // BLOCK) + column // BLOCK, column % BLOCK // 4
    pair = byte(m.values + (block * 4 + quad % 4) * 64 + row % LANES * 4 + column % 4)
    return pair >> 4 if quad >= 4 else pair & 15


@part
def byte_at(m: Any, row: int, column: int) -> int:
    """A value of eight bits."""
    block, quad = row // LANES * (m.columns // BLOCK) + column // BLOCK, column % BLOCK // 4
    return byte(m.values + (block * 8 + quad) * 64 + row % LANES * 4 + column % 4)


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
    for column in range(m.columns):
        value = byte_at(m, row, column)
        put(as_f32(out), column, dequantize(as_f16(m.scales), lows, m, row, column, value))


def look_up_bytes_f32(matrix: int, row: int, out: int) -> None:
    """A row of tiles of bytes, scales fp32."""
    m = matrix_at(matrix)
    lows = as_f32(m.minimums if m.minimums else m.scales)
    for column in range(m.columns):
        value = byte_at(m, row, column)
        put(as_f32(out), column, dequantize(as_f32(m.scales), lows, m, row, column, value))


def look_up_nibbles_f16(matrix: int, row: int, out: int) -> None:
    """A row of tiles of nibbles, scales fp16."""
    m = matrix_at(matrix)
    lows = as_f16(m.minimums if m.minimums else m.scales)
    for column in range(m.columns):
        value = nibble_at(m, row, column)
        put(as_f32(out), column, dequantize(as_f16(m.scales), lows, m, row, column, value))


def look_up_nibbles_f32(matrix: int, row: int, out: int) -> None:
    """A row of tiles of nibbles, scales fp32."""
    m = matrix_at(matrix)
    lows = as_f32(m.minimums if m.minimums else m.scales)
    for column in range(m.columns):
        value = nibble_at(m, row, column)
        put(as_f32(out), column, dequantize(as_f32(m.scales), lows, m, row, column, value))


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
