"""`prefetch`: loads a row of an array into the cache before it is read.

The rows of a request's candidates are scattered over arrays of many megabytes. A loop with much work per row waits for
memory at each row, because the processor does not look far enough ahead to see the next one; `prefetch` requests it
early.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

AHEAD = 16
"""Number of rows to prefetch ahead: some hundred nanoseconds of work."""
_LINE = 64
_INT, _BYTE, _FLAG = ir.IntType(64), ir.IntType(8), ir.IntType(32)


def _prefetch_in_llvm(typing: Any, array: Any, row: Any) -> Any:
    """Any row number is allowed: prefetching an invalid address has no effect."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = context.make_array(signature.args[0])(context, builder, value=arguments[0])
        size = cgutils.unpack_tuple(builder, values.strides)[0]  # type: ignore[no-untyped-call]
        number = context.cast(builder, arguments[1], signature.args[1], types.int64)
        start = builder.gep(builder.bitcast(values.data, _BYTE.as_pointer()), [builder.mul(number, size)])
        kind = ir.FunctionType(ir.VoidType(), [start.type, _FLAG, _FLAG, _FLAG])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        read, keep_in_cache, data = (ir.Constant(_FLAG, value) for value in (0, 3, 1))
        step = ir.Constant(_INT, _LINE)
        with cgutils.for_range_slice(builder, ir.Constant(_INT, 0), size, step) as (at, _):
            builder.call(hint, [builder.gep(start, [at]), read, keep_in_cache, data])
        return context.get_dummy_value()

    return types.void(array, row), code


prefetch: Any = intrinsic(_prefetch_in_llvm)
