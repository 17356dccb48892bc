"""Integer dot products of many int8 vectors with some int16 ones: most of the arithmetic of a request.

Written in LLVM's own terms, because numba's loops neither keep a tile of sums in registers nor meet the instructions
that multiply and add several small integers at once. Where the processor has the one for four bytes (`vpdpbusd`), it is
asked for by name: half the time. Elsewhere pairs of int16 are multiplied in terms that name no processor, for which
LLVM finds an instruction (`pmaddwd`, `vpdpwssd`) where there is one. Integers have one sum, so the answer is the same
everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from features.arrays import I32
from features.kernels.compiled import compiled
from features.kernels.prefetch import prefetch

I8Matrix = NDArray[np.int8]
I16Matrix = NDArray[np.int16]


def _can(instructions: str) -> bool:
    """Whether kernels are compiled for a processor with these: not where numba is told to compile for another one."""
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:  # type: ignore[attr-defined]
        return False
    try:
        return bool(binding.get_host_cpu_features().get(instructions))
    except RuntimeError:  # a processor LLVM cannot ask
        return False


LANES = 16 if _can("avx512bw") else 8
"""Sums to a register. A tile of so many vectors by so many is worked on at a time: its sums stay in registers."""
BYTES = _can("avx512vnni") if LANES == 16 else _can("avxvnni")
"""Whether four products of bytes are added up at once, else two of int16."""
_TOGETHER = 4 if BYTES else 2
"""Coordinates of a vector to each int32."""
_MOST = 516
"""Dimensions: more could exceed int32."""
_STRIDE = _MOST // _TOGETHER + 1
"""Words from one row of a tile to the next: a constant, so that one pointer leads to all rows. With a pointer for each
the loop was short of registers, and took twice the time."""
_PIECES = 3 if BYTES else 1
"""Vectors that a direction is taken apart into, so that each has coordinates of the size that is multiplied."""

_INT, _WORD, _HALF = ir.IntType(64), ir.IntType(32), ir.IntType(16)
_WORDS, _HALVES = ir.VectorType(_WORD, LANES), ir.VectorType(_HALF, 2 * LANES)
_SIGNED: Any = np.int8 if BYTES else np.int16
_UNSIGNED: Any = np.uint8 if BYTES else np.int16
_OFFSET = 128 if BYTES else 0
"""Added to the coordinates of one side, as the instruction takes unsigned bytes there, and taken from sums again."""


@compiled
def dots(code: I8Matrix, rows: I32, others: I32, directions: I16Matrix) -> I32:
    """int32[m + k or more, n or a few more]: dot products of m `others`, then k directions, with each of n `rows`.

    code: int8[items, d]. rows: int32[n], others: int32[m], both into `code`. directions: int16[k, d]. Sums fit int32;
    ValueError where d is above 516. More columns than rows where n is no multiple of `LANES`; what is in them is no
    matter.
    """
    n, d, m = len(rows), code.shape[1], len(others)
    if d > _MOST:
        raise ValueError("vectors have more than 516 dimensions, too many for sums in int32: project them down")
    words = -(-d // _TOGETHER)
    packed = _packed(code, others, directions)
    tiles = -(-n // LANES)
    out = np.empty((len(packed) * LANES, tiles * LANES), np.int32)
    wide = np.zeros((LANES, _STRIDE), np.int32)
    small = wide.view(_SIGNED)
    for tile in range(tiles):
        for lane in range(LANES):
            i = tile * LANES + lane
            # Rows lie all over memory; those of the next tile are on their way while this one is computed.
            prefetch(code, rows[min(i + LANES, n - 1)])
            vector = code[rows[min(i, n - 1)]]
            total = np.int32(0)
            for k in range(d):
                small[lane, k] = vector[k]
                total = np.int32(total + np.int32(vector[k]))
            wide[lane, words] = -_OFFSET * total
        for block in range(len(packed)):
            _tile(wide, packed, words, block, tile, out)
    if _PIECES > 1:
        for j in range(m, m + len(directions)):
            first = m + _PIECES * (j - m)
            for i in range(n):
                out[j, i] = 256 * (out[first, i] + out[first + 1, i]) + out[first + 2, i]
    return out


@compiled
def _packed(code: I8Matrix, others: I32, directions: I16Matrix) -> I32:
    """int32[blocks, words, LANES]: of `LANES` vectors at a time, the same coordinates side by side."""
    m, d = len(others), code.shape[1]
    count, words = m + _PIECES * len(directions), -(-d // _TOGETHER)
    out = np.zeros((-(-count // LANES), words, LANES), np.int32)
    one = np.zeros(_TOGETHER * words, _UNSIGNED)
    as_words = one.view(np.int32)
    for j in range(count):
        if j < m:
            vector = code[others[j]]
            for k in range(d):
                one[k] = vector[k] + _OFFSET
        else:
            direction = directions[(j - m) // _PIECES]
            for k in range(d):
                one[k] = _piece(direction[k], (j - m) % _PIECES) + _OFFSET
        block, lane = out[j // LANES], j % LANES
        for k in range(words):
            block[k, lane] = as_words[k]
    return out


@compiled
def _piece(value: int, piece: int) -> int:
    """One of three bytes of an int16: `value = 256 * (first + second) + third`, each -128 to 127; or itself.

    Two would not do: the largest values are 256 * 128 less a little.
    """
    if _PIECES == 1:
        return value
    low = ((value + 128) & 255) - 128
    high = (value - low) >> 8
    first = min(high, 127)
    return first if piece == 0 else high - first if piece == 1 else low


def _tile_in_llvm(typing: Any, wide: Any, packed: Any, words: Any, block: Any, tile: Any, out: Any) -> Any:
    """`out[block's LANES, tile's LANES]`: the dot products of a block of `packed` with the rows of `wide`.

    wide: int32[LANES, _STRIDE], packed: int32[blocks, words, LANES], each value `_TOGETHER` coordinates; after the
    words of a row in `wide` stands what its sums begin with. out: int32[...], see `dots`.
    """
    arguments = (wide, packed, words, block, tile, out)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        arrays = [context.make_array(signature.args[n])(context, builder, value=given[n]) for n in (0, 1, 5)]
        words, block, tile = given[2:5]
        lanes = ir.Constant(_INT, LANES)
        start = builder.gep(arrays[1].data, [builder.mul(builder.mul(block, words), lanes)])
        sums = _multiplied(builder, arrays[0].data, start, words)
        width = cgutils.unpack_tuple(builder, arrays[2].shape)[1]  # type: ignore[no-untyped-call]
        for lane, line in enumerate(_transposed(builder, sums)):
            row = builder.add(builder.mul(block, lanes), ir.Constant(_INT, lane))
            place = builder.add(builder.mul(row, width), builder.mul(tile, lanes))
            # Aligned as numba aligns arrays: to the value, not to the vector.
            builder.store(line, builder.bitcast(builder.gep(arrays[2].data, [place]), _WORDS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*arguments), code


_tile: Any = intrinsic(_tile_in_llvm)


def _multiplied(builder: Any, wide: Any, packed: Any, words: Any) -> list[Any]:
    """A register of sums for each row of `wide`: its dot products with `LANES` vectors, one word at a time."""
    before = builder.basic_block
    begun = _splats(builder, wide, words)
    loop, done = builder.append_basic_block("multiply"), builder.append_basic_block("multiplied")
    builder.branch(loop)
    builder.position_at_end(loop)
    at, sums = builder.phi(_INT), [builder.phi(_WORDS) for _ in range(LANES)]
    line = builder.gep(packed, [builder.mul(at, ir.Constant(_INT, LANES))])
    theirs = builder.load(builder.bitcast(line, _WORDS.as_pointer()), align=4)
    more = []
    for mine, total in zip(_splats(builder, wide, at), sums, strict=True):
        more.append(_added(builder, total, theirs, mine))
    following = builder.add(at, ir.Constant(_INT, 1))
    at.add_incoming(ir.Constant(_INT, 0), before)
    at.add_incoming(following, loop)
    for total, first, new in zip(sums, begun, more, strict=True):
        total.add_incoming(first, before)
        total.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, words), loop, done)
    builder.position_at_end(done)
    return more


def _splats(builder: Any, wide: Any, word: Any) -> list[Any]:
    """A register for each row, full of one of its words."""
    line = builder.gep(wide, [word])
    return [_splat(builder, builder.load(builder.gep(line, [ir.Constant(_INT, _STRIDE * k)]))) for k in range(LANES)]


def _added(builder: Any, total: Any, theirs: Any, mine: Any) -> Any:
    """`total` and, in each word, the products of the coordinates of both."""
    if BYTES:
        kind, name = ir.FunctionType(_WORDS, [_WORDS] * 3), f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"
        known = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        return builder.call(known, [total, theirs, mine])
    mine, theirs = builder.bitcast(mine, _HALVES), builder.bitcast(theirs, _HALVES)
    both = ir.VectorType(_WORD, 2 * LANES)
    product = builder.mul(builder.sext(theirs, both), builder.sext(mine, both))
    # The sum of the two products of each pair: the form in which LLVM knows its instruction.
    even, odd = (
        builder.shuffle_vector(product, product, ir.Constant(_WORDS, list(range(first, 2 * LANES, 2))))
        for first in (0, 1)
    )
    return builder.add(total, builder.add(even, odd))


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_WORDS, [0] * LANES))


def _transposed(builder: Any, lines: list[Any]) -> list[Any]:
    """Lane l of line r becomes lane r of line l: shuffled like a pack of cards, once for each doubling of `LANES`."""
    half = LANES // 2
    masks = [
        ir.Constant(_WORDS, [place for k in range(half) for place in (first + k, LANES + first + k)])
        for first in (0, half)
    ]
    for _ in range(LANES.bit_length() - 1):
        lines = [builder.shuffle_vector(lines[n // 2], lines[n // 2 + half], masks[n % 2]) for n in range(LANES)]
    return lines
