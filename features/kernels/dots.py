"""Integer dot products of many int8 vectors with some int16 vectors: most of the arithmetic of a request.

Written in LLVM IR, because numba's loops neither keep a tile of sums in registers nor compile to the instructions that
multiply and add several small integers at once. If the processor has the instruction for four bytes (`vpdpbusd`), it is
called by name, which takes half the time. Otherwise pairs of int16 are multiplied in portable IR, for which LLVM
selects an instruction (`pmaddwd`, `vpdpwssd`) if there is one. Integer sums are exact, so the result is the same
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


def _has_instructions(instructions: str) -> bool:
    """True if kernels are compiled for a processor with these instructions: this one, unless numba targets another."""
    if (features := config.CPU_FEATURES) is not None:  # type: ignore[attr-defined]
        return f"+{instructions}" in features.split(",")
    if config.CPU_NAME is not None:  # type: ignore[attr-defined]
        return False
    try:
        return bool(binding.get_host_cpu_features().get(instructions))
    except RuntimeError:  # LLVM cannot query this processor
        return False


LANES = 16 if _has_instructions("avx512bw") else 8
"""Sums per register. A tile of `LANES` by `LANES` vectors is computed at a time, so that its sums stay in registers."""
BYTES = _has_instructions("avx512vnni") if LANES == 16 else _has_instructions("avxvnni")
"""True if the products of four bytes are added at once; otherwise those of two int16."""
_PER_WORD = 4 if BYTES else 2
"""Coordinates of a vector per int32."""
_MAX_DIMENSIONS = 516
"""Maximum number of dimensions; sums of more could exceed int32."""
_STRIDE = _MAX_DIMENSIONS // _PER_WORD + 1
"""Words from one row of a tile to the next. It is a constant, so that one pointer leads to all rows. With a pointer for
each row the loop ran out of registers and took twice the time."""
_PIECES = 3 if BYTES else 1
"""Vectors that a direction is split into, so that their coordinates have the size that is multiplied."""

_INT, _WORD, _HALF = ir.IntType(64), ir.IntType(32), ir.IntType(16)
_WORDS, _HALVES = ir.VectorType(_WORD, LANES), ir.VectorType(_HALF, 2 * LANES)
_SIGNED: Any = np.int8 if BYTES else np.int16
_UNSIGNED: Any = np.uint8 if BYTES else np.int16
_OFFSET = 128 if BYTES else 0
"""Added to the coordinates of one side, where the instruction takes unsigned bytes, and subtracted from the sums."""


@compiled
def dots(code: I8Matrix, rows: I32, others: I32, directions: I16Matrix) -> I32:
    """int32[m + k or more, n or more]: dot products of m `others`, then k directions, with each of n `rows`.

    code: int8[items, d]. rows: int32[n], others: int32[m], both into `code`. directions: int16[k, d]. Sums fit int32;
    raises ValueError if d is above 516. Values beyond m + k rows and n columns are undefined: both are rounded up to
    tiles.
    """
    n, d, m = len(rows), code.shape[1], len(others)
    if d > _MAX_DIMENSIONS:
        raise ValueError("vectors have more than 516 dimensions, too many for sums in int32: project them to fewer")
    words = -(-d // _PER_WORD)
    packed = _pack(code, others, directions)
    tiles = -(-n // LANES)
    out = np.empty((len(packed) * LANES, tiles * LANES), np.int32)
    wide = np.zeros((LANES, _STRIDE), np.int32)
    coordinates = wide.view(_SIGNED)
    for tile in range(tiles):
        for lane in range(LANES):
            i = tile * LANES + lane
            # Rows are scattered in memory; prefetch those of the next tile while this one is computed.
            prefetch(code, rows[min(i + LANES, n - 1)])
            vector = code[rows[min(i, n - 1)]]
            total = np.int32(0)
            for k in range(d):
                coordinates[lane, k] = vector[k]
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
def _pack(code: I8Matrix, others: I32, directions: I16Matrix) -> I32:
    """int32[blocks, words, LANES]: blocks of `LANES` vectors each, with the same coordinates side by side."""
    m, d = len(others), code.shape[1]
    count, words = m + _PIECES * len(directions), -(-d // _PER_WORD)
    out = np.zeros((-(-count // LANES), words, LANES), np.int32)
    row = np.zeros(_PER_WORD * words, _UNSIGNED)
    as_words = row.view(np.int32)
    for j in range(count):
        if j < m:
            vector = code[others[j]]
            for k in range(d):
                row[k] = vector[k] + _OFFSET
        else:
            direction = directions[(j - m) // _PIECES]
            for k in range(d):
                row[k] = _piece(direction[k], (j - m) % _PIECES) + _OFFSET
        block, lane = out[j // LANES], j % LANES
        for k in range(words):
            block[k, lane] = as_words[k]
    return out


@compiled
def _piece(value: int, piece: int) -> int:
    """One of three bytes of an int16: `value = 256 * (first + second) + third`, each -128 to 127; or the value itself.

    Two bytes are not enough: the largest values are just below 256 * 128.
    """
    if _PIECES == 1:
        return value
    low = ((value + 128) & 255) - 128
    high = (value - low) >> 8
    first = min(high, 127)
    return first if piece == 0 else high - first if piece == 1 else low


def _tile_in_llvm(typing: Any, wide: Any, packed: Any, words: Any, block: Any, tile: Any, out: Any) -> Any:
    """`out[block's LANES, tile's LANES]`: the dot products of a block of `packed` with the rows of `wide`.

    wide: int32[LANES, _STRIDE], packed: int32[blocks, words, LANES], each value `_PER_WORD` coordinates; the words of a
    row in `wide` are followed by the initial value of its sums. out: int32[...], see `dots`.
    """
    arguments = (wide, packed, words, block, tile, out)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arrays = [context.make_array(signature.args[n])(context, builder, value=values[n]) for n in (0, 1, 5)]
        words, block, tile = values[2:5]
        lanes = ir.Constant(_INT, LANES)
        start = builder.gep(arrays[1].data, [builder.mul(builder.mul(block, words), lanes)])
        sums = _multiply(builder, arrays[0].data, start, words)
        width = cgutils.unpack_tuple(builder, arrays[2].shape)[1]  # type: ignore[no-untyped-call]
        for lane, total in enumerate(_transpose(builder, sums)):
            row = builder.add(builder.mul(block, lanes), ir.Constant(_INT, lane))
            offset = builder.add(builder.mul(row, width), builder.mul(tile, lanes))
            # numba aligns arrays to their values, not to vectors of them.
            builder.store(total, builder.bitcast(builder.gep(arrays[2].data, [offset]), _WORDS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*arguments), code


_tile: Any = intrinsic(_tile_in_llvm)


def _multiply(builder: Any, wide: Any, packed: Any, words: Any) -> list[Any]:
    """A register of sums for each row of `wide`: its dot products with `LANES` vectors, one word at a time."""
    before = builder.basic_block
    initial = _splat_words(builder, wide, words)
    loop, done = builder.append_basic_block("multiply"), builder.append_basic_block("multiplied")
    builder.branch(loop)
    builder.position_at_end(loop)
    at, sums = builder.phi(_INT), [builder.phi(_WORDS) for _ in range(LANES)]
    pointer = builder.gep(packed, [builder.mul(at, ir.Constant(_INT, LANES))])
    packed_word = builder.load(builder.bitcast(pointer, _WORDS.as_pointer()), align=4)
    new_sums = []
    for row_word, total in zip(_splat_words(builder, wide, at), sums, strict=True):
        new_sums.append(_multiply_add(builder, total, packed_word, row_word))
    next_at = builder.add(at, ir.Constant(_INT, 1))
    at.add_incoming(ir.Constant(_INT, 0), before)
    at.add_incoming(next_at, loop)
    for total, first, new in zip(sums, initial, new_sums, strict=True):
        total.add_incoming(first, before)
        total.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", next_at, words), loop, done)
    builder.position_at_end(done)
    return new_sums


def _splat_words(builder: Any, wide: Any, word: Any) -> list[Any]:
    """For each row, a register filled with one of its words."""
    pointer = builder.gep(wide, [word])
    return [_splat(builder, builder.load(builder.gep(pointer, [ir.Constant(_INT, _STRIDE * k)]))) for k in range(LANES)]


def _multiply_add(builder: Any, total: Any, packed_word: Any, row_word: Any) -> Any:
    """`total` plus, in each word, the products of the coordinates of both operands."""
    if BYTES:
        kind, name = ir.FunctionType(_WORDS, [_WORDS] * 3), f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"
        instruction = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        return builder.call(instruction, [total, packed_word, row_word])
    row_word, packed_word = builder.bitcast(row_word, _HALVES), builder.bitcast(packed_word, _HALVES)
    extended = ir.VectorType(_WORD, 2 * LANES)
    product = builder.mul(builder.sext(packed_word, extended), builder.sext(row_word, extended))
    # Sum of the two products of each pair, in the form that LLVM recognises as one instruction.
    even, odd = (
        builder.shuffle_vector(product, product, ir.Constant(_WORDS, list(range(first, 2 * LANES, 2))))
        for first in (0, 1)
    )
    return builder.add(total, builder.add(even, odd))


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_WORDS, [0] * LANES))


def _transpose(builder: Any, lines: list[Any]) -> list[Any]:
    """Lane l of line r becomes lane r of line l, by a perfect shuffle for each doubling of `LANES`."""
    half = LANES // 2
    masks = [
        ir.Constant(_WORDS, [lane for k in range(half) for lane in (first + k, LANES + first + k)])
        for first in (0, half)
    ]
    for _ in range(LANES.bit_length() - 1):
        lines = [builder.shuffle_vector(lines[n // 2], lines[n // 2 + half], masks[n % 2]) for n in range(LANES)]
    return lines
