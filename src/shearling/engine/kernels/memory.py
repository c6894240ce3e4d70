"""Numbers in memory.

An address is a pointer that knows what lies there: `load(p, i)` gives sixteen numbers from the i-th on as fp32,
whatever they are stored as.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from shearling.engine.kernels.vectors import (
    BYTE,
    BYTES,
    FLOAT,
    FLOATS,
    INTS,
    LANES,
    LONG,
    WORD,
    X86,
    Pointer,
    bf16_at,
    bytes_,
    call_llvm,
    constant,
    f16_at,
    f32_at,
    features,
    floats,
    i8_at,
    ints,
    operation,
    spread,
)


@operation(f32_at, types.int64)
def as_f32(builder: Any, address: Any) -> Any:
    """A number as the address of fp32."""
    return address


@intrinsic
def like(typing_context, pointer, address):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """A number as the address of what lies at a pointer, too."""
    return pointer(pointer, types.int64), lambda context, builder, signature, values: values[1]


@intrinsic
def address(typing_context, pointer):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """A pointer as a number."""
    return types.int64(pointer), lambda context, builder, signature, values: values[0]


def _widened(builder: Any, value: Any, kind: Pointer) -> Any:
    """Stored numbers, one or many, as fp32."""
    lanes = getattr(value.type, "count", None)
    target, word = (FLOAT, WORD) if lanes is None else (FLOATS, INTS)
    if kind is f32_at:
        return value
    if kind is f16_at:
        if features().get("f16c", not X86):
            return builder.fpext(value, target)
        return _from_half(builder, value, target, word)
    if kind is bf16_at:
        return builder.bitcast(builder.shl(builder.zext(value, word), constant(word, 16)), target)
    return builder.sitofp(value, target)


def _from_half(builder: Any, value: Any, target: Any, word: Any) -> Any:
    """fp16 as fp32 by arithmetic, for processors that have no instruction for it: LLVM would call a library."""
    short = ir.IntType(16) if word is WORD else ir.VectorType(ir.IntType(16), LANES)
    bits = builder.zext(builder.bitcast(value, short), word)
    rest = builder.and_(bits, constant(word, 0x7FFF))
    # Exponent and fraction in their new places are 2^112 too small; an infinity or a NaN keeps its full exponent.
    scaled = builder.fmul(builder.bitcast(builder.shl(rest, constant(word, 13)), target), constant(target, 2.0**112))
    endless = builder.icmp_unsigned(">=", rest, constant(word, 0x7C00))
    full = builder.or_(builder.bitcast(scaled, word), constant(word, 0x7F800000))
    magnitude = builder.select(endless, full, builder.bitcast(scaled, word))
    sign = builder.shl(builder.and_(bits, constant(word, 0x8000)), constant(word, 16))
    return builder.bitcast(builder.or_(magnitude, sign), target)


def place_of(builder: Any, address: Any, index: Any, kind: Pointer, lanes: int | None) -> Any:
    offset = builder.mul(index, ir.Constant(LONG, size_of(kind)))
    element = kind.element if lanes is None else ir.VectorType(kind.element, lanes)
    return builder.inttoptr(builder.add(address, offset), element.as_pointer())


def size_of(kind: Pointer) -> int:
    return {f32_at: 4, f16_at: 2, bf16_at: 2, i8_at: 1}[kind]


def _loading(lanes: int | None) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0]
        address, index = values
        stored = builder.load(place_of(builder, address, index, kind, lanes), align=size_of(kind))
        return _widened(builder, stored, kind)

    return generate


@intrinsic
def load(typing_context, pointer, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Sixteen numbers from the index-th on, as fp32; they need no alignment."""
    return floats(pointer, types.int64), _loading(LANES)


@intrinsic
def load_first(typing_context, pointer, index, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """As `load`, the first `count` of sixteen numbers and zeros; nothing behind those is touched."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind, lanes = signature.args[0], ir.VectorType(signature.args[0].element, LANES)
        address, index, count = values
        numbers = ir.Constant(ir.VectorType(LONG, LANES), list(range(LANES)))
        mask = builder.icmp_signed("<", numbers, spread(builder, count, numbers.type))
        where = place_of(builder, address, index, kind, LANES)
        element = {f32_at: "f32", f16_at: "f16", bf16_at: "i16", i8_at: "i8"}[kind]
        arguments = [where, ir.Constant(WORD, size_of(kind)), mask, constant(lanes, 0)]
        return _widened(builder, call_llvm(builder, f"llvm.masked.load.v{LANES}{element}.p0", lanes, arguments), kind)

    return floats(pointer, types.int64, types.int64), generate


@intrinsic
def number(typing_context, pointer, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The index-th number, as fp32."""
    return types.float32(pointer, types.int64), _loading(None)


@intrinsic
def put(typing_context, pointer, index, value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Store one number as fp32, bf16 or int8, rounded to nearest, ties to even."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0]
        address, index, value = values
        where = place_of(builder, address, index, kind, None)
        builder.store(_narrowed(builder, value, kind), where, align=size_of(kind))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, types.float32), generate


def _narrowed(builder: Any, value: Any, kind: Pointer) -> Any:
    if kind is f32_at:
        return value
    if kind is i8_at:
        return builder.trunc(builder.fptosi(call_llvm(builder, "llvm.rint.f32", FLOAT, [value]), WORD), BYTE)
    bits = builder.bitcast(value, WORD)
    odd = builder.and_(builder.lshr(bits, ir.Constant(WORD, 16)), ir.Constant(WORD, 1))
    rounded = builder.add(builder.add(bits, ir.Constant(WORD, 0x7FFF)), odd)
    return builder.trunc(builder.lshr(rounded, ir.Constant(WORD, 16)), ir.IntType(16))


@operation(types.void, f32_at, types.int64, floats)
def store(builder: Any, address: Any, index: Any, value: Any) -> Any:
    """Store sixteen numbers from the index-th on."""
    builder.store(value, place_of(builder, address, index, f32_at, LANES), align=4)


@operation(bytes_, types.int64)
def load_bytes(builder: Any, address: Any) -> Any:
    """64 bytes."""
    return builder.load(builder.inttoptr(address, BYTES.as_pointer()), align=1)


@operation(types.int64, types.int64)
def byte(builder: Any, address: Any) -> Any:
    """One unsigned byte."""
    return builder.zext(builder.load(builder.inttoptr(address, BYTE.as_pointer())), LONG)


@operation(bytes_, types.int64)
def load_word(builder: Any, address: Any) -> Any:
    """Four bytes, repeated sixteen times."""
    word = builder.load(builder.inttoptr(address, WORD.as_pointer()), align=1)
    return builder.bitcast(spread(builder, word, INTS), BYTES)


@operation(ints, types.int64)
def load_int(builder: Any, address: Any) -> Any:
    """One whole number of 32 bits, in all lanes."""
    return spread(builder, builder.load(builder.inttoptr(address, WORD.as_pointer()), align=4), INTS)


@operation(types.void, types.int64, types.int32)
def put_int(builder: Any, address: Any, value: Any) -> Any:
    """Store one whole number of 32 bits."""
    builder.store(value, builder.inttoptr(address, WORD.as_pointer()), align=4)


@operation(types.int32, types.int64, floats)
def store_halves(builder: Any, address: Any, x: Any) -> Any:
    """Round sixteen numbers to whole ones of 16 bits, 256 · high + low with both of a signed byte.

    The high bytes go to the address, the low ones 32 bytes behind it; returns the sum of the whole numbers.
    """
    whole = builder.fptosi(call_llvm(builder, f"llvm.rint.v{LANES}f32", FLOATS, [x]), INTS)
    high = builder.ashr(builder.add(whole, constant(INTS, 128)), constant(INTS, 8))
    short = ir.VectorType(BYTE, LANES)
    for offset, half in ((0, high), (32, whole)):  # the low byte is what truncation leaves
        where = builder.inttoptr(builder.add(address, ir.Constant(LONG, offset)), short.as_pointer())
        builder.store(builder.trunc(half, short), where, align=1)
    return call_llvm(builder, f"llvm.vector.reduce.add.v{LANES}i32", WORD, [whole])


def _prefetch(builder: Any, where: Any, locality: int) -> None:
    options = [ir.Constant(WORD, option) for option in (0, locality, 1)]  # to read; which cache; data
    call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), [where, *options])


@operation(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> Any:
    """Ask for the 64 bytes around an address, which need not exist, ahead of time."""
    _prefetch(builder, builder.inttoptr(address, BYTE.as_pointer()), 2)


@intrinsic
def fetch_at(typing_context, pointer, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """As `prefetch`, of the index-th number."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address, index = values
        _prefetch(builder, place_of(builder, address, index, signature.args[0], None), 3)
        return context.get_dummy_value()

    return types.void(pointer, types.int64), generate
