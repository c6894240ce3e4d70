"""How matrices and vectors are described to kernels."""

import numpy as np

from shearling.engine.kernels.control import record_at

BLOCK = 32

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
sums of a block's whole numbers, int32, and these times the scale, fp32, all (n, blocks). What lies behind the end of a
vector is zero.
"""

matrix_at, vectors_at = record_at(MATRIX), record_at(VECTORS)
