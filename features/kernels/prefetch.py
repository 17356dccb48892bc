"""`prefetch`: has a row of an array fetched before it is read.

The rows of a request's candidates lie all over arrays of many megabytes. A loop that does much for each of them waits
for memory each time, as the processor does not look far enough ahead to see the next row; so it is told.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

AHEAD = 16
"""How many rows ahead a loop asks: some hundred nanoseconds of work."""
_LINE = 64
_INT, _BYTE, _FLAG = ir.IntType(64), ir.IntType(8), ir.IntType(32)


def _prefetch_in_llvm(typing: Any, array: Any, row: Any) -> Any:
    """The row may be any number: what is not there is not fetched, and nothing comes of it."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values = context.make_array(signature.args[0])(context, builder, value=given[0])
        size = cgutils.unpack_tuple(builder, values.strides)[0]  # type: ignore[no-untyped-call]
        number = context.cast(builder, given[1], signature.args[1], types.int64)
        start = builder.gep(builder.bitcast(values.data, _BYTE.as_pointer()), [builder.mul(number, size)])
        kind = ir.FunctionType(ir.VoidType(), [start.type, _FLAG, _FLAG, _FLAG])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        read, near, data = (ir.Constant(_FLAG, value) for value in (0, 3, 1))
        step = ir.Constant(_INT, _LINE)
        with cgutils.for_range_slice(builder, ir.Constant(_INT, 0), size, step) as (at, _):
            builder.call(ask, [builder.gep(start, [at]), read, near, data])
        return context.get_dummy_value()

    return types.void(array, row), code


prefetch: Any = intrinsic(_prefetch_in_llvm)
