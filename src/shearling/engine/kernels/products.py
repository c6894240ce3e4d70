"""Matrix products: weights, in whatever bits they come, with the vectors of one or several tokens.

Floats lie as in their files, row by row. Quantized weights lie in tiles of sixteen rows, so that one `dot4` takes four
columns of a tile with the same four numbers of a vector. Vectors meet them as whole numbers of 16 bits, with a scale
for each block of 32, held as two bytes: their rounding is far below that of the weights. Sums within a block are exact
and blocks are added in order, whatever the number of tokens and threads: what comes out for a token does not depend on
what is computed beside it.
"""

from typing import Any

import numpy as np
from numba import int64

from shearling.engine.kernels.arithmetic import largest, magnitude, mul, peak, splat
from shearling.engine.kernels.compiling import part
from shearling.engine.kernels.memory import as_f32, load, put, put_int, store_halves
from shearling.engine.kernels.records import BLOCK, MOST
from shearling.engine.kernels.rows import look_up_row, multiply_rows
from shearling.engine.kernels.tiles import look_up_in_tiles, multiply_tiles
from shearling.engine.kernels.vectors import LANES, bf16_at, bytes_at, f16_at, f32_at, nibbles_at


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


KERNELS: dict[str, tuple[Any, Any, Any, Any]] = {
    "f32": (multiply_rows, look_up_row, f32_at, int64),
    "f16": (multiply_rows, look_up_row, f16_at, int64),
    "bf16": (multiply_rows, look_up_row, bf16_at, int64),
    "bytes f16": (multiply_tiles, look_up_in_tiles, bytes_at, f16_at),
    "bytes f32": (multiply_tiles, look_up_in_tiles, bytes_at, f32_at),
    "nibbles f16": (multiply_tiles, look_up_in_tiles, nibbles_at, f16_at),
    "nibbles f32": (multiply_tiles, look_up_in_tiles, nibbles_at, f32_at),
}
"""By how a matrix is stored: its product, its look-up, and what they take its values and scales for.

A product takes the addresses of values, of scales (0 for floats), of the MATRIX, of VECTORS, how many of these, the
address and stride of fp32 to write or, with `adding`, add to, and from which to which unit of sixteen rows. A look-up
takes the addresses of values, of scales and of the MATRIX, the row, and where to write it.
"""
