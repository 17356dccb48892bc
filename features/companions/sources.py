"""Candidates for the items on the page or in the cart (the seeds), from tables that lead from an item to others.

A seed without a row in a table has none there: `Found.has` says so, and `features/retrieval.py` fills in for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import F64, I32, Bool
from features.companions.tables import BY_DISTANCE
from features.history import History, session
from features.neighbours import Neighbours
from features.text.vectors import Vectors


class Anchors(NamedTuple):
    """The items that sources start from. item: int32[s], `-1` unknown. amount: float64[s], their weights."""

    item: I32
    amount: F64


class Found(NamedTuple):
    """Candidates of a source. row: int32[r], ascending. score: float64[r] above 0. has: bool[s], whether each anchor
    has any."""

    row: I32
    score: F64
    has: Bool


Near = tuple[I32, F64]
"""Rows with similar text to one anchor, ascending, and their cosines above 0."""


def of_seeds(seeds: I32) -> Anchors:
    """Anchors of equal weight."""
    return Anchors(seeds, np.ones(len(seeds)))


def of_session(history: History, at: float) -> Anchors:
    """The distinct items of the user's current session, newest first; none if it has ended."""
    engaged = session(history.at, history.shown_at, at).engaged
    item = history.item[:engaged]
    item = item[item >= 0]
    _, first = np.unique(item, return_index=True)
    item = item[np.sort(first)]
    return Anchors(item, BY_DISTANCE ** np.arange(len(item), dtype=np.float64))


def from_table(table: Neighbours | None, anchors: Anchors) -> Found:
    """The rows that a table lists for the anchors, with their weights times the anchors' summed."""
    if table is None:
        return Found(np.empty(0, np.int32), np.empty(0), np.zeros(len(anchors.item), np.bool_))
    item = table.item[anchors.item]
    weight = table.weight[anchors.item].astype(np.float64) * anchors.amount[:, None]
    listed = (item >= 0) & (weight > 0)
    row, index = np.unique(item[listed], return_inverse=True)
    score: F64 = np.bincount(index, weight[listed], minlength=len(row)).astype(np.float64)
    has: Bool = np.asarray(listed.any(axis=1))
    return Found(row.astype(np.int32), score, has)


def substitutes(neighbours: Neighbours, vectors: Vectors, anchors: Anchors, near: Sequence[Near]) -> Found:
    """Rows that are like the anchors: by text, or because the same users engaged with them.

    The score is the sum of the largest cosine with an anchor's text and of the co-occurrence with the anchors, which is
    a cosine too. near: of each of the first anchors.
    """
    together = from_table(neighbours, anchors)
    row = np.unique(np.concatenate([together.row, *(rows for rows, _ in near)])).astype(np.int32)
    score = np.zeros(len(row))
    score[np.searchsorted(row, together.row)] = together.score
    known = anchors.item[anchors.item >= 0]
    if len(known) and len(row):
        cosine = np.nan_to_num(vectors.cosines(row, known)).max(axis=1).astype(np.float64)
        score += np.maximum(cosine, 0.0)
    by_text = np.array([len(rows) > 0 for rows, _ in near], np.bool_)
    has = together.has.copy()
    has[: len(by_text)] |= by_text
    return Found(row, score, has)


def near_any(near: Sequence[Near], chosen: Bool) -> tuple[I32, F64]:
    """Rows with similar text to any of the chosen anchors, ascending, and their largest cosine. chosen: bool[s]."""
    parts = [pair for pair, wanted in zip(near, chosen.tolist(), strict=False) if wanted]
    if not parts:
        return np.empty(0, np.int32), np.empty(0)
    row, index = np.unique(np.concatenate([rows for rows, _ in parts]), return_inverse=True)
    cosine = np.zeros(len(row))
    np.maximum.at(cosine, index, np.concatenate([cosines for _, cosines in parts]))
    return row.astype(np.int32), cosine
