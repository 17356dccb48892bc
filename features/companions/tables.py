"""`Companions`: the tables of a release that lead from an item to the items that go with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import F32, F64, I32
from features.catalogue import Catalogue
from features.companions.groups import Groups, baskets, sessions
from features.companions.pairs import combined, top_pairs
from features.companions.repurchase import repurchase_seconds
from features.log import Events
from features.neighbours import Neighbours
from features.text.vectors import Vectors

K = 50
"""Companions per item."""
SHRINKAGE = 5.0
ALIKE = 10
"""Items with similar text whose companions an item without baskets borrows."""
BY_DISTANCE: F64 = 0.8 ** np.arange(10.0)
TOGETHER = np.ones(1)


@dataclass(frozen=True)
class Companions:
    """Items that go with an item, from baskets and sessions of the log up to a time.

    Each table has int32[n + 1, K] items, best first, -1 if there are fewer, and float32[n + 1, K] weights in (0, 1], 0
    if there are fewer; the last row, the unknown item, has none. together: bought together. goes_with: bought together
    and not of the same category (complements). following: next in the session. repurchase_s: float32[n + 1], typical
    seconds until a user buys the item again, NaN if nobody ever bought anything twice.
    """

    together: Neighbours
    goes_with: Neighbours
    following: Neighbours
    repurchase_s: F32

    @classmethod
    def none(cls, n_items: int) -> Companions:
        """Companions before anything is logged."""
        nothing = Neighbours.none(n_items)
        return cls(nothing, nothing, nothing, np.full(n_items + 1, np.nan, np.float32))

    @classmethod
    def build(
        cls, catalogue: Catalogue, vectors: Vectors, events: Events, n_items: int, at: float, k: int = K
    ) -> Companions:
        """Companions at a time, from the events strictly before it; the newest `MAX_PER_USER` per user suffice."""
        past = events.before(at)
        bought, visited = baskets(past), sessions(past)
        apart = np.full(n_items, -1, np.int32)
        category = catalogue.category[:n_items]
        kind = np.where(category < len(catalogue.category_names), category, -1).astype(np.int32)
        moments = bought._replace(place=np.zeros_like(bought.place))
        return cls(
            _table(moments, vectors, n_items, k, TOGETHER, apart),
            _table(moments, vectors, n_items, k, TOGETHER, kind),
            _table(visited, vectors, n_items, k, BY_DISTANCE, apart),
            repurchase_seconds(past, catalogue.category, at),
        )


def _table(groups: Groups, vectors: Vectors, n: int, k: int, by_distance: F64, kind: I32) -> Neighbours:
    count = np.bincount(groups.item, minlength=n).astype(np.float64)
    by_item = np.argsort(groups.item, kind="stable")
    apart = np.full(n, -1, np.int32)
    item, weight = top_pairs(
        np.searchsorted(groups.item[by_item], np.arange(n + 1)),
        by_item,
        groups.group,
        groups.start,
        groups.item,
        groups.place,
        np.ones(len(groups.at)),
        by_distance,
        np.sqrt(count),
        np.sqrt(count),
        SHRINKAGE,
        kind,
        apart,
        k,
    )
    item, weight = np.vstack([item, np.full((1, k), -1, np.int32)]), np.vstack([weight, np.zeros((1, k), np.float32)])
    cold = np.flatnonzero((count == 0) & np.isfinite(vectors.scale[:n])).astype(np.int32)
    warm = np.flatnonzero((item[:n, 0] >= 0) & np.isfinite(vectors.scale[:n])).astype(np.int32)
    if len(cold) and len(warm):
        source, amount = _alike(vectors, cold, warm)
        start = np.arange(len(cold) + 1, dtype=np.int64) * source.shape[1]
        found = combined(start, source.ravel(), amount.ravel(), cold, item, weight, kind, apart, k)
        item[cold], weight[cold] = found
    return Neighbours(item, np.minimum(weight, np.float32(1.0)))


def _alike(vectors: Vectors, rows: I32, among: I32) -> tuple[I32, F64]:
    """int32[rows, m], float64[rows, m]: the items `among` with the most similar texts, and their shares."""
    m = min(ALIKE, len(among))
    found, share = np.empty((len(rows), m), np.int32), np.empty((len(rows), m))
    for first in range(0, len(rows), 256):
        block = slice(first, first + 256)
        cosine = vectors.cosines(rows[block], among)
        best = np.argsort(-cosine, axis=1, kind="stable")[:, :m]
        found[block] = among[best]
        share[block] = np.maximum(np.take_along_axis(cosine, best, axis=1), 0.0) / m
    return found, share
