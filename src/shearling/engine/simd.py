"""Vectors of sixteen lanes in numba: types that LLVM keeps in registers, and the operations that the kernels need.

LLVM splits a vector where the processor's registers are shorter, so that the same kernels run everywhere; only `dot4`
asks what the processor has. An address is a pointer that knows what lies there: `load(p, i)` gives sixteen numbers from
the i-th on as fp32, whatever they are stored as.
"""

import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model

LANES = 16

BYTE, WORD, LONG, FLOAT, HALF = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.HalfType()


class Vector(types.Type):
    """A vector of LLVM's as a type of numba's."""

    def __init__(self, name: str, element: ir.Type, lanes: int) -> None:
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=name)


class Pointer(types.Type):
    """The address of numbers that `load` turns into fp32."""

    def __init__(self, name: str, element: ir.Type) -> None:
        self.element = element
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.llvm)


@register_model(Pointer)
class _PointerModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Pointer) -> None:
        super().__init__(manager, kind, LONG)


floats, ints, bytes_ = Vector("floats", FLOAT, LANES), Vector("ints", WORD, LANES), Vector("bytes", BYTE, 4 * LANES)
FLOATS, INTS, BYTES = floats.llvm, ints.llvm, bytes_.llvm
f32_at, f16_at = Pointer("f32*", FLOAT), Pointer("f16*", HALF)
bf16_at, i8_at = Pointer("bf16*", ir.IntType(16)), Pointer("i8*", BYTE)
bytes_at, nibbles_at = Pointer("bytes*", BYTE), Pointer("nibbles*", BYTE)

Generate = Callable[[Any, Any, Any, Any], Any]


def _number(kind: ir.Type, value: float) -> ir.Constant:
    lanes = getattr(kind, "count", None)
    return ir.Constant(kind, value if lanes is None else [value] * lanes)


def _undefined(kind: ir.Type) -> ir.Constant:
    return ir.Constant(kind, ir.Undefined)


def _splat(builder: Any, value: Any, kind: ir.VectorType) -> Any:
    first = builder.insert_element(_undefined(kind), value, ir.Constant(WORD, 0))
    return builder.shuffle_vector(first, _undefined(kind), _number(ir.VectorType(WORD, kind.count), 0))


def _call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _made_of(result: types.Type, *arguments: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic with one signature, whose body gets the builder and the arguments."""

    def make(body: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            made = body(builder, *values)
            return context.get_dummy_value() if result is types.void else made

        def typed(typing_context: Any, *given: Any) -> Any:
            return result(*arguments), generate

        typed.__name__, typed.__doc__ = body.__name__, body.__doc__
        # numba lays the arguments out by the signature, and has no way for a number of them that is not in it.
        names = ["typing_context", *list(inspect.signature(body).parameters)[1:]]
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
        typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return intrinsic(typed)

    return make


def _pointer_maker(kind: Pointer) -> Any:
    @_made_of(kind, types.int64)
    def pointer(builder: Any, address: Any) -> Any:
        """A number as an address of such numbers."""
        return address

    return pointer


as_f32, as_f16, as_bf16, as_i8, as_bytes, as_nibbles = (
    _pointer_maker(kind) for kind in (f32_at, f16_at, bf16_at, i8_at, bytes_at, nibbles_at)
)


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
        return builder.fpext(value, target)
    if kind is bf16_at:
        return builder.bitcast(builder.shl(builder.zext(value, word), _number(word, 16)), target)
    return builder.sitofp(value, target)


def _where(builder: Any, address: Any, index: Any, kind: Pointer, lanes: int | None) -> Any:
    offset = builder.mul(index, ir.Constant(LONG, _size(kind)))
    element = kind.element if lanes is None else ir.VectorType(kind.element, lanes)
    return builder.inttoptr(builder.add(address, offset), element.as_pointer())


def _size(kind: Pointer) -> int:
    return {f32_at: 4, f16_at: 2, bf16_at: 2, i8_at: 1}[kind]


@intrinsic
def load(typing_context, pointer, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Sixteen numbers from the index-th on, as fp32; they need no alignment."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0]
        return _widened(builder, builder.load(_where(builder, *values, kind, LANES), align=_size(kind)), kind)

    return floats(pointer, types.int64), generate


@intrinsic
def load_first(typing_context, pointer, index, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """As `load`, the first `count` of sixteen numbers and zeros; nothing behind those is touched."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind, lanes = signature.args[0], ir.VectorType(signature.args[0].element, LANES)
        address, index, count = values
        numbers = ir.Constant(ir.VectorType(LONG, LANES), list(range(LANES)))
        mask = builder.icmp_signed("<", numbers, _splat(builder, count, numbers.type))
        where = _where(builder, address, index, kind, LANES)
        element = {f32_at: "f32", f16_at: "f16", bf16_at: "i16", i8_at: "i8"}[kind]
        arguments = [where, ir.Constant(WORD, _size(kind)), mask, _number(lanes, 0)]
        return _widened(builder, _call(builder, f"llvm.masked.load.v{LANES}{element}.p0", lanes, arguments), kind)

    return floats(pointer, types.int64, types.int64), generate


@intrinsic
def number(typing_context, pointer, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The index-th number, as fp32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0]
        return _widened(builder, builder.load(_where(builder, *values, kind, None), align=_size(kind)), kind)

    return types.float32(pointer, types.int64), generate


@intrinsic
def put(typing_context, pointer, index, value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Store one number; int8 and bf16 are rounded to nearest, ties to even."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0]
        address, index, value = values
        where = _where(builder, address, index, kind, None)
        builder.store(_narrowed(builder, value, kind), where, align=_size(kind))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, types.float32), generate


def _narrowed(builder: Any, value: Any, kind: Pointer) -> Any:
    if kind is f32_at:
        return value
    if kind is f16_at:
        return builder.fptrunc(value, HALF)
    if kind is i8_at:
        return builder.trunc(builder.fptosi(_call(builder, "llvm.rint.f32", FLOAT, [value]), WORD), BYTE)
    bits = builder.bitcast(value, WORD)
    odd = builder.and_(builder.lshr(bits, ir.Constant(WORD, 16)), ir.Constant(WORD, 1))
    rounded = builder.add(builder.add(bits, ir.Constant(WORD, 0x7FFF)), odd)
    return builder.trunc(builder.lshr(rounded, ir.Constant(WORD, 16)), ir.IntType(16))


@_made_of(types.void, f32_at, types.int64, floats)
def store(builder: Any, address: Any, index: Any, value: Any) -> Any:
    """Store sixteen numbers from the index-th on."""
    builder.store(value, _where(builder, address, index, f32_at, LANES), align=4)


@_made_of(bytes_, types.int64)
def load_bytes(builder: Any, address: Any) -> Any:
    """64 bytes."""
    return builder.load(builder.inttoptr(address, BYTES.as_pointer()), align=1)


@_made_of(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> Any:
    """Ask for the 64 bytes around an address, which need not exist, ahead of time."""
    where = builder.inttoptr(address, BYTE.as_pointer())
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), [where, *(ir.Constant(WORD, value) for value in (0, 2, 1))])


@_made_of(types.int64, types.int64)
def byte(builder: Any, address: Any) -> Any:
    """One unsigned byte."""
    return builder.zext(builder.load(builder.inttoptr(address, BYTE.as_pointer())), LONG)


@_made_of(bytes_, types.int64)
def load_word(builder: Any, address: Any) -> Any:
    """Four bytes, repeated sixteen times."""
    word = builder.load(builder.inttoptr(address, WORD.as_pointer()), align=1)
    return builder.bitcast(_splat(builder, word, INTS), BYTES)


@_made_of(floats, types.float32)
def splat(builder: Any, value: Any) -> Any:
    """One number in all lanes."""
    return _splat(builder, value, FLOATS)


@_made_of(ints, types.int32)
def splat_int(builder: Any, value: Any) -> Any:
    """One whole number in all lanes."""
    return _splat(builder, value, INTS)


def _fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return _call(builder, f"llvm.fma.v{LANES}f32", FLOATS, [x, y, z])


@_made_of(floats, floats, floats, floats)
def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """x · y + z, rounded once."""
    return _fma(builder, x, y, z)


@_made_of(floats, floats, floats)
def add(builder: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return builder.fadd(x, y)


@_made_of(floats, floats, floats)
def sub(builder: Any, x: Any, y: Any) -> Any:
    """x − y."""
    return builder.fsub(x, y)


@_made_of(floats, floats, floats)
def mul(builder: Any, x: Any, y: Any) -> Any:
    """x · y."""
    return builder.fmul(x, y)


@_made_of(floats, floats, floats)
def div(builder: Any, x: Any, y: Any) -> Any:
    """x / y."""
    return builder.fdiv(x, y)


@_made_of(floats, floats, floats)
def largest(builder: Any, x: Any, y: Any) -> Any:
    """The larger of x and y, NaN where one is."""
    return _call(builder, f"llvm.maximum.v{LANES}f32", FLOATS, [x, y])


@_made_of(floats, floats)
def magnitude(builder: Any, x: Any) -> Any:
    """|x|."""
    return _call(builder, f"llvm.fabs.v{LANES}f32", FLOATS, [x])


@_made_of(types.float32, floats)
def total(builder: Any, x: Any) -> Any:
    """The sum of the lanes, pair by pair."""
    for half in (8, 4, 2, 1):
        order = ir.Constant(ir.VectorType(WORD, LANES), [(lane + half) % LANES for lane in range(LANES)])
        x = builder.fadd(x, builder.shuffle_vector(x, _undefined(FLOATS), order))
    return builder.extract_element(x, ir.Constant(WORD, 0))


@_made_of(types.float32, floats)
def peak(builder: Any, x: Any) -> Any:
    """The largest of the lanes."""
    return _call(builder, f"llvm.vector.reduce.fmaximum.v{LANES}f32", FLOAT, [x])


@_made_of(floats, ints)
def to_floats(builder: Any, x: Any) -> Any:
    """Whole numbers as fp32."""
    return builder.sitofp(x, FLOATS)


@_made_of(ints, types.int64)
def load_int(builder: Any, address: Any) -> Any:
    """One whole number of 32 bits, in all lanes."""
    return _splat(builder, builder.load(builder.inttoptr(address, WORD.as_pointer()), align=4), INTS)


@_made_of(types.void, types.int64, types.int32)
def put_int(builder: Any, address: Any, value: Any) -> Any:
    """Store one whole number of 32 bits."""
    builder.store(value, builder.inttoptr(address, WORD.as_pointer()), align=4)


@_made_of(ints, ints, ints)
def times(builder: Any, x: Any, y: Any) -> Any:
    """x · y of whole numbers."""
    return builder.mul(x, y)


@_made_of(ints, ints, ints)
def shifted_sum(builder: Any, high: Any, low: Any) -> Any:
    """256 · high + low."""
    return builder.add(builder.shl(high, _number(INTS, 8)), low)


@_made_of(types.int32, types.int64, floats)
def store_halves(builder: Any, address: Any, x: Any) -> Any:
    """Round sixteen numbers to whole ones of 16 bits, 256 · high + low with both of a signed byte.

    The high bytes go to the address, the low ones 32 bytes behind it; returns the sum of the whole numbers.
    """
    whole = builder.fptosi(_call(builder, f"llvm.rint.v{LANES}f32", FLOATS, [x]), INTS)
    high = builder.ashr(builder.add(whole, _number(INTS, 128)), _number(INTS, 8))
    short = ir.VectorType(BYTE, LANES)
    for offset, half in ((0, high), (32, whole)):  # the low byte is what truncation leaves
        where = builder.inttoptr(builder.add(address, ir.Constant(LONG, offset)), short.as_pointer())
        builder.store(builder.trunc(half, short), where, align=1)
    return _call(builder, f"llvm.vector.reduce.add.v{LANES}i32", WORD, [whole])


@_made_of(bytes_, bytes_)
def low_nibbles(builder: Any, x: Any) -> Any:
    """The lower half of each byte."""
    return builder.and_(x, _number(BYTES, 15))


@_made_of(bytes_, bytes_)
def high_nibbles(builder: Any, x: Any) -> Any:
    """The upper half of each byte."""
    words = builder.lshr(builder.bitcast(x, INTS), _number(INTS, 4))
    return builder.and_(builder.bitcast(words, BYTES), _number(BYTES, 15))


@_made_of(floats, floats)
def exp(builder: Any, x: Any) -> Any:
    """e^x to 2 units in the last place; 0 below −87.3, where the result would not be normal.

    2^n · e^r, with n whole and |r| ≤ ln 2 / 2, and e^r by its Taylor polynomial of degree 7.
    """
    kept = _call(builder, f"llvm.maxnum.v{LANES}f32", FLOATS, [x, _number(FLOATS, -87.3)])
    kept = _call(builder, f"llvm.minnum.v{LANES}f32", FLOATS, [kept, _number(FLOATS, 88.0)])
    n = _call(builder, f"llvm.rint.v{LANES}f32", FLOATS, [builder.fmul(kept, _number(FLOATS, 1.4426950408889634))])
    # ln 2 in two pieces, the first short enough for n times it to be exact.
    r = _fma(builder, n, _number(FLOATS, -0.693145751953125), kept)
    r = _fma(builder, n, _number(FLOATS, -1.42860682030941723212e-6), r)
    power = _number(FLOATS, 1 / 5040)
    for factorial in (720, 120, 24, 6, 2, 1, 1):
        power = _fma(builder, power, r, _number(FLOATS, 1 / factorial))
    exponent = builder.shl(builder.add(builder.fptosi(n, INTS), _number(INTS, 127)), _number(INTS, 23))
    scaled = builder.fmul(power, builder.bitcast(exponent, FLOATS))
    return builder.select(builder.fcmp_ordered("<", x, _number(FLOATS, -87.3)), _number(FLOATS, 0.0), scaled)


def _features() -> Any:
    """What the processor that numba compiles for can do."""
    if config.CPU_FEATURES is not None:
        return {name.lstrip("+"): name.startswith("+") for name in config.CPU_FEATURES.split(",") if name}
    return llvm.get_host_cpu_features() if config.CPU_NAME is None else {}


@_made_of(ints, ints, bytes_, bytes_)
def dot4(builder: Any, sums: Any, unsigned: Any, signed: Any) -> Any:
    """In each lane the sum, and four products of an unsigned and a signed byte; exact.

    One instruction where the processor has AVX-512 VNNI or AVX-VNNI, plain arithmetic elsewhere.
    """
    features = _features()
    if features.get("avx512vnni") and features.get("avx512f"):
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, [sums, unsigned, signed])
    if features.get("avxvnni"):
        return _in_halves(builder, sums, unsigned, signed)
    pairs = ir.VectorType(ir.IntType(16), 4 * LANES)
    products = builder.mul(builder.zext(unsigned, pairs), builder.sext(signed, pairs))
    for place in range(4):
        order = ir.Constant(ir.VectorType(WORD, LANES), [4 * lane + place for lane in range(LANES)])
        sums = builder.add(sums, builder.sext(builder.shuffle_vector(products, _undefined(pairs), order), INTS))
    return sums


def _in_halves(builder: Any, sums: Any, unsigned: Any, signed: Any) -> Any:
    halves = []
    for half in range(2):
        words = ir.Constant(ir.VectorType(WORD, LANES // 2), [half * LANES // 2 + lane for lane in range(LANES // 2)])
        short = ir.VectorType(WORD, LANES // 2)
        parts = [builder.bitcast(x, INTS) for x in (sums, unsigned, signed)]
        parts = [builder.shuffle_vector(x, _undefined(INTS), words) for x in parts]
        halves.append(_call(builder, "llvm.x86.avx512.vpdpbusd.256", short, parts))
    order = ir.Constant(ir.VectorType(WORD, LANES), list(range(LANES)))
    return builder.shuffle_vector(*halves, order)


@_made_of(types.int64, types.int64, types.int64)
def atomic_add(builder: Any, address: Any, value: Any) -> Any:
    """Add to the number at an address, and give what was there before."""
    return builder.atomic_rmw("add", builder.inttoptr(address, LONG.as_pointer()), value, "seq_cst")


@_made_of(types.int64, types.int64)
def atomic_load(builder: Any, address: Any) -> Any:
    """The number at an address, as other threads have left it."""
    return builder.load_atomic(builder.inttoptr(address, LONG.as_pointer()), "seq_cst", 8)


@_made_of(types.void, types.int64, types.int64)
def atomic_store(builder: Any, address: Any, value: Any) -> Any:
    """Leave a number at an address for other threads to see."""
    builder.store_atomic(value, builder.inttoptr(address, LONG.as_pointer()), "seq_cst", 8)


@_made_of(types.void)
def pause(builder: Any) -> Any:
    """Tell the processor that this is a loop that waits."""
    if llvm.get_process_triple().startswith(("x86_64", "i686")):
        _call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])


@intrinsic
def call(typing_context, address, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Call the kernel at an address with a tuple of whole numbers."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address, arguments = values
        numbers = cgutils.unpack_tuple(builder, arguments, len(signature.args[1]))
        kind = ir.FunctionType(ir.VoidType(), [LONG] * len(numbers))
        builder.call(builder.inttoptr(address, kind.as_pointer()), numbers)
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, len(arguments))), generate


def record_at(dtype: Any) -> Any:
    """An intrinsic that takes an address for that of a record."""
    record = from_dtype(dtype)

    @intrinsic
    def at(typing_context, address):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        """The record at an address."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(record))

        return record(types.int64), generate

    return at
