"""What threads and kernels need of each other: numbers that all see, calls by address, records by address."""

from typing import Any

from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from shearling.engine.kernels.vectors import LONG, X86, call_llvm, operation


@operation(types.int64, types.int64, types.int64)
def atomic_add(builder: Any, address: Any, value: Any) -> Any:
    """Add to the number at an address, and give what was there before."""
    return builder.atomic_rmw("add", builder.inttoptr(address, LONG.as_pointer()), value, "seq_cst")


@operation(types.int64, types.int64)
def atomic_load(builder: Any, address: Any) -> Any:
    """The number at an address, as other threads have left it."""
    return builder.load_atomic(builder.inttoptr(address, LONG.as_pointer()), "seq_cst", 8)


@operation(types.void, types.int64, types.int64)
def atomic_store(builder: Any, address: Any, value: Any) -> Any:
    """Leave a number at an address for other threads to see."""
    builder.store_atomic(value, builder.inttoptr(address, LONG.as_pointer()), "seq_cst", 8)


@operation(types.void)
def pause(builder: Any) -> Any:
    """Tell the processor that this is a loop that waits."""
    if X86:
        call_llvm(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])


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
