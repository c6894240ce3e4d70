"""Arithmetic on vectors."""

from typing import Any

from llvmlite import ir
from numba import types

from shearling.engine.kernels.vectors import (
    BYTES,
    FLOAT,
    FLOATS,
    INTS,
    LANES,
    WORD,
    bytes_,
    call_llvm,
    constant,
    features,
    floats,
    ints,
    operation,
    spread,
    undefined,
)


@operation(floats, types.float32)
def splat(builder: Any, value: Any) -> Any:
    """One number in all lanes."""
    return spread(builder, value, FLOATS)


@operation(ints, types.int32)
def splat_int(builder: Any, value: Any) -> Any:
    """One whole number in all lanes."""
    return spread(builder, value, INTS)


def fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return call_llvm(builder, f"llvm.fma.v{LANES}f32", FLOATS, [x, y, z])


@operation(floats, floats, floats, floats)
def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """x · y + z, rounded once."""
    return fused(builder, x, y, z)


@operation(floats, floats, floats)
def add(builder: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return builder.fadd(x, y)


@operation(floats, floats, floats)
def sub(builder: Any, x: Any, y: Any) -> Any:
    """x − y."""
    return builder.fsub(x, y)


@operation(floats, floats, floats)
def mul(builder: Any, x: Any, y: Any) -> Any:
    """x · y."""
    return builder.fmul(x, y)


@operation(floats, floats, floats)
def div(builder: Any, x: Any, y: Any) -> Any:
    """x / y."""
    return builder.fdiv(x, y)


@operation(floats, floats, floats)
def largest(builder: Any, x: Any, y: Any) -> Any:
    """The larger of x and y, NaN where one is."""
    return call_llvm(builder, f"llvm.maximum.v{LANES}f32", FLOATS, [x, y])


@operation(floats, floats)
def magnitude(builder: Any, x: Any) -> Any:
    """|x|."""
    return call_llvm(builder, f"llvm.fabs.v{LANES}f32", FLOATS, [x])


@operation(types.float32, floats)
def total(builder: Any, x: Any) -> Any:
    """The sum of the lanes, pair by pair."""
    for half in (8, 4, 2, 1):
        order = ir.Constant(ir.VectorType(WORD, LANES), [(lane + half) % LANES for lane in range(LANES)])
        x = builder.fadd(x, builder.shuffle_vector(x, undefined(FLOATS), order))
    return builder.extract_element(x, ir.Constant(WORD, 0))


@operation(types.float32, floats)
def peak(builder: Any, x: Any) -> Any:
    """The largest of the lanes."""
    return call_llvm(builder, f"llvm.vector.reduce.fmaximum.v{LANES}f32", FLOAT, [x])


@operation(floats, ints)
def to_floats(builder: Any, x: Any) -> Any:
    """Whole numbers as fp32."""
    return builder.sitofp(x, FLOATS)


@operation(ints, ints, ints)
def times(builder: Any, x: Any, y: Any) -> Any:
    """x · y of whole numbers."""
    return builder.mul(x, y)


@operation(ints, ints, ints)
def shifted_sum(builder: Any, high: Any, low: Any) -> Any:
    """256 · high + low."""
    return builder.add(builder.shl(high, constant(INTS, 8)), low)


@operation(bytes_, bytes_)
def low_nibbles(builder: Any, x: Any) -> Any:
    """The lower half of each byte."""
    return builder.and_(x, constant(BYTES, 15))


@operation(bytes_, bytes_)
def high_nibbles(builder: Any, x: Any) -> Any:
    """The upper half of each byte."""
    words = builder.lshr(builder.bitcast(x, INTS), constant(INTS, 4))
    return builder.and_(builder.bitcast(words, BYTES), constant(BYTES, 15))


@operation(floats, floats)
def exp(builder: Any, x: Any) -> Any:
    """e^x to 2 units in the last place; 0 below −87.3, where the result would not be normal.

    2^n · e^r, with n whole and |r| ≤ ln 2 / 2, and e^r by its Taylor polynomial of degree 7.
    """
    kept = call_llvm(builder, f"llvm.maxnum.v{LANES}f32", FLOATS, [x, constant(FLOATS, -87.3)])
    kept = call_llvm(builder, f"llvm.minnum.v{LANES}f32", FLOATS, [kept, constant(FLOATS, 88.0)])
    n = call_llvm(builder, f"llvm.rint.v{LANES}f32", FLOATS, [builder.fmul(kept, constant(FLOATS, 1.4426950408889634))])
    # ln 2 in two pieces, the first short enough for n times it to be exact.
    r = fused(builder, n, constant(FLOATS, -0.693145751953125), kept)
    r = fused(builder, n, constant(FLOATS, -1.42860682030941723212e-6), r)
    power = constant(FLOATS, 1 / 5040)
    for factorial in (720, 120, 24, 6, 2, 1, 1):
        power = fused(builder, power, r, constant(FLOATS, 1 / factorial))
    exponent = builder.shl(builder.add(builder.fptosi(n, INTS), constant(INTS, 127)), constant(INTS, 23))
    scaled = builder.fmul(power, builder.bitcast(exponent, FLOATS))
    return builder.select(builder.fcmp_ordered("<", x, constant(FLOATS, -87.3)), constant(FLOATS, 0.0), scaled)


@operation(ints, ints, bytes_, bytes_)
def dot4(builder: Any, sums: Any, unsigned: Any, signed: Any) -> Any:
    """In each lane the sum, and four products of an unsigned and a signed byte; exact.

    One instruction where the processor has AVX-512 VNNI or AVX-VNNI, plain arithmetic elsewhere.
    """
    has = features().get
    if has("avx512vnni") and has("avx512f"):
        return call_llvm(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, [sums, unsigned, signed])
    if has("avxvnni"):
        return _in_halves(builder, sums, unsigned, signed)
    pairs = ir.VectorType(ir.IntType(16), 4 * LANES)
    products = builder.mul(builder.zext(unsigned, pairs), builder.sext(signed, pairs))
    for place in range(4):
        order = ir.Constant(ir.VectorType(WORD, LANES), [4 * lane + place for lane in range(LANES)])
        sums = builder.add(sums, builder.sext(builder.shuffle_vector(products, undefined(pairs), order), INTS))
    return sums


def _in_halves(builder: Any, sums: Any, unsigned: Any, signed: Any) -> Any:
    halves = []
    for half in range(2):
        words = ir.Constant(ir.VectorType(WORD, LANES // 2), [half * LANES // 2 + lane for lane in range(LANES // 2)])
        short = ir.VectorType(WORD, LANES // 2)
        parts = [builder.bitcast(x, INTS) for x in (sums, unsigned, signed)]
        parts = [builder.shuffle_vector(x, undefined(INTS), words) for x in parts]
        halves.append(call_llvm(builder, "llvm.x86.avx512.vpdpbusd.256", short, parts))
    order = ir.Constant(ir.VectorType(WORD, LANES), list(range(LANES)))
    return builder.shuffle_vector(*halves, order)
