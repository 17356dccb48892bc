"""Many rows through many trees at once: exit leaves found by bit masks instead of by walking.

After Lucchese et al., "QuickScorer" (SIGIR 2015) and its vectorised form (SIGIR 2016). Each tree keeps a word with one
bit for each leaf, from left to right. A node whose answer is "right" clears the leaves on its left; when all nodes have
spoken, the lowest bit left is the exit leaf. Nodes may speak in any order, so a block of rows is compared with one node
in a few vector instructions, with no jump that depends on data. What differs from the papers, and why:

- *Columns answer for missing values.* A node that sends NaN left reads a copy of its feature with -inf for NaN, one
  that sends it right a copy with +inf; likewise where zero counts as missing. A category node reads a column of its
  own, +inf outside its set. So every node is `x > threshold`, and exactness is settled before the loop over trees.
- *Trees stay whole*: a tree's word lives in registers while its nodes speak. The papers sort nodes by threshold across
  trees in order to stop early; here a node on which all rows of the request agree (user and context features, mostly)
  is folded into the word the tree starts with, once a request: no word is ever written back and read again.
- *Float32 rows are compared in float32*, against the greatest float32 not above the threshold: for a float32 x the
  answer is the same, at half the width.
- *More than 32 leaves take more words*; the first word with a bit left decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from ranker.compiled import compiled
from ranker.model_text import CATEGORY, ZERO, ZERO_MISSING, Forest

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
Rows = NDArray[np.float32] | NDArray[np.float64]

# Rows to a block: two AVX-512 or four AVX2 registers of words, so that two chains of instructions overlap.
ROWS = 32
# Leaves to a word.
BITS = 32
# What a chunk of rows may take as columns, in values: stays near the processor's second cache.
CHUNK_VALUES = 1 << 18

# What a column holds for its feature. The first four: its values, with NaN (the second pair: NaN and zero) as -inf or
# as +inf. Then 0 for a value and +inf for what is missing, for the nodes whose threshold is +inf itself; and 0 for what
# is in a set of categories, +inf for what is not.
NAN_LOW, NAN_HIGH, ZERO_LOW, ZERO_HIGH, NAN_ONLY, ZERO_ONLY, OUTSIDE_SET = range(7)


class Layout(NamedTuple):
    """The arrays of a forest in the order the kernel reads them.

    Per column: column_feature int32, column_holds uint8, set_start and set_end int64 (words of category_bits).
    Tree t owns words `tree_words[t]:tree_words[t + 1]` and leaves `leaf_start[t]:leaf_start[t + 1]`, left to right.
    Word w is narrowed by entries `word_start[w]:word_start[w + 1]`: where the entry's column, int32, is above its
    threshold, only the leaves of its mask, uint32, are left.
    """

    column_feature: I32
    column_holds: U8
    set_start: I64
    set_end: I64
    category_bits: U32
    tree_words: I64
    word_start: I64
    column: I32
    mask: U32
    leaf_start: I64
    leaf_value: F64


@dataclass(frozen=True)
class QuickScorer:
    """A forest laid out for `score`. The thresholds are held twice: for float64 rows, and rounded down for float32."""

    layout: Layout
    threshold: F64
    threshold32: F32

    @classmethod
    def of(cls, forest: Forest) -> QuickScorer:
        """The layout of a forest of any size."""
        columns, column_of, threshold = _columns_of(forest)
        trees = np.repeat(np.arange(len(forest.node_start) - 1), np.diff(forest.node_start))
        tree_words = np.concatenate([[0], np.cumsum(-(-np.diff(forest.leaf_start) // BITS))])
        node, word = _entries(forest.leaves_from, forest.leaves_middle)
        word_of_all = tree_words[trees[node]] + word
        order = np.argsort(word_of_all, kind="stable")
        node, word = node[order], word[order]
        low = np.clip(forest.leaves_from[node] - BITS * word, 0, BITS).astype(np.uint64)
        high = np.clip(forest.leaves_middle[node] - BITS * word, 0, BITS).astype(np.uint64)
        cleared = (np.uint64(1) << high) - (np.uint64(1) << low)
        threshold = threshold[node]
        leaf_value = np.empty_like(forest.leaf_value)
        leaf_value[np.repeat(forest.leaf_start[:-1], np.diff(forest.leaf_start)) + forest.leaf_place] = (
            forest.leaf_value
        )
        layout = Layout(
            *columns,
            category_bits=forest.category_bits,
            tree_words=tree_words,
            word_start=np.searchsorted(word_of_all[order], np.arange(tree_words[-1] + 1)),
            column=column_of[node],
            mask=(~cleared).astype(np.uint32),
            leaf_start=forest.leaf_start,
            leaf_value=leaf_value,
        )
        return cls(layout, threshold, _rounded_down(threshold))

    def score(self, rows: Rows) -> F64:
        """float64[n]: the sums of leaf values, trees in order. rows: float32 or float64 [n, features], C-contiguous."""
        scores = np.zeros(len(rows))
        threshold = self.threshold32 if rows.dtype == np.float32 else self.threshold
        chunk = max(CHUNK_VALUES // max(len(self.layout.column_feature), 1) // ROWS, 1) * ROWS
        for start in range(0, len(rows), chunk):
            _score(self.layout, threshold, rows[start : start + chunk], scores[start : start + chunk])
        return scores


def _columns_of(forest: Forest) -> tuple[tuple[I32, U8, I64, I64], I32, F64]:
    """The columns the nodes ask, each once (feature, what it holds, set); each node's column, and threshold there."""
    holds = np.where(forest.missing_left, NAN_LOW, NAN_HIGH) + 2 * (forest.kind == ZERO_MISSING)
    only = np.isposinf(forest.threshold) & ~forest.missing_left
    holds[only] = np.where(forest.kind[only] == ZERO_MISSING, ZERO_ONLY, NAN_ONLY)
    holds[forest.kind == CATEGORY] = OUTSIDE_SET
    key = np.stack([forest.feature, holds, _same_sets(forest)], axis=1).reshape(-1, 3)
    unique, first, column_of = np.unique(key, axis=0, return_index=True, return_inverse=True)
    feature, held = unique[:, 0].astype(np.int32), unique[:, 1].astype(np.uint8)
    threshold = np.where(holds >= NAN_ONLY, 0.0, forest.threshold)
    return (
        (feature, held, forest.set_start[first], forest.set_end[first]),
        column_of.reshape(-1).astype(np.int32),
        threshold,
    )


def _same_sets(forest: Forest) -> I64:
    """One number for each node, equal for equal category sets; 0 for nodes without."""
    numbers: dict[bytes, int] = {}
    same = np.zeros(len(forest.kind), np.int64)
    for node in np.flatnonzero(forest.kind == CATEGORY):
        bits = forest.category_bits[forest.set_start[node] : forest.set_end[node]].tobytes()
        same[node] = numbers.setdefault(bits, len(numbers))
    return same


def _entries(leaves_from: I32, leaves_middle: I32) -> tuple[I64, I64]:
    """Node and word (within its tree) of each entry: a node speaks once for each word its left leaves touch."""
    first = leaves_from // BITS
    words = (leaves_middle - 1) // BITS - first + 1
    node = np.repeat(np.arange(len(words)), words)
    nth = np.arange(len(node)) - np.repeat(np.cumsum(words) - words, words)
    return node, first[node] + nth


def _rounded_down(threshold: F64) -> F32:
    """The greatest float32 not above each threshold."""
    with np.errstate(over="ignore", under="ignore"):
        nearest = threshold.astype(np.float32)
        return np.where(nearest > threshold, np.nextafter(nearest, np.float32(-np.inf)), nearest)


@compiled
def _score(layout: Layout, threshold: Any, rows: Any, scores: F64) -> None:
    values, lowest, highest = _fill(layout, rows)
    begin, kept_start, column, kept, mask = _fold(layout, threshold, lowest, highest)
    sums = np.zeros(ROWS)
    leaf = np.zeros(ROWS, np.uint32)
    for block in range(len(values)):
        cells = values[block]
        sums[:] = 0.0
        for tree in range(len(layout.tree_words) - 1):
            # From the last word to the first: the leftmost leaf that is left has the last say.
            for word in range(layout.tree_words[tree + 1] - 1, layout.tree_words[tree] - 1, -1):
                place = BITS * (word - layout.tree_words[tree])
                first, last = kept_start[word], kept_start[word + 1]
                _narrow(cells, column, kept, mask, first, last, begin[word], place, leaf)
            # Unsigned, so that numba leaves out its care for negative numbers.
            base = np.uint64(layout.leaf_start[tree])
            for row in range(ROWS):
                sums[row] += layout.leaf_value[base + np.uint64(leaf[row])]
        offset = block * ROWS
        for row in range(min(ROWS, len(rows) - offset)):
            scores[offset + row] = sums[row]


@compiled
def _fill(layout: Layout, rows: Any) -> Any:
    """The columns, [blocks, columns, ROWS], the last block filled up with its last row; and each column's range."""
    columns = len(layout.column_feature)
    values = np.empty(((len(rows) + ROWS - 1) // ROWS, columns, ROWS), rows.dtype)
    lowest = np.full(columns, np.inf, rows.dtype)
    highest = np.full(columns, -np.inf, rows.dtype)
    for block in range(len(values)):
        for column in range(columns):
            feature, holds = layout.column_feature[column], layout.column_holds[column]
            low, high = lowest[column], highest[column]
            for lane in range(ROWS):
                x = rows[min(block * ROWS + lane, len(rows) - 1), feature]
                if holds == OUTSIDE_SET:
                    x = _outside(layout, column, x)
                elif np.isnan(x) or (holds in (ZERO_LOW, ZERO_HIGH, ZERO_ONLY) and abs(x) <= ZERO):
                    x = -np.inf if holds in (NAN_LOW, ZERO_LOW) else np.inf
                elif holds >= NAN_ONLY:
                    x = 0.0
                values[block, column, lane] = x
                low = min(low, x)
                high = max(high, x)
            lowest[column], highest[column] = low, high
    return values, lowest, highest


@compiled
def _outside(layout: Layout, column: int, x: float) -> float:
    """0 where the whole part of x, towards zero, is in the column's set, else +inf: NaN and negatives are in no set."""
    words = layout.set_end[column] - layout.set_start[column]
    if not (x > -1.0 and x < 32.0 * words):
        return np.inf
    category = int(x)
    word = layout.category_bits[layout.set_start[column] + category // 32]
    inside = (word >> np.uint32(category % 32)) & np.uint32(1)
    return 0.0 if inside else np.inf


@compiled
def _fold(layout: Layout, threshold: Any, lowest: Any, highest: Any) -> Any:
    """The word each tree starts with, and the entries on which the rows do not all agree."""
    words = len(layout.word_start) - 1
    begin = np.empty(words, np.uint32)
    kept_start = np.zeros(words + 1, np.int64)
    column = np.empty(len(threshold) + 1, np.int32)
    kept = np.empty(len(threshold) + 1, threshold.dtype)
    mask = np.empty(len(threshold) + 1, np.uint32)
    count = 0
    for word in range(words):
        left = np.uint32(0xFFFFFFFF)
        for entry in range(layout.word_start[word], layout.word_start[word + 1]):
            at, limit = layout.column[entry], threshold[entry]
            # Written always and counted if kept: no jump for the processor to guess.
            column[count], kept[count], mask[count] = at * ROWS, limit, layout.mask[entry]
            all_right = lowest[at] > limit
            left &= layout.mask[entry] if all_right else np.uint32(0xFFFFFFFF)
            count += (not all_right) and highest[at] > limit
        begin[word] = left
        kept_start[word + 1] = count
    return begin, kept_start, column, kept, mask


WORD = ir.IntType(32)
WORDS = ir.VectorType(WORD, ROWS)


def _narrow_in_llvm(
    typing: Any,
    cells: Any,
    column: Any,
    limit: Any,
    mask: Any,
    first: Any,
    last: Any,
    begin: Any,
    place: Any,
    leaf: Any,
) -> Any:
    """For each row of a block: if a bit is left of `begin`, set `leaf` to `place` plus the lowest bit left.

    cells: [columns, ROWS] of the block. column (times ROWS), limit, mask: entries, of which `first:last` speak.
    Written in LLVM's own terms because numba does not keep the words of a loop over rows in registers.
    """
    arguments = (cells, column, limit, mask, first, last, begin, place, leaf)
    real = ir.DoubleType() if cells.dtype == types.float64 else ir.FloatType()

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        arrays = {
            n: context.make_array(signature.args[n])(context, builder, value=given[n]).data for n in (0, 1, 2, 3, 8)
        }
        start, end, begin, place = given[4:8]
        before = builder.basic_block
        loop, done = builder.append_basic_block("speak"), builder.append_basic_block("decide")
        full = _splat(builder, begin)
        builder.cbranch(builder.icmp_signed("<", start, end), loop, done)

        builder.position_at_end(loop)
        at, word = builder.phi(start.type), builder.phi(WORDS)
        narrowed = _speak(builder, arrays, at, word, ir.VectorType(real, ROWS))
        following = builder.add(at, ir.Constant(at.type, 1))
        for phi, entering, returning in ((at, start, following), (word, full, narrowed)):
            phi.add_incoming(entering, before)
            phi.add_incoming(returning, loop)
        builder.cbranch(builder.icmp_signed("<", following, end), loop, done)

        builder.position_at_end(done)
        final = builder.phi(WORDS)
        final.add_incoming(full, before)
        final.add_incoming(narrowed, loop)
        found = builder.add(_lowest_bit(builder, final), _splat(builder, builder.trunc(place, WORD)))
        leaves = builder.bitcast(arrays[8], WORDS.as_pointer())
        some = builder.icmp_unsigned("!=", final, ir.Constant(WORDS, [0] * ROWS))
        builder.store(builder.select(some, found, builder.load(leaves, align=4)), leaves, align=4)
        return context.get_dummy_value()

    return types.void(*arguments), code


_narrow: Any = intrinsic(_narrow_in_llvm)


def _speak(builder: Any, arrays: dict[int, Any], at: Any, word: Any, kind: Any) -> Any:
    """The words after entry `at`: where its column is above its limit, only the bits of its mask."""
    cells, column, limit, mask = (arrays[n] for n in range(4))
    offset = builder.sext(builder.load(builder.gep(column, [at])), at.type)
    # Aligned as numba aligns arrays: to the value, not to the vector.
    x = builder.load(builder.bitcast(builder.gep(cells, [offset]), kind.as_pointer()), align=4)
    right = builder.fcmp_ordered(">", x, _splat(builder, builder.load(builder.gep(limit, [at]))))
    return builder.select(right, builder.and_(word, _splat(builder, builder.load(builder.gep(mask, [at])))), word)


def _splat(builder: Any, value: Any) -> Any:
    """A vector with `value` for every row."""
    one = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, ROWS), ir.Undefined), value, ir.Constant(WORD, 0)
    )
    return builder.shuffle_vector(one, one, ir.Constant(WORDS, [0] * ROWS))


def _lowest_bit(builder: Any, word: Any) -> Any:
    name = f"llvm.cttz.v{ROWS}i32"
    flag = ir.IntType(1)
    count = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(WORDS, [WORDS, flag]), name)
    return builder.call(count, [word, ir.Constant(flag, 0)])
