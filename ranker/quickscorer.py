"""Fast tree scoring: finds the exit leaves of many rows with bit masks instead of walking the trees.

Based on Lucchese et al., "QuickScorer" (SIGIR 2015), and its vectorised form (SIGIR 2016). Each tree has a word with
one bit per leaf, from left to right. A node that sends the row right clears the bits of the leaves on its left. After
all nodes are evaluated, the lowest bit still set is the exit leaf. The order of evaluation does not matter, so a block
of rows is compared with one node in a few vector instructions, without data-dependent branches. Differences from the
papers:

- *Missing values are resolved in the columns.* A node that sends NaN left reads a copy of its feature with -inf for
  NaN; a node that sends NaN right reads a copy with +inf. The same applies if zero counts as missing. A category node
  has a column of its own, which is +inf outside its set. Every node then evaluates `x > threshold`, and the loop over
  trees needs no special cases to be exact.
- *Trees are evaluated one at a time*, with the tree's word in registers. The papers sort nodes by threshold across
  trees to stop early. Here, a node with the same outcome for all rows of the request (mostly user and context features)
  is folded into the tree's initial word once per request, so no word is written back and read again.
- *Float32 rows are compared in float32*, against the greatest float32 not above the threshold. For a float32 x the
  outcome is the same, at half the width.
- *Trees with more than 32 leaves use several words.* The first word with a bit set determines the leaf.
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

# Rows per block: two AVX-512 or four AVX2 registers of words, so that two instruction chains overlap.
ROWS = 32
# Leaves per word.
BITS = 32
# Maximum number of column values per chunk of rows, chosen to fit into the L2 cache.
CHUNK_VALUES = 1 << 18

# Kinds of columns. NAN_LOW, NAN_HIGH: the feature with NaN replaced by -inf or +inf. ZERO_LOW, ZERO_HIGH: the same,
# with zero also replaced. NAN_ONLY, ZERO_ONLY: +inf if the value is missing, else 0, for nodes whose threshold is +inf.
# OUTSIDE_SET: 0 if the category is in the node's set, else +inf.
NAN_LOW, NAN_HIGH, ZERO_LOW, ZERO_HIGH, NAN_ONLY, ZERO_ONLY, OUTSIDE_SET = range(7)


class Layout(NamedTuple):
    """The arrays of a forest in the order in which the kernel reads them.

    Per column: column_feature int32, column_kind uint8, set_start and set_end int64 (words of category_bits).
    Tree t has words `tree_words[t]:tree_words[t + 1]` and leaves `leaf_start[t]:leaf_start[t + 1]`, from left to right.
    Word w has entries `word_start[w]:word_start[w + 1]`, one per node. If the value in the entry's column (int32) is
    above its threshold, the word is ANDed with its mask (uint32).
    """

    column_feature: I32
    column_kind: U8
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
    """A forest prepared for `score`. Thresholds are stored twice: for float64 rows, and rounded down for float32."""

    layout: Layout
    threshold: F64
    threshold32: F32

    @classmethod
    def of(cls, forest: Forest) -> QuickScorer:
        """Prepares a forest of any size."""
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
        """float64[n]: sums of leaf values in tree order. rows: float32 or float64 [n, features], C-contiguous."""
        scores = np.zeros(len(rows))
        threshold = self.threshold32 if rows.dtype == np.float32 else self.threshold
        chunk = max(CHUNK_VALUES // max(len(self.layout.column_feature), 1) // ROWS, 1) * ROWS
        for start in range(0, len(rows), chunk):
            _score(self.layout, threshold, rows[start : start + chunk], scores[start : start + chunk])
        return scores


def _columns_of(forest: Forest) -> tuple[tuple[I32, U8, I64, I64], I32, F64]:
    """((feature, kind, set_start, set_end) of each distinct column, column of each node, threshold of each node)."""
    kind = np.where(forest.missing_left, NAN_LOW, NAN_HIGH) + 2 * (forest.kind == ZERO_MISSING)
    only_missing = np.isposinf(forest.threshold) & ~forest.missing_left
    kind[only_missing] = np.where(forest.kind[only_missing] == ZERO_MISSING, ZERO_ONLY, NAN_ONLY)
    kind[forest.kind == CATEGORY] = OUTSIDE_SET
    key = np.stack([forest.feature, kind, _set_numbers(forest)], axis=1).reshape(-1, 3)
    unique, first, column_of = np.unique(key, axis=0, return_index=True, return_inverse=True)
    feature, column_kind = unique[:, 0].astype(np.int32), unique[:, 1].astype(np.uint8)
    threshold = np.where(kind >= NAN_ONLY, 0.0, forest.threshold)
    return (
        (feature, column_kind, forest.set_start[first], forest.set_end[first]),
        column_of.reshape(-1).astype(np.int32),
        threshold,
    )


def _set_numbers(forest: Forest) -> I64:
    """int64[nodes]: the number of each node's category set, equal for equal sets; 0 for other nodes."""
    numbers: dict[bytes, int] = {}
    out = np.zeros(len(forest.kind), np.int64)
    for node in np.flatnonzero(forest.kind == CATEGORY):
        bits = forest.category_bits[forest.set_start[node] : forest.set_end[node]].tobytes()
        out[node] = numbers.setdefault(bits, len(numbers))
    return out


def _entries(leaves_from: I32, leaves_middle: I32) -> tuple[I64, I64]:
    """(node, word within its tree) of each entry. A node has one entry per word that contains leaves on its left."""
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
    initial, kept_start, column, kept_threshold, mask = _fold(layout, threshold, lowest, highest)
    sums = np.zeros(ROWS)
    leaf = np.zeros(ROWS, np.uint32)
    for block in range(len(values)):
        cells = values[block]
        sums[:] = 0.0
        for tree in range(len(layout.tree_words) - 1):
            # From the last word to the first, so that the leftmost remaining leaf overwrites the others.
            for word in range(layout.tree_words[tree + 1] - 1, layout.tree_words[tree] - 1, -1):
                first_leaf = BITS * (word - layout.tree_words[tree])
                first, last = kept_start[word], kept_start[word + 1]
                _narrow(cells, column, kept_threshold, mask, first, last, initial[word], first_leaf, leaf)
            # Unsigned, so that numba omits its handling of negative indices.
            base = np.uint64(layout.leaf_start[tree])
            for row in range(ROWS):
                sums[row] += layout.leaf_value[base + np.uint64(leaf[row])]
        offset = block * ROWS
        for row in range(min(ROWS, len(rows) - offset)):
            scores[offset + row] = sums[row]


@compiled
def _fill(layout: Layout, rows: Any) -> Any:
    """(values, lowest, highest): values [blocks, columns, ROWS], padded with the last row, and each column's range."""
    columns = len(layout.column_feature)
    values = np.empty(((len(rows) + ROWS - 1) // ROWS, columns, ROWS), rows.dtype)
    lowest = np.full(columns, np.inf, rows.dtype)
    highest = np.full(columns, -np.inf, rows.dtype)
    for block in range(len(values)):
        for column in range(columns):
            feature, kind = layout.column_feature[column], layout.column_kind[column]
            low, high = lowest[column], highest[column]
            for lane in range(ROWS):
                x = rows[min(block * ROWS + lane, len(rows) - 1), feature]
                if kind == OUTSIDE_SET:
                    x = _outside_set(layout, column, x)
                elif np.isnan(x) or (kind in (ZERO_LOW, ZERO_HIGH, ZERO_ONLY) and abs(x) <= ZERO):
                    x = -np.inf if kind in (NAN_LOW, ZERO_LOW) else np.inf
                elif kind >= NAN_ONLY:
                    x = 0.0
                values[block, column, lane] = x
                low = min(low, x)
                high = max(high, x)
            lowest[column], highest[column] = low, high
    return values, lowest, highest


@compiled
def _outside_set(layout: Layout, column: int, x: float) -> float:
    """0 if x, truncated towards zero, is in the column's set, else +inf. No set contains NaN or negative values."""
    words = layout.set_end[column] - layout.set_start[column]
    if not (x > -1.0 and x < 32.0 * words):
        return np.inf
    category = int(x)
    word = layout.category_bits[layout.set_start[column] + category // 32]
    inside = (word >> np.uint32(category % 32)) & np.uint32(1)
    return 0.0 if inside else np.inf


@compiled
def _fold(layout: Layout, threshold: Any, lowest: Any, highest: Any) -> Any:
    """(initial, kept_start, column, kept_threshold, mask): initial words, and the entries that differ between rows."""
    words = len(layout.word_start) - 1
    initial = np.empty(words, np.uint32)
    kept_start = np.zeros(words + 1, np.int64)
    column = np.empty(len(threshold) + 1, np.int32)
    kept_threshold = np.empty(len(threshold) + 1, threshold.dtype)
    mask = np.empty(len(threshold) + 1, np.uint32)
    count = 0
    for word in range(words):
        bits = np.uint32(0xFFFFFFFF)
        for entry in range(layout.word_start[word], layout.word_start[word + 1]):
            at, limit = layout.column[entry], threshold[entry]
            # Written always, counted only if kept: this avoids a branch.
            column[count], kept_threshold[count], mask[count] = at * ROWS, limit, layout.mask[entry]
            all_right = lowest[at] > limit
            bits &= layout.mask[entry] if all_right else np.uint32(0xFFFFFFFF)
            count += (not all_right) and highest[at] > limit
        initial[word] = bits
        kept_start[word + 1] = count
    return initial, kept_start, column, kept_threshold, mask


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
    initial: Any,
    first_leaf: Any,
    leaf: Any,
) -> Any:
    """Applies entries `first:last` to the words of a block of rows and finds the exit leaves.

    For each row, the word starts as `initial`. If a bit is still set at the end, `leaf` becomes `first_leaf` plus the
    number of the lowest bit. cells: [columns, ROWS] of the block. column (times ROWS), limit, mask: arrays over
    entries. Written as LLVM IR because numba does not keep the words of a loop over rows in registers.
    """
    arguments = (cells, column, limit, mask, first, last, initial, first_leaf, leaf)
    real = ir.DoubleType() if cells.dtype == types.float64 else ir.FloatType()

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arrays = {
            n: context.make_array(signature.args[n])(context, builder, value=values[n]).data for n in (0, 1, 2, 3, 8)
        }
        start, end, initial, first_leaf = values[4:8]
        before = builder.basic_block
        loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
        full = _splat(builder, initial)
        builder.cbranch(builder.icmp_signed("<", start, end), loop, done)

        builder.position_at_end(loop)
        entry, word = builder.phi(start.type), builder.phi(WORDS)
        narrowed = _apply_entry(builder, arrays, entry, word, ir.VectorType(real, ROWS))
        next_entry = builder.add(entry, ir.Constant(entry.type, 1))
        for phi, entering, returning in ((entry, start, next_entry), (word, full, narrowed)):
            phi.add_incoming(entering, before)
            phi.add_incoming(returning, loop)
        builder.cbranch(builder.icmp_signed("<", next_entry, end), loop, done)

        builder.position_at_end(done)
        final = builder.phi(WORDS)
        final.add_incoming(full, before)
        final.add_incoming(narrowed, loop)
        exit_leaf = builder.add(_lowest_bit(builder, final), _splat(builder, builder.trunc(first_leaf, WORD)))
        leaves = builder.bitcast(arrays[8], WORDS.as_pointer())
        any_bit = builder.icmp_unsigned("!=", final, ir.Constant(WORDS, [0] * ROWS))
        builder.store(builder.select(any_bit, exit_leaf, builder.load(leaves, align=4)), leaves, align=4)
        return context.get_dummy_value()

    return types.void(*arguments), code


_narrow: Any = intrinsic(_narrow_in_llvm)


def _apply_entry(builder: Any, arrays: dict[int, Any], entry: Any, word: Any, kind: Any) -> Any:
    """The words after an entry: ANDed with its mask in the rows whose value is above its limit."""
    cells, column, limit, mask = (arrays[n] for n in range(4))
    offset = builder.sext(builder.load(builder.gep(column, [entry])), entry.type)
    # numba aligns arrays to the value, not to the vector.
    x = builder.load(builder.bitcast(builder.gep(cells, [offset]), kind.as_pointer()), align=4)
    right = builder.fcmp_ordered(">", x, _splat(builder, builder.load(builder.gep(limit, [entry]))))
    return builder.select(right, builder.and_(word, _splat(builder, builder.load(builder.gep(mask, [entry])))), word)


def _splat(builder: Any, value: Any) -> Any:
    """A vector with `value` in every row."""
    first = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, ROWS), ir.Undefined), value, ir.Constant(WORD, 0)
    )
    return builder.shuffle_vector(first, first, ir.Constant(WORDS, [0] * ROWS))


def _lowest_bit(builder: Any, word: Any) -> Any:
    name = f"llvm.cttz.v{ROWS}i32"
    flag = ir.IntType(1)
    count = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(WORDS, [WORDS, flag]), name)
    return builder.call(count, [word, ir.Constant(flag, 0)])
