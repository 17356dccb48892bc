"""Scoring of LightGBM models without LightGBM, bit-identical to `Booster.predict`.

`Booster.predict` would take nine tenths of the time of a request, and importing LightGBM imports pandas. `Trees` reads
the model text and needs neither. `score` uses the fast algorithm of `ranker/quickscorer.py`. `traverse` walks the trees
node by node, as LightGBM does; the tests compare `score` with it and with LightGBM. Not supported, and rejected when
the text is read: linear leaves, and more than one output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranker.compiled import compiled
from ranker.model_text import CATEGORY, ZERO, ZERO_MISSING, Forest
from ranker.quickscorer import QuickScorer

F64 = NDArray[np.float64]
Rows = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Trees:
    """A model for scoring. Immutable, so threads can share it. names: the features in column order.

    The first call of each method compiles it, which takes seconds once per machine; the result is cached on disk.
    """

    names: tuple[str, ...]
    forest: Forest
    quick_scorer: QuickScorer

    @classmethod
    def parse(cls, model_text: str) -> Trees:
        """Reads LightGBM's model text. Raises `ModelTextError` naming the tree and field that are not supported."""
        return cls.of(*Forest.parse(model_text))

    @classmethod
    def of(cls, names: tuple[str, ...], forest: Forest) -> Trees:
        """Prepares a forest for scoring. names: its features in column order."""
        return cls(names, forest, QuickScorer.of(forest))

    @property
    def used_columns(self) -> frozenset[str]:
        """The features that any tree splits on."""
        return frozenset(self.names[k] for k in np.unique(self.forest.feature).tolist())

    def score(self, rows: Rows) -> F64:
        """float64[n]: the result of `Booster.predict(rows, raw_score=True)`, summed over trees in the same order.

        rows: float32 or float64 [n, features]; NaN if missing, infinities allowed. Raises `ValueError` for any other
        shape or dtype.
        """
        return self.quick_scorer.score(checked(rows, len(self.names)))

    def traverse(self, rows: Rows) -> F64:
        """The result of `score`, computed node by node: slower, but a simple reference for tests."""
        return _traverse(self.forest, checked(rows, len(self.names)))

    def contributions(self, rows: Rows) -> F64:
        """float64[n, features + 1]: contribution of each feature to each row's score; the last column is the bias.

        Path attribution (Saabas 2014, "Interpreting random forests"): each step from a node to its child changes the
        expected score, and the change is attributed to the feature that the node splits on. The columns add up to
        `score` within 1e-9. Only features on the path get a share. Unlike SHAP values, splits near the leaves get more.
        """
        return _contributions(self.forest, checked(rows, len(self.names)))


def checked(rows: Rows, features: int) -> Rows:
    """The rows as compiled code needs them. Raises `ValueError` if their shape or dtype is not that of a model."""
    if rows.dtype not in (np.float32, np.float64):
        raise ValueError(f"rows are {rows.dtype}, expected float32 or float64")
    if rows.ndim != 2 or rows.shape[1] != features:
        raise ValueError(f"rows have shape {rows.shape}, the model expects (n, {features})")
    # Read-only arrays are copied: numba treats them as another type and would compile again during a request.
    return np.require(rows, requirements=["C", "W", "A"])


@compiled
def _goes_left(forest: Forest, node: int, x: float) -> bool:
    kind = forest.kind[node]
    if kind == CATEGORY:
        # The category is x truncated towards zero. No set has NaN, negative values, or values beyond the last word.
        words = forest.set_end[node] - forest.set_start[node]
        if not (x > -1.0 and x < 32.0 * words):
            return False
        category = int(x)
        return bool((forest.category_bits[forest.set_start[node] + category // 32] >> (category % 32)) & 1 == 1)
    if np.isnan(x) or (kind == ZERO_MISSING and abs(x) <= ZERO):
        return bool(forest.missing_left[node])
    return bool(x <= forest.threshold[node])


@compiled
def _traverse(forest: Forest, rows: Rows) -> F64:
    scores = np.zeros(len(rows))
    for tree in range(len(forest.node_start) - 1):
        base, leaf_base = forest.node_start[tree], forest.leaf_start[tree]
        root = 0 if forest.node_start[tree + 1] > base else -1
        for row in range(len(rows)):
            at = root
            while at >= 0:
                node = base + at
                left = _goes_left(forest, node, np.float64(rows[row, forest.feature[node]]))
                at = forest.left[node] if left else forest.right[node]
            scores[row] += forest.leaf_value[leaf_base + ~at]
    return scores


@compiled
def _contributions(forest: Forest, rows: Rows) -> F64:
    contributions = np.zeros((len(rows), rows.shape[1] + 1))
    for tree in range(len(forest.node_start) - 1):
        base, leaf_base = forest.node_start[tree], forest.leaf_start[tree]
        root = 0 if forest.node_start[tree + 1] > base else -1
        for row in range(len(rows)):
            at = root
            expected = forest.value[base] if at >= 0 else forest.leaf_value[leaf_base]
            contributions[row, -1] += expected
            while at >= 0:
                node = base + at
                left = _goes_left(forest, node, np.float64(rows[row, forest.feature[node]]))
                at = forest.left[node] if left else forest.right[node]
                after = forest.value[base + at] if at >= 0 else forest.leaf_value[leaf_base + ~at]
                contributions[row, forest.feature[node]] += after - expected
                expected = after
    return contributions
