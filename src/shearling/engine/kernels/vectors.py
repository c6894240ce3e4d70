"""Vectors of sixteen lanes in numba: types that LLVM keeps in registers, and how an operation on them is made.

LLVM splits a vector where the processor's registers are shorter, so that the same kernels run everywhere.
"""

import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model

LANES = 16

X86 = llvm.get_process_triple().startswith(("x86_64", "i686"))

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


def constant(kind: ir.Type, value: float) -> ir.Constant:
    lanes = getattr(kind, "count", None)
    return ir.Constant(kind, value if lanes is None else [value] * lanes)


def undefined(kind: ir.Type) -> ir.Constant:
    return ir.Constant(kind, ir.Undefined)


def spread(builder: Any, value: Any, kind: ir.VectorType) -> Any:
    first = builder.insert_element(undefined(kind), value, ir.Constant(WORD, 0))
    return builder.shuffle_vector(first, undefined(kind), constant(ir.VectorType(WORD, kind.count), 0))


def call_llvm(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def operation(result: types.Type, *arguments: types.Type) -> Callable[[Callable[..., Any]], Any]:
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


def features() -> Any:
    """What the processor that numba compiles for can do."""
    if config.CPU_FEATURES is not None:
        return {name.lstrip("+"): name.startswith("+") for name in config.CPU_FEATURES.split(",") if name}
    return llvm.get_host_cpu_features() if config.CPU_NAME is None else {}
