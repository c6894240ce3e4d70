"""Products with rows of floats, as they lie in files."""

from typing import Any

import numpy as np

from shearling.engine.kernels.arithmetic import fma, splat, total
from shearling.engine.kernels.compiling import inlined, part
from shearling.engine.kernels.memory import as_f32, fetch_at, load, load_first, number, put
from shearling.engine.kernels.records import matrix_at, vectors_at
from shearling.engine.kernels.vectors import LANES

ROWS_AHEAD = 8
"""Rows by which weights are asked for before they are needed."""


@part
def finish(matrix: Any, row: int, y: Any, out: Any, token: int) -> None:
    """Write, or add, one row's result for one token."""
    to, stride, adding = out
    result = total(y)
    if matrix.bias:
        result += number(as_f32(matrix.bias), row)
    place = as_f32(to + 4 * token * stride)
    put(place, row, result + number(place, row) if adding else result)


@inlined
def plus_four(y: Any, weights: Any, at: Any, i: int, z: Any) -> Any:
    """Four rows' sums, and sixteen products more of each."""
    y0, y1, y2, y3 = y
    r0, r1, r2, r3 = at
    y0, y1 = fma(load(weights, r0 + i), z, y0), fma(load(weights, r1 + i), z, y1)
    return y0, y1, fma(load(weights, r2 + i), z, y2), fma(load(weights, r3 + i), z, y3)


@inlined
def plus_first_of_four(y: Any, weights: Any, at: Any, i: int, left: int, z: Any) -> Any:
    """The same where only the first `left` of sixteen are the rows'."""
    y0, y1, y2, y3 = y
    r0, r1, r2, r3 = at
    y0 = fma(load_first(weights, r0 + i, left), z, y0)
    y1 = fma(load_first(weights, r1 + i, left), z, y1)
    y2 = fma(load_first(weights, r2 + i, left), z, y2)
    return y0, y1, y2, fma(load_first(weights, r3 + i, left), z, y3)


@inlined
def finish_four(matrix: Any, row: int, y: Any, out: Any, token: int) -> None:
    """`finish` of four rows."""
    y0, y1, y2, y3 = y
    finish(matrix, row, y0, out, token)
    finish(matrix, row + 1, y1, out, token)
    finish(matrix, row + 2, y2, out, token)
    finish(matrix, row + 3, y3, out, token)


@part
def four_by_one(weights: Any, matrix: Any, row: int, x: Any, token: int, out: Any) -> None:
    """Four rows times one vector; rows that follow are fetched meanwhile."""
    columns = matrix.columns
    whole, left = columns // LANES * LANES, columns % LANES
    at = row * columns, (row + 1) * columns, (row + 2) * columns, (row + 3) * columns
    vector, zero = as_f32(x.floats + 4 * token * x.stride), splat(np.float32(0))
    y = zero, zero, zero, zero
    for i in range(0, whole, LANES):
        for line in range(0, 4 * LANES, LANES):
            fetch_at(weights, (row + ROWS_AHEAD) * columns + 4 * i + line)
        y = plus_four(y, weights, at, i, load(vector, i))
    if left:
        y = plus_first_of_four(y, weights, at, whole, left, load(vector, whole))
    finish_four(matrix, row, y, out, token)


@part
def four_by_two(weights: Any, matrix: Any, row: int, x: Any, token: int, out: Any) -> None:
    """Four rows times two vectors."""
    columns = matrix.columns
    whole, left = columns // LANES * LANES, columns % LANES
    at = row * columns, (row + 1) * columns, (row + 2) * columns, (row + 3) * columns
    first, second = as_f32(x.floats + 4 * token * x.stride), as_f32(x.floats + 4 * (token + 1) * x.stride)
    zero = splat(np.float32(0))
    y = z = zero, zero, zero, zero
    for i in range(0, whole, LANES):
        y, z = plus_four(y, weights, at, i, load(first, i)), plus_four(z, weights, at, i, load(second, i))
    if left:
        y = plus_first_of_four(y, weights, at, whole, left, load(first, whole))
        z = plus_first_of_four(z, weights, at, whole, left, load(second, whole))
    finish_four(matrix, row, y, out, token)
    finish_four(matrix, row, z, out, token + 1)


@part
def one_by_one(weights: Any, matrix: Any, row: int, x: Any, token: int, out: Any) -> None:
    """One row times one vector."""
    columns = matrix.columns
    whole, left = columns // LANES * LANES, columns % LANES
    vector, y = as_f32(x.floats + 4 * token * x.stride), splat(np.float32(0))
    for i in range(0, whole, LANES):
        y = fma(load(weights, row * columns + i), load(vector, i), y)
    if left:
        y = fma(load_first(weights, row * columns + whole, left), load(vector, whole), y)
    finish(matrix, row, y, out, token)


@part
def rows(weights: Any, matrix: Any, units: Any, x: Any, n: int, out: Any) -> None:
    """Some rows of floats, sixteen a unit, times all vectors."""
    row, last = units[0] * LANES, min(units[1] * LANES, matrix.rows)
    while row + 4 <= last:
        for token in range(0, n - 1, 2):
            four_by_two(weights, matrix, row, x, token, out)
        if n % 2:
            four_by_one(weights, matrix, row, x, n - 1, out)
        row += 4
    while row < last:
        for token in range(n):
            one_by_one(weights, matrix, row, x, token, out)
        row += 1


def multiply_rows(
    values: Any, _: int, matrix: int, x: int, n: int, out: int, stride: int, adding: int, first: int, last: int
) -> None:
    """Rows of floats."""
    rows(values, matrix_at(matrix), (first, last), vectors_at(x), n, (out, stride, adding != 0))


def look_up_row(values: Any, _: int, matrix: int, row: int, out: int) -> None:
    """A row of floats."""
    m = matrix_at(matrix)
    for column in range(m.columns):
        put(as_f32(out), column, number(values, row * m.columns + column))
