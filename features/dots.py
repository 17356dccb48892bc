"""Integer dot products of many int8 vectors with some int16 ones: most of the arithmetic of a request.

Written in LLVM's own terms, because numba's loops neither keep a tile of sums in registers nor meet the instruction
that multiplies and adds pairs of int16 (`pmaddwd`, `vpdpwssd`). The terms name no processor: LLVM finds that
instruction where there is one, and says the same with others where there is none. Integers have one sum, so the answer
is the same everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from features.compiled import compiled
from features.log import I32
from features.prefetch import prefetch

I8Matrix = NDArray[np.int8]
I16Matrix = NDArray[np.int16]


def _lanes() -> int:
    try:
        return 16 if binding.get_host_cpu_features().get("avx512bw") else 8
    except RuntimeError:  # a processor LLVM cannot ask
        return 8


LANES = _lanes()
"""Sums to a register. A tile of so many vectors by so many is worked on at a time: its sums stay in registers."""

_INT, _WORD, _HALF = ir.IntType(64), ir.IntType(32), ir.IntType(16)
_WORDS, _HALVES = ir.VectorType(_WORD, LANES), ir.VectorType(_HALF, 2 * LANES)


@compiled
def dots(code: I8Matrix, rows: I32, others: I32, directions: I16Matrix) -> I32:
    """int32[m + k, n or a few more]: the dot product of m `others` and k directions, in turn, with each of n `rows`.

    code: int8[items, d]. rows: int32[n], others: int32[m], both into `code`. directions: int16[k, d]. The caller sees
    to it that a sum fits int32. More columns than rows where n is no multiple of `LANES`; what is in them is no matter.
    """
    n, d = len(rows), code.shape[1]
    pairs = (d + 1) // 2
    packed = _packed(code, others, directions)
    tiles = -(-n // LANES)
    out = np.empty((len(packed) * LANES, tiles * LANES), np.int32)
    wide = np.zeros((LANES, 2 * pairs), np.int16)
    as_pairs = wide.view(np.int32)
    for tile in range(tiles):
        for lane in range(LANES):
            i = tile * LANES + lane
            # Rows lie all over memory; those of the next tile are on their way while this one is computed.
            prefetch(code, rows[min(i + LANES, n - 1)])
            row = code[rows[min(i, n - 1)]]
            for k in range(d):
                wide[lane, k] = row[k]
        for block in range(len(packed)):
            _tile(as_pairs, packed, pairs, block, tile, out)
    return out


@compiled
def _packed(code: I8Matrix, others: I32, directions: I16Matrix) -> I32:
    """int32[blocks, pairs, LANES]: of `LANES` vectors at a time, the same two coordinates side by side."""
    m, d = len(others), code.shape[1]
    count, pairs = m + len(directions), (d + 1) // 2
    out = np.zeros((-(-count // LANES), pairs, 2 * LANES), np.int16)
    for j in range(count):
        block, lane = out[j // LANES], 2 * (j % LANES)
        if j < m:
            vector = code[others[j]]
            for k in range(d):
                block[k >> 1, lane + (k & 1)] = vector[k]
        else:
            for k in range(d):
                block[k >> 1, lane + (k & 1)] = directions[j - m, k]
    return out.view(np.int32)


def _tile_in_llvm(typing: Any, wide: Any, packed: Any, pairs: Any, block: Any, tile: Any, out: Any) -> Any:
    """`out[block's LANES, tile's LANES]`: the dot products of a block of `packed` with the rows of `wide`.

    wide: int32[LANES, pairs], packed: int32[blocks, pairs, LANES], each value two int16. out: int32[...], see `dots`.
    """
    arguments = (wide, packed, pairs, block, tile, out)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        arrays = [
            context.make_array(signature.args[n])(context, builder, value=given[n]) for n in (0, 1, 5)
        ]  # fmt: skip
        pairs, block, tile = given[2:5]
        lanes = ir.Constant(_INT, LANES)
        start = builder.gep(arrays[1].data, [builder.mul(builder.mul(block, pairs), lanes)])
        sums = _multiplied(builder, arrays[0].data, start, pairs)
        width = cgutils.unpack_tuple(builder, arrays[2].shape)[1]  # type: ignore[no-untyped-call]
        for lane, line in enumerate(_transposed(builder, sums)):
            row = builder.add(builder.mul(block, lanes), ir.Constant(_INT, lane))
            place = builder.add(builder.mul(row, width), builder.mul(tile, lanes))
            # Aligned as numba aligns arrays: to the value, not to the vector.
            builder.store(line, builder.bitcast(builder.gep(arrays[2].data, [place]), _WORDS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*arguments), code


_tile: Any = intrinsic(_tile_in_llvm)


def _multiplied(builder: Any, wide: Any, packed: Any, pairs: Any) -> list[Any]:
    """A register of sums for each row of `wide`: its dot products with `LANES` vectors, one pair at a time."""
    before = builder.basic_block
    loop, done = builder.append_basic_block("multiply"), builder.append_basic_block("multiplied")
    builder.branch(loop)
    builder.position_at_end(loop)
    at, sums = builder.phi(_INT), [builder.phi(_WORDS) for _ in range(LANES)]
    line = builder.gep(packed, [builder.mul(at, ir.Constant(_INT, LANES))])
    theirs = builder.load(builder.bitcast(line, _HALVES.as_pointer()), align=4)
    more = []
    for row, total in enumerate(sums):
        place = builder.add(builder.mul(ir.Constant(_INT, row), pairs), at)
        mine = builder.bitcast(_splat(builder, builder.load(builder.gep(wide, [place]))), _HALVES)
        more.append(builder.add(total, _products(builder, theirs, mine)))
    following = builder.add(at, ir.Constant(_INT, 1))
    at.add_incoming(ir.Constant(_INT, 0), before)
    at.add_incoming(following, loop)
    for total, new in zip(sums, more, strict=True):
        total.add_incoming(ir.Constant(_WORDS, [0] * LANES), before)
        total.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, pairs), loop, done)
    builder.position_at_end(done)
    return more


def _products(builder: Any, a: Any, b: Any) -> Any:
    """The sum of the two products of each pair: the form in which LLVM knows its instruction."""
    both = ir.VectorType(_WORD, 2 * LANES)
    product = builder.mul(builder.sext(a, both), builder.sext(b, both))
    even, odd = (
        builder.shuffle_vector(product, product, ir.Constant(_WORDS, list(range(first, 2 * LANES, 2))))
        for first in (0, 1)
    )
    return builder.add(even, odd)


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_WORDS, [0] * LANES))


def _transposed(builder: Any, lines: list[Any]) -> list[Any]:
    """Lane l of line r becomes lane r of line l: shuffled like a pack of cards, once for each doubling of `LANES`."""
    half = LANES // 2
    masks = [
        ir.Constant(_WORDS, [place for k in range(half) for place in (first + k, LANES + first + k)])
        for first in (0, half)
    ]  # fmt: skip
    for _ in range(LANES.bit_length() - 1):
        lines = [builder.shuffle_vector(lines[n // 2], lines[n // 2 + half], masks[n % 2]) for n in range(LANES)]
    return lines
