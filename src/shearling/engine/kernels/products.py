"""Matrix products: weights, in whatever bits they come, with the vectors of one or several tokens.

Floats lie as in their files, row by row. Quantized weights lie in tiles of sixteen rows, so that one `dot4` takes four
columns of a tile with the same four numbers of a vector. Vectors meet them as whole numbers of 16 bits, with a scale
for each block of 32, held as two bytes: their rounding is far below that of the weights. Sums within a block are exact
and blocks are added in order, whatever the number of tokens and threads: what comes out for a token does not depend on
what is computed beside it.
"""

from typing import Any

import numpy as np

from shearling.engine.kernels.arithmetic import largest, magnitude, mul, peak, splat
from shearling.engine.kernels.compiling import part
from shearling.engine.kernels.memory import as_f32, load, put, put_int, store_halves
from shearling.engine.kernels.records import BLOCK, MOST
from shearling.engine.kernels.rows import (
    look_up_bf16,
    look_up_f16,
    look_up_f32,
    multiply_bf16,
    multiply_f16,
    multiply_f32,
)
from shearling.engine.kernels.tiles import (
    look_up_bytes_f16,
    look_up_bytes_f32,
    look_up_nibbles_f16,
    look_up_nibbles_f32,
    multiply_bytes_f16,
    multiply_bytes_f32,
    multiply_nibbles_f16,
    multiply_nibbles_f32,
)
from shearling.engine.kernels.vectors import LANES


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


# The kernels. A product takes addresses of a MATRIX, of VECTORS and of fp32 (n, stride) to write or add to, and which
# units of sixteen rows are asked for; a look-up the address of a MATRIX, a row, and where to write it.

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
