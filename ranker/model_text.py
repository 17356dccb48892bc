"""Parser of LightGBM's model text into flat, validated arrays. Does not need LightGBM.

After `read`, every index is in range, every tree is a tree of limited depth, and every value is finite and small enough
that no sum overflows. The compiled code that walks the trees therefore needs no checks. A damaged or malicious text
raises `ModelTextError` and cannot crash the process, block it, or give a score that is not finite.

`Forest` covers the models that a ranker uses: a sum of trees with constant leaves. Linear leaves are validated as well,
but scored by LightGBM. LightGBM aborts the process on an invalid text, so it never gets the text of a release:
`Model.plain_text` writes the validated numbers as a new text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranker.compiled import compiled

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]

# LightGBM's kZeroThreshold, a float32 converted to float64. LightGBM sets values this close to zero to 0 on input.
ZERO = float(np.float32(1e-35))

# Kinds of split. NUMBER: left if x <= threshold, NaN according to `missing_left`. ZERO_MISSING: the same, with zero
# treated as NaN. CATEGORY: left if the integer part of x is in the node's set; all other values, including NaN, go
# right.
NUMBER, ZERO_MISSING, CATEGORY = 0, 1, 2

# LightGBM's own limit of leaves per tree. Node counts and child numbers are stored in int32.
MAX_LEAVES = 131_072

# A node may have one bit mask per 32 leaves below it, so that a tree grown as a chain would need memory quadratic in
# its text. LightGBM grows trees of 255 leaves at most 254 deep.
MAX_DEPTH = 512

# Limit of leaf values, expected values and linear coefficients. It fits into a float32, and a sum of 1e30 over any
# number of trees, also multiplied by the largest float32, is finite in float64.
MAX_VALUE = 1e30

# Characters of the numbers that LightGBM writes. Python would also read 1_000 and digits of other scripts.
_NUMBERS = re.compile(r"[0-9eEinfa.+\- ]*")


class ModelTextError(ValueError):
    """The text is not a model that this package can score. The message names the tree, the field and the value."""


class UncoveredModel(ModelTextError):
    """A valid model of a kind that is not supported here but that LightGBM can score."""


class Model(NamedTuple):
    """A validated model. names: the features in column order. forest: the model without the functions of linear leaves.
    trees: the fields of each tree. linear: the first tree with linear leaves, None if no tree has them."""

    names: tuple[str, ...]
    forest: Forest
    trees: list[dict[str, str]]
    linear: int | None

    @property
    def uncovered(self) -> str:
        """The part of the model that `forest` does not cover, and the remedy; empty if there is none."""
        if self.linear is None:
            return ""
        return f"tree {self.linear}: is_linear=1: linear leaves are not supported; train with linear_tree=false"

    @property
    def linear_columns(self) -> set[int]:
        """The columns that linear leaves multiply."""
        linear = (block for block in self.trees if block.get("is_linear") == "1")
        return {int(column) for block in linear for column in block["leaf_features"].split()}

    def plain_text(self) -> str:
        """A model text for LightGBM with the same scores, written from the validated numbers of this model.

        No byte of the original text is copied, so it does not matter whether LightGBM would read it differently. It
        has no feature names and no node statistics, so it is for scores only.
        """
        trees = [_plain_tree(number, block) for number, block in enumerate(self.trees)]
        columns = range(len(self.names))
        head = [
            "tree",
            "version=v4",
            "num_class=1",
            "num_tree_per_iteration=1",
            "label_index=0",
            f"max_feature_idx={len(self.names) - 1}",
            f"feature_names={' '.join(f'f{n}' for n in columns)}",
            f"feature_infos={' '.join('none' for _ in columns)}",
            f"tree_sizes={' '.join(str(len(tree)) for tree in trees)}",
        ]
        return "\n".join(head) + "\n\n" + "".join(trees) + "end of trees\n"


class Forest(NamedTuple):
    """A sum of trees. Tree t has nodes `node_start[t]:node_start[t + 1]`, root first, and leaves from `leaf_start`.

    Per node:

    - feature int32: the column. kind uint8: `NUMBER`, `ZERO_MISSING` or `CATEGORY`.
    - threshold float64: adjusted so that values near zero need not be set to 0 first. missing_left bool.
    - left, right int32: a node of the same tree, or `~leaf`.
    - set_start, set_end int64: the words of `category_bits` with the node's category set; equal for other nodes.
    - value float64: LightGBM's `internal_value`, six digits.
    - leaves_from, leaves_middle int32: the leaves under the left child are `leaves_from:leaves_middle`, counted from
      left to right.

    Per leaf: leaf_value float64; leaf_place int32, the number of the leaf counted from left to right.
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
        """(feature names in column order, forest) from LightGBM's model text.

        Raises `ModelTextError` as `read`, and `UncoveredModel` for linear leaves.
        """
        model = read(text)
        if model.uncovered:
            raise UncoveredModel(model.uncovered)
        return model.names, model.forest


def read(text: str) -> Model:
    """Validates LightGBM's model text, versions v3 and v4.

    `average_output` (boosting=rf) is ignored: the raw score of an averaged forest is a sum, too.
    Raises `ModelTextError` naming the tree and the field that are invalid.
    """
    head, blocks = _blocks(text)
    names = _checked_names(head)
    trees = [_Tree.parse(number, block, len(names)) for number, block in enumerate(blocks)]
    node_start = _starts([len(tree.left) for tree in trees])
    leaf_start = _starts([len(tree.leaf_value) for tree in trees])
    left, right = _concatenate(trees, "left", np.int32), _concatenate(trees, "right", np.int32)
    leaves_from, leaves_middle, leaf_place, broken, deep = _walk(node_start, leaf_start, left, right, MAX_DEPTH)
    if deep >= 0:
        raise ModelTextError(
            f"tree {deep}: left_child and right_child make it more than {MAX_DEPTH} levels deep; train with max_depth"
        )
    if broken >= 0:
        raise ModelTextError(f"tree {broken}: left_child and right_child do not form one tree over all its leaves")
    word_start = _starts([len(tree.category_bits) for tree in trees])
    forest = Forest(
        node_start=node_start,
        leaf_start=leaf_start,
        feature=_concatenate(trees, "feature", np.int32),
        kind=_concatenate(trees, "kind", np.uint8),
        threshold=_concatenate(trees, "threshold", np.float64),
        missing_left=_concatenate(trees, "missing_left", np.bool_),
        left=left,
        right=right,
        set_start=_concatenate(trees, "set_start", np.int64) + np.repeat(word_start[:-1], np.diff(node_start)),
        set_end=_concatenate(trees, "set_end", np.int64) + np.repeat(word_start[:-1], np.diff(node_start)),
        category_bits=_concatenate(trees, "category_bits", np.uint32),
        value=_concatenate(trees, "value", np.float64),
        leaves_from=leaves_from,
        leaves_middle=leaves_middle,
        leaf_value=_concatenate(trees, "leaf_value", np.float64),
        leaf_place=leaf_place,
    )
    linear = (number for number, block in enumerate(blocks) if block.get("is_linear") == "1")
    return Model(names, forest, blocks, next(linear, None))


@dataclass(frozen=True)
class _Tree:
    """Arrays of one tree as in `Forest`. set_start and set_end are relative to the tree's own `category_bits`."""

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
        leaves = int(_column(where, block, "num_leaves", np.int64, 1)[0])
        if not 1 <= leaves <= MAX_LEAVES:
            raise ModelTextError(f"{where}: num_leaves={leaves} is outside 1 to {MAX_LEAVES}")
        nodes = leaves - 1
        feature = _column(where, block, "split_feature", np.int64, nodes)
        invalid = feature[(feature < 0) | (feature >= features)]
        if len(invalid):
            raise ModelTextError(f"{where}: split_feature {invalid[0]} is outside the model's {features} features")
        decision = _column(where, block, "decision_type", np.int64, nodes)
        left, right = (_column(where, block, side, np.int64, nodes) for side in ("left_child", "right_child"))
        for side, child in (("left_child", left), ("right_child", right)):
            if ((child < -leaves) | (child >= nodes)).any():
                raise ModelTextError(f"{where}: {side} points outside its {nodes} nodes and {leaves} leaves")
        # +inf is valid: LightGBM writes it for a split between NaN and all other values.
        threshold = _column(where, block, "threshold", np.float64, nodes)
        if np.isnan(threshold).any():
            raise ModelTextError(f"{where}: threshold contains nan, expected numbers")
        kind, missing_left = _decisions(where, decision, threshold)
        set_start, set_end, bits = _category_sets(where, block, kind, threshold)
        _check_linear(where, block, leaves, features)
        return cls(
            feature=feature,
            kind=kind,
            threshold=_without_zero_flush(threshold),
            missing_left=missing_left,
            left=left,
            right=right,
            set_start=set_start,
            set_end=set_end,
            category_bits=bits,
            value=_limited(where, block, "internal_value", nodes),
            leaf_value=_limited(where, block, "leaf_value", leaves),
        )


def _blocks(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """(fields of the header, fields of each tree in order)."""
    if not text.startswith("tree\n"):
        raise ModelTextError(f"not a LightGBM model text: it begins with {text[:20]!r}, expected 'tree'")
    body, end, _ = text.partition("\nend of trees")
    if not end:
        raise ModelTextError("the model text has no 'end of trees', so it was cut off; save the model again")
    head, *blocks = body.split("\nTree=")
    fields = _fields(head)
    sizes = len(fields.get("tree_sizes", "").split())
    if sizes != len(blocks):
        raise ModelTextError(f"header: tree_sizes lists {sizes} trees, but the text contains {len(blocks)}")
    return fields, [_fields(f"Tree={block}") for block in blocks]


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in block.splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _checked_names(head: dict[str, str]) -> tuple[str, ...]:
    """The feature names, after checking that the header describes a plain sum of trees."""
    if head.get("version") not in ("v3", "v4"):
        raise ModelTextError(
            f"header: version={head.get('version')}: only v3 and v4 of LightGBM's model text are supported; save the "
            "model with LightGBM 3 or newer"
        )
    for field in ("num_class", "num_tree_per_iteration"):
        if head.get(field) != "1":
            raise ModelTextError(f"header: {field}={head.get(field)}: only models with one output are supported")
    features = int(_column("header", head, "max_feature_idx", np.int64, 1)[0]) + 1
    names = tuple(head.get("feature_names", "").split())
    if len(names) != features:
        raise ModelTextError(f"header: feature_names has {len(names)} names for max_feature_idx={features - 1}")
    return names


def _column(where: str, block: dict[str, str], field: str, dtype: Any, length: int) -> NDArray[Any]:
    """The numbers of one field. Raises `ModelTextError` if there are not `length` of them."""
    if field not in block:
        raise ModelTextError(f"{where}: {field} is missing")
    if not _NUMBERS.fullmatch(block[field]):
        invalid = next(part for part in block[field].split(" ") if not _NUMBERS.fullmatch(part))
        raise ModelTextError(f"{where}: {field} contains {invalid[:40]!r}, expected numbers")
    try:
        numbers = np.array(block[field].split(), dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise ModelTextError(f"{where}: {field}: {error}") from None
    if len(numbers) != length:
        raise ModelTextError(f"{where}: {field} has {len(numbers)} values, expected {length}")
    return numbers


def _limited(where: str, block: dict[str, str], field: str, length: int) -> F64:
    """The numbers of one field. Raises `ModelTextError` if one is not finite or is beyond `MAX_VALUE`."""
    numbers = _column(where, block, field, np.float64, length)
    invalid = numbers[~(np.abs(numbers) <= MAX_VALUE)]
    if len(invalid):
        raise ModelTextError(
            f"{where}: {field} contains {invalid[0]}, expected numbers from {-MAX_VALUE:g} to {MAX_VALUE:g}"
        )
    return numbers


def _check_linear(where: str, block: dict[str, str], leaves: int, features: int) -> None:
    """Raises `ModelTextError` if the linear functions of the leaves are invalid; most models have none."""
    linear = block.get("is_linear", "0")
    if linear not in ("0", "1"):
        raise ModelTextError(f"{where}: is_linear={linear[:40]}, expected 0 or 1")
    if linear == "0":
        return
    _limited(where, block, "leaf_const", leaves)
    count = _column(where, block, "num_features", np.int64, leaves)
    invalid = count[(count < 0) | (count > features)]
    if len(invalid):
        raise ModelTextError(f"{where}: num_features {invalid[0]} is outside 0 to {features}")
    feature = _column(where, block, "leaf_features", np.int64, int(count.sum()))
    invalid = feature[(feature < 0) | (feature >= features)]
    if len(invalid):
        raise ModelTextError(f"{where}: leaf_features {invalid[0]} is outside the model's {features} features")
    _limited(where, block, "leaf_coeff", int(count.sum()))


def _plain_tree(number: int, block: dict[str, str]) -> str:
    """The text of a validated tree, written from its numbers."""

    def values(field: str, dtype: Any) -> list[Any]:
        numbers: list[Any] = np.array(block[field].split(), dtype).tolist()
        return numbers

    def lines(dtype: Any, *fields: str) -> list[str]:
        return [f"{field}=" + " ".join(map(repr, values(field, dtype))) for field in fields]

    out = [f"Tree={number}", *lines(np.int64, "num_leaves", "num_cat", "split_feature", "decision_type")]
    out += [*lines(np.int64, "left_child", "right_child"), *lines(np.float64, "threshold", "leaf_value")]
    if values("num_cat", np.int64) != [0]:
        out += lines(np.int64, "cat_boundaries", "cat_threshold")
    if block.get("is_linear") == "1":
        out += ["is_linear=1", *lines(np.float64, "leaf_const"), *lines(np.int64, "num_features")]
        ends = np.cumsum(values("num_features", np.int64)).tolist()
        for field, dtype in (("leaf_features", np.int64), ("leaf_coeff", np.float64)):
            of_leaves = values(field, dtype)
            # LightGBM ends each number, and then each leaf, with a space.
            leaves = (of_leaves[start:end] for start, end in pairwise([0, *ends]))
            out.append(f"{field}=" + "".join("".join(f"{v!r} " for v in leaf) + " " for leaf in leaves))
    return "\n".join([*out, "shrinkage=1"]) + "\n\n\n"


def _decisions(where: str, decision: I64, threshold: F64) -> tuple[U8, NDArray[np.bool_]]:
    """`kind` and `missing_left` from `decision_type`: bit 0 category, bit 1 default left, bits 2 and 3 missing type."""
    category, default_left, missing = decision & 1 == 1, decision & 2 == 2, decision >> 2
    invalid = decision[(decision < 0) | (missing > 2)]
    if len(invalid):
        raise ModelTextError(f"{where}: decision_type {invalid[0]} is unknown")
    kind = np.where(category, CATEGORY, np.where(missing == 1, ZERO_MISSING, NUMBER)).astype(np.uint8)
    # Without a missing type, LightGBM treats NaN as 0.
    return kind, np.where(missing == 0, threshold >= 0, default_left) & ~category


def _category_sets(where: str, block: dict[str, str], kind: U8, threshold: F64) -> tuple[I64, I64, I64]:
    """(set_start, set_end, words): the range of each category node's set in the tree's words, and the words."""
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
    nodes = np.flatnonzero(kind == CATEGORY)
    # The threshold of a category node is the number of its set.
    number = threshold[nodes]
    if (number < 0).any() or (number >= sets).any():
        raise ModelTextError(f"{where}: threshold of a category node refers to a set outside num_cat={sets}")
    start[nodes], end[nodes] = bounds[number.astype(np.int64)], bounds[number.astype(np.int64) + 1]
    return start, end, bits


def _without_zero_flush(threshold: F64) -> F64:
    """Thresholds t' such that `x <= t'` gives LightGBM's decision, which first sets values with |x| <= ZERO to 0."""
    flushed = np.where((threshold >= 0) & (threshold < ZERO), ZERO, threshold)
    return np.where((threshold >= -ZERO) & (threshold < 0), np.nextafter(-ZERO, -np.inf), flushed)


def _starts(lengths: list[int]) -> I64:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _concatenate(trees: list[_Tree], field: str, dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(getattr(tree, field) for tree in trees)]).astype(dtype)


@compiled
def _walk(node_start: I64, leaf_start: I64, left: I32, right: I32, max_depth: int) -> tuple[I32, I32, I32, int, int]:
    """(leaves_from, leaves_middle, leaf_place, first invalid tree, first tree that is too deep); -1 for none."""
    leaves_from = np.zeros(len(left), np.int32)
    leaves_middle = np.zeros(len(left), np.int32)
    leaf_place = np.full(leaf_start[-1], -1, np.int32)
    stack = np.empty(2 * len(left) + 2, np.int32)
    level = np.zeros(len(left), np.int32)  # from 1 at the root; 0 until the parent is visited
    for tree in range(len(node_start) - 1):
        base, leaf_base = node_start[tree], leaf_start[tree]
        nodes, place, depth = node_start[tree + 1] - base, 0, 1
        # A node is pushed as its number and, to be visited again after its left subtree, as `nodes + number`.
        stack[0] = 0 if nodes > 0 else -1
        if nodes > 0:
            level[base] = 1
        while depth > 0:
            depth -= 1
            at = stack[depth]
            if at < 0:
                if leaf_place[leaf_base + ~at] >= 0:
                    return leaves_from, leaves_middle, leaf_place, tree, -1
                leaf_place[leaf_base + ~at] = place
                place += 1
            elif at >= nodes:
                leaves_middle[base + at - nodes] = place
            else:
                if level[base + at] > max_depth:
                    return leaves_from, leaves_middle, leaf_place, -1, tree
                for child in (left[base + at], right[base + at]):
                    if child >= 0:
                        if level[base + child] > 0:  # it already has a parent, or is the root
                            return leaves_from, leaves_middle, leaf_place, tree, -1
                        level[base + child] = level[base + at] + 1
                leaves_from[base + at] = place
                stack[depth], stack[depth + 1], stack[depth + 2] = right[base + at], nodes + at, left[base + at]
                depth += 3
        if place != nodes + 1:
            return leaves_from, leaves_middle, leaf_place, tree, -1
    return leaves_from, leaves_middle, leaf_place, -1, -1
