"""Products with rows of floats, as they lie in files."""

from typing import Any

import numpy as np

from shearling.engine.kernels.arithmetic import fma, splat, total
from shearling.engine.kernels.compiling import part
from shearling.engine.kernels.memory import as_f32, load, load_first, number, put
from shearling.engine.kernels.records import matrix_at, vectors_at
from shearling.engine.kernels.vectors import LANES


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
