"""Retrieval: the candidates to rank, from several sources as of a moment; the same for a request and a rebuilt list."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.history import History
from features.interest import weights
from features.log import F64, I8, I32, Kind
from features.moment import Items

SOURCES = ("again", "co_occurrence", "text", "popular", "new")
_TREND = 2
"""Half-life of popularity for retrieval: 7 days, see `features.decay.HALF_LIVES_S`."""


class Retrieved(NamedTuple):
    """item: int32[c], distinct rows of the catalogue. source: int8[c], into `SOURCES`, the first that offered it."""

    item: I32
    source: I8


def retrieve(items: Items, history: History, at: float, size: int) -> Retrieved:
    """At most `size` candidates for a user strictly before `at`: the best of each source in turn.

    Sources: what the user engaged with before, co-occurrence neighbours of his list, text neighbours of his interest
    vector, popular of late, newest. An item not yet available is never offered. Every source orders ties by row.
    Raises ValueError where `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; ask for at least 1 candidate")
    n = len(items.catalogue)
    available = ~(items.catalogue.available_from[:n] > at)
    taken = np.full(n, -1, np.int8)
    ranked = [_best(score, available, size) for score in _scores(items, history, at, n)]
    out: list[int] = []
    for place in range(size):
        for source, best in enumerate(ranked):
            if place < len(best) and taken[best[place]] < 0 and len(out) < size:
                taken[best[place]] = source
                out.append(int(best[place]))
        if len(out) == size:
            break
    item = np.array(out, np.int32)
    return Retrieved(item, taken[item])


def _best(score: F64, available: np.ndarray, size: int) -> I32:
    """Rows with a score above 0, best first, ties by row; at most `size`."""
    rows = np.flatnonzero((score > 0) & available)
    if len(rows) > size:
        cut = np.partition(score[rows], len(rows) - size)[len(rows) - size]
        rows = rows[score[rows] >= cut]
    order = np.argsort(-score[rows], kind="stable")
    return rows[order][:size].astype(np.int32)


def _scores(items: Items, history: History, at: float, n: int) -> list[F64]:
    """float64[n] for each of `SOURCES`; 0 or less, or NaN, is not offered."""
    known = history.item >= 0
    item = history.item[known]
    weight = weights(history.kind[known], np.maximum(at - history.at[known], 0.0)).astype(np.float64)
    again = np.bincount(item, weight, minlength=n)
    near = np.zeros(n)
    for j, w in zip(item, weight, strict=True):
        to = items.neighbours.item[j]
        near[to[to >= 0]] += w * items.neighbours.weight[j][to >= 0]
    everything = np.arange(n, dtype=np.int32)
    text = items.vectors.toward(everything, items.vectors.pooled(item, weight)).astype(np.float64)
    popular = items.state.engaged(at, _TREND)
    born = items.catalogue.available_from[:n]
    return [again, near, text, popular, np.where(born <= at, born, 0.0)]


def popularity(items: Items, candidates: I32, at: float) -> F64:
    """float64, like `candidates`: engagements of late, the recency-weighted popularity that baselines use."""
    out: F64 = items.state.of_items(candidates, at)[:, Kind.VIEW :, _TREND].sum(axis=1)
    return out
