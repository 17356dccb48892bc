"""LightGBM's model text as flat, checked arrays. Reads the text alone: whoever scores need not install LightGBM.

Only what a ranker's model contains is read: one sum of trees with constant leaves. Averaged forests, several classes
and linear leaves are refused by name. After `Forest.parse` every index is in range and every tree is a tree, so the
compiled code that walks them needs no checks; a damaged or hostile text ends in `ModelTextError`, not in a crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranker.compiled import compiled

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]

# LightGBM's kZeroThreshold, a float32 widened: a value this close to zero is zero, before any tree sees it.
ZERO = float(np.float32(1e-35))

# How a node decides. NUMBER: x <= threshold, NaN by `missing_left`. ZERO_MISSING: the same, and zero counts as NaN.
# CATEGORY: the whole part of x is in the node's set; everything else, NaN included, goes right.
NUMBER, ZERO_MISSING, CATEGORY = 0, 1, 2

# Node counts and child numbers are held in int32 while LightGBM itself stops at 131,072 leaves.
MAX_LEAVES = 131_072


class ModelTextError(ValueError):
    """The text is not a model this package can score; the message names the tree, the field and what was found."""


class UncoveredModel(ModelTextError):
    """A sound model of a kind that is not read here: LightGBM itself can score it."""


class Forest(NamedTuple):
    """A sum of trees. Tree t owns nodes `node_start[t]:node_start[t + 1]`, its root first, and leaves likewise.

    Per node: feature int32 (column), kind uint8 (`NUMBER`, `ZERO_MISSING` or
    `CATEGORY`), threshold float64 (already moved so that no value needs flushing to zero), missing_left bool, left and
    right int32 (node of the same tree, or `~leaf`), set_start and set_end int64 (the words of `category_bits` with a
    category node's set; equal elsewhere), value float64 (LightGBM's `internal_value`, six digits), leaves_from,
    leaves_middle int32 (leaves under the left child, counted from left to right, are `leaves_from:leaves_middle`).
    Per leaf: leaf_value float64, leaf_place int32 (its number counted from left to right).
    """

    node_start: I64
    leaf_start: I64
    feature: I32
    kind: U8
    threshold: F64
    missing_left: NDArray[np.bool_]
    left: I32
    right: I32
    set_start: I64
    set_end: I64
    category_bits: U32
    value: F64
    leaves_from: I32
    leaves_middle: I32
    leaf_value: F64
    leaf_place: I32

    @classmethod
    def parse(cls, text: str) -> tuple[tuple[str, ...], Forest]:
        """The features' names in column order, and the forest, of LightGBM's model text (versions v3 and v4).

        Raises `ModelTextError` with the place of the fault.
        """
        head, blocks = _blocks(text)
        names = _checked_names(head)
        trees = [_Tree.parse(number, block, len(names)) for number, block in enumerate(blocks)]
        node_start = _starts([len(tree.left) for tree in trees])
        leaf_start = _starts([len(tree.leaf_value) for tree in trees])
        left, right = _joined(trees, "left", np.int32), _joined(trees, "right", np.int32)
        leaves_from, leaves_middle, leaf_place, broken = _walk(node_start, leaf_start, left, right)
        if broken >= 0:
            raise ModelTextError(f"tree {broken}: left_child and right_child do not form one tree over its leaves")
        word_start = _starts([len(tree.category_bits) for tree in trees])
        return names, cls(
            node_start=node_start,
            leaf_start=leaf_start,
            feature=_joined(trees, "feature", np.int32),
            kind=_joined(trees, "kind", np.uint8),
            threshold=_joined(trees, "threshold", np.float64),
            missing_left=_joined(trees, "missing_left", np.bool_),
            left=left,
            right=right,
            set_start=_joined(trees, "set_start", np.int64) + np.repeat(word_start[:-1], np.diff(node_start)),
            set_end=_joined(trees, "set_end", np.int64) + np.repeat(word_start[:-1], np.diff(node_start)),
            category_bits=_joined(trees, "category_bits", np.uint32),
            value=_joined(trees, "value", np.float64),
            leaves_from=leaves_from,
            leaves_middle=leaves_middle,
            leaf_value=_joined(trees, "leaf_value", np.float64),
            leaf_place=leaf_place,
        )


@dataclass(frozen=True)
class _Tree:
    """One tree's arrays as in `Forest`, with word numbers counted from its own first."""

    feature: I64
    kind: U8
    threshold: F64
    missing_left: NDArray[np.bool_]
    left: I64
    right: I64
    set_start: I64
    set_end: I64
    category_bits: I64
    value: F64
    leaf_value: F64

    @classmethod
    def parse(cls, number: int, block: dict[str, str], features: int) -> _Tree:
        where = f"tree {number}"
        if block.get("is_linear", "0") != "0":
            raise UncoveredModel(f"{where}: is_linear=1: linear leaves are not covered; train with linear_tree=false")
        leaves = int(_column(where, block, "num_leaves", np.int64, 1)[0])
        if not 1 <= leaves <= MAX_LEAVES:
            raise ModelTextError(f"{where}: num_leaves={leaves} is outside 1 to {MAX_LEAVES}")
        nodes = leaves - 1
        feature = _column(where, block, "split_feature", np.int64, nodes)
        strange = feature[(feature < 0) | (feature >= features)]
        if len(strange):
            raise ModelTextError(f"{where}: split_feature {strange[0]} is outside the model's {features} features")
        decision = _column(where, block, "decision_type", np.int64, nodes)
        left, right = (_column(where, block, side, np.int64, nodes) for side in ("left_child", "right_child"))
        for side, child in (("left_child", left), ("right_child", right)):
            if ((child < -leaves) | (child >= nodes)).any():
                raise ModelTextError(f"{where}: {side} points outside its {nodes} nodes and {leaves} leaves")
        # +inf is no damage: it is how a split between NaN and everything else is written.
        threshold = _column(where, block, "threshold", np.float64, nodes)
        if np.isnan(threshold).any():
            raise ModelTextError(f"{where}: threshold holds nan, expected numbers")
        kind, missing_left = _decisions(where, decision, threshold)
        set_start, set_end, bits = _category_sets(where, block, kind, threshold)
        return cls(
            feature=feature,
            kind=kind,
            threshold=_without_flush(threshold),
            missing_left=missing_left,
            left=left,
            right=right,
            set_start=set_start,
            set_end=set_end,
            category_bits=bits,
            value=_finite(where, block, "internal_value", nodes),
            leaf_value=_finite(where, block, "leaf_value", leaves),
        )


def _blocks(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The header's fields, and those of each tree in order."""
    if not text.startswith("tree\n"):
        raise ModelTextError(f"not a LightGBM model text: it begins with {text[:20]!r}, where 'tree' is expected")
    body, end, _ = text.partition("\nend of trees")
    if not end:
        raise ModelTextError("the model text has no 'end of trees': it was cut off; write it again")
    head, *parts = body.split("\nTree=")
    fields = _fields(head)
    sizes = len(fields.get("tree_sizes", "").split())
    if sizes != len(parts):
        raise ModelTextError(f"the header announces {sizes} trees (tree_sizes), the text holds {len(parts)}")
    return fields, [_fields(f"Tree={part}") for part in parts]


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in block.splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _checked_names(head: dict[str, str]) -> tuple[str, ...]:
    """The feature names, once the header is seen to announce nothing but a plain sum of trees."""
    if head.get("version") not in ("v3", "v4"):
        raise UncoveredModel(f"version={head.get('version')}: only v3 and v4 of LightGBM's model text are covered")
    for field in ("num_class", "num_tree_per_iteration"):
        if head.get(field) != "1":
            raise ModelTextError(f"{field}={head.get(field)}: only models with one output are covered")
    # The averaging of boosting=rf is announced by this bare word, without a value.
    if "average_output" in head:
        raise UncoveredModel("average_output: averaged forests (boosting=rf) are not covered; train with boosting=gbdt")
    features = int(_column("header", head, "max_feature_idx", np.int64, 1)[0]) + 1
    names = tuple(head.get("feature_names", "").split())
    if len(names) != features:
        raise ModelTextError(f"header: {len(names)} feature_names for max_feature_idx={features - 1}")
    return names


def _column(where: str, block: dict[str, str], field: str, dtype: Any, length: int) -> NDArray[Any]:
    """The numbers of one field, of the length its tree needs."""
    if field not in block:
        raise ModelTextError(f"{where}: {field} is missing")
    try:
        numbers = np.array(block[field].split(), dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise ModelTextError(f"{where}: {field}: {error}") from None
    if len(numbers) != length:
        raise ModelTextError(f"{where}: {field} has {len(numbers)} values, expected {length}")
    return numbers


def _finite(where: str, block: dict[str, str], field: str, length: int) -> F64:
    numbers = _column(where, block, field, np.float64, length)
    if not np.isfinite(numbers).all():
        raise ModelTextError(f"{where}: {field} holds {numbers[~np.isfinite(numbers)][0]}, expected finite numbers")
    return numbers


def _decisions(where: str, decision: I64, threshold: F64) -> tuple[U8, NDArray[np.bool_]]:
    """`kind` and `missing_left` from `decision_type`: bit 0 category, bit 1 default left, bits 2 and 3 missing type."""
    category, default_left, missing = decision & 1 == 1, decision & 2 == 2, decision >> 2
    strange = decision[(decision < 0) | (missing > 2)]
    if len(strange):
        raise ModelTextError(f"{where}: decision_type {strange[0]} is unknown")
    kind = np.where(category, CATEGORY, np.where(missing == 1, ZERO_MISSING, NUMBER)).astype(np.uint8)
    # Without a missing type NaN counts as 0.
    return kind, np.where(missing == 0, threshold >= 0, default_left) & ~category


def _category_sets(where: str, block: dict[str, str], kind: U8, threshold: F64) -> tuple[I64, I64, I64]:
    """Where each category node's set begins and ends in the tree's words, and those words."""
    sets = int(_column(where, block, "num_cat", np.int64, 1)[0])
    start = np.zeros(len(kind), np.int64)
    end = start.copy()
    if sets < 0:
        raise ModelTextError(f"{where}: num_cat={sets} is negative")
    if sets == 0 and not (kind == CATEGORY).any():
        return start, end, start[:0]
    bounds = _column(where, block, "cat_boundaries", np.int64, sets + 1)
    bits = _column(where, block, "cat_threshold", np.int64, int(bounds[-1]))
    if bounds[0] != 0 or (np.diff(bounds) < 0).any() or (bits < 0).any() or (bits >= 2**32).any():
        raise ModelTextError(f"{where}: cat_boundaries or cat_threshold is damaged")
    at = np.flatnonzero(kind == CATEGORY)
    number = threshold[at]
    if (number < 0).any() or (number >= sets).any():
        raise ModelTextError(f"{where}: a category node names a set outside its num_cat={sets}")
    start[at], end[at] = bounds[number.astype(np.int64)], bounds[number.astype(np.int64) + 1]
    return start, end, bits


def _without_flush(threshold: F64) -> F64:
    """Thresholds t' such that `x <= t'` is what LightGBM answers after it has set |x| <= ZERO to 0."""
    flushed = np.where((threshold >= 0) & (threshold < ZERO), ZERO, threshold)
    return np.where((threshold >= -ZERO) & (threshold < 0), np.nextafter(-ZERO, -np.inf), flushed)


def _starts(lengths: list[int]) -> I64:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _joined(trees: list[_Tree], field: str, dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(getattr(tree, field) for tree in trees)]).astype(dtype)


@compiled
def _walk(node_start: I64, leaf_start: I64, left: I32, right: I32) -> tuple[I32, I32, I32, int]:
    """Leaves in their order from left to right, and the number of the first tree that is none (-1: all are)."""
    leaves_from = np.zeros(len(left), np.int32)
    leaves_middle = np.zeros(len(left), np.int32)
    leaf_place = np.full(leaf_start[-1], -1, np.int32)
    stack = np.empty(2 * len(left) + 2, np.int32)
    seen = np.zeros(len(left), np.bool_)
    for tree in range(len(node_start) - 1):
        base, leaf_base = node_start[tree], leaf_start[tree]
        nodes, place, depth = node_start[tree + 1] - base, 0, 1
        # A node is on the stack as its number, and once more as `nodes + number` when its left side is done.
        stack[0] = 0 if nodes > 0 else -1
        while depth > 0:
            depth -= 1
            at = stack[depth]
            if at < 0:
                if leaf_place[leaf_base + ~at] >= 0:
                    return leaves_from, leaves_middle, leaf_place, tree
                leaf_place[leaf_base + ~at] = place
                place += 1
            elif at >= nodes:
                leaves_middle[base + at - nodes] = place
            else:
                if seen[base + at]:
                    return leaves_from, leaves_middle, leaf_place, tree
                seen[base + at] = True
                leaves_from[base + at] = place
                stack[depth], stack[depth + 1], stack[depth + 2] = right[base + at], nodes + at, left[base + at]
                depth += 3
        if place != nodes + 1:
            return leaves_from, leaves_middle, leaf_place, tree
    return leaves_from, leaves_middle, leaf_place, -1
