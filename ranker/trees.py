"""Scores of a LightGBM model without LightGBM: the same leaf for every input, the same sum to the last bit.

`Booster.predict` takes nine tenths of a request, and importing LightGBM brings pandas into the service. `Trees` reads
the model's text and needs neither. `score` runs the fast layout of `ranker/quickscorer.py`; `traverse` walks node by
node, as LightGBM does, and is what the fast one is tested against, next to LightGBM itself. Left out, and refused by
name when the text is read: linear leaves, averaged forests (boosting=rf), more than one output.
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
    """A model ready to score; `names` are the features, in column order. Nothing in it changes: threads may share it.

    The first call of each method compiles it for the processor at hand: seconds once on a machine, kept on disk.
    """

    names: tuple[str, ...]
    forest: Forest
    quick: QuickScorer

    @classmethod
    def parse(cls, model_text: str) -> Trees:
        """The model in LightGBM's model text. Raises `ModelTextError` naming the tree and field it cannot take."""
        names, forest = Forest.parse(model_text)
        return cls(names, forest, QuickScorer.of(forest))

    @property
    def asked(self) -> frozenset[str]:
        """The features that some tree asks for."""
        return frozenset(self.names[k] for k in np.unique(self.forest.feature).tolist())

    def score(self, rows: Rows) -> F64:
        """float64[n]: what `Booster.predict(rows, raw_score=True)` answers, added up in the same order of trees.

        rows: float32 or float64 [n, features], NaN for missing, infinities allowed. Raises `ValueError` on another
        shape or dtype.
        """
        return self.quick.score(self._checked(rows))

    def traverse(self, rows: Rows) -> F64:
        """The same as `score`, node by node: slower, and plain enough to be believed."""
        return _traverse(self.forest, self._checked(rows))

    def contributions(self, rows: Rows) -> F64:
        """float64[n, features + 1]: what each feature added to each row's score; the last column is the bias.

        Saabas' path attribution (2014, "Interpreting random forests"): each step from a node to its child moves the
        expected score, and the move belongs to the feature the node asks. The columns add up to `score` within 1e-9.
        It credits the features met on the path and, unlike SHAP values, gives more to splits near the leaves.
        """
        return _contributions(self.forest, self._checked(rows))

    def _checked(self, rows: Rows) -> Rows:
        if rows.dtype not in (np.float32, np.float64):
            raise ValueError(f"rows are {rows.dtype}, expected float32 or float64")
        if rows.ndim != 2 or rows.shape[1] != len(self.names):
            raise ValueError(f"rows have shape {rows.shape}, the model expects (n, {len(self.names)})")
        # Read-only arrays are copied: to numba they are another type, to be compiled anew in the middle of a request.
        return np.require(rows, requirements=["C", "W", "A"])


@compiled
def _goes_left(forest: Forest, node: int, x: float) -> bool:
    kind = forest.kind[node]
    if kind == CATEGORY:
        # The whole part, towards zero; NaN, negative or beyond the set's last word is in no set.
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
    share = np.zeros((len(rows), rows.shape[1] + 1))
    for tree in range(len(forest.node_start) - 1):
        base, leaf_base = forest.node_start[tree], forest.leaf_start[tree]
        root = 0 if forest.node_start[tree + 1] > base else -1
        for row in range(len(rows)):
            at = root
            expected = forest.value[base] if at >= 0 else forest.leaf_value[leaf_base]
            share[row, -1] += expected
            while at >= 0:
                node = base + at
                left = _goes_left(forest, node, np.float64(rows[row, forest.feature[node]]))
                at = forest.left[node] if left else forest.right[node]
                after = forest.value[base + at] if at >= 0 else forest.leaf_value[leaf_base + ~at]
                share[row, forest.feature[node]] += after - expected
                expected = after
    return share
