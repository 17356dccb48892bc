"""Weights between items by ridge regression of each item on all others (EASE; Steck, WWW 2019), cut to a budget.

The weights of n items are an n x n matrix of both signs. Only 32 numbers and 64 single weights of an item have a place
in a release and in the time of a request. The largest weights alone lose a lot where histories are long: many small
ones add up to a user's taste. So the matrix is split into a part of low rank, which holds these, and the largest
weights of what remains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.arrays import F32, F64, I32, I64
from features.kernels.best import keep_best
from features.kernels.compiled import compiled
from features.kernels.prefetch import AHEAD, prefetch
from features.kernels.slots import find, first_slot, slots_of
from features.log import Events, Kind
from features.neighbours import Neighbours

MOST_ITEMS = 2048
"""Number of items in the model, those with most users: its matrix takes 34 MB, and a second to fit."""
PENALTY = 300.0
"""Chosen on validation, as all of these; see docs/decisions.md."""
RANK = 32
WEIGHTS = 64
"""Number of single weights of an item, those of the largest absolute value beyond the part of low rank."""
MEMORY = 3.0
"""Visits after which an engagement has half of its weight in the recent score."""
_OFFERED = 20
"""Number of items that each of the newest items of a list retrieves."""
_NEWEST = 10
_COMPARED = 256
"""Number of items of a large model whose scores are compared, of those that the part of low rank scores best."""
_ITERATIONS = 6
"""Of the subspace iteration, which finds the part of low rank (Halko, Martinsson and Tropp, SIAM Review, 2011)."""


@compiled
def _shared_users(start: I64, item: I32, n: int) -> F32:
    """float32[n, n]: number of users that each two items share; the diagonal counts the users of each item.

    start: int64[users + 1]; the items of user u are `item[start[u] : start[u + 1]]`, each once. Counts are exact, so
    that their order does not matter.
    """
    shared = np.zeros((n, n), np.float32)
    for u in range(len(start) - 1):
        for p in range(start[u], start[u + 1]):
            for q in range(start[u], start[u + 1]):
                shared[item[p], item[q]] += 1.0
    return shared


def _symmetric(shared: F32, penalty: float) -> tuple[F64, F64]:
    """(float64[n, n], float64[n]): M and d, so that the weight of item i for item j is `M_ij d_i / d_j`.

    M is symmetric, which the weights are not, with a diagonal of 0. With P the inverse of the counts plus the penalty,
    the weights are `-P_ij / P_jj`, and d is the root of the diagonal of P.
    """
    inverse = np.linalg.inv(shared.astype(np.float64) + penalty * np.eye(len(shared)))
    scale = np.sqrt(np.diag(inverse))
    out = -inverse / np.outer(scale, scale)
    np.fill_diagonal(out, 0.0)
    return out, scale


def _low_rank(matrix: F64, rank: int) -> tuple[F64, F64]:
    """(float64[n, r], float64[r]): the eigenvectors and eigenvalues of a symmetric matrix, the largest by absolute
    value; r is at most `rank`."""
    n = len(matrix)
    basis = np.random.default_rng(0).normal(size=(n, min(rank + 8, n)))
    for _ in range(_ITERATIONS):
        basis, _ = np.linalg.qr(matrix @ basis)
    value, vector = np.linalg.eigh(basis.T @ matrix @ basis)
    largest = np.argsort(-np.abs(value), kind="stable")[:rank]
    return basis @ vector[:, largest], value[largest]


@compiled
def _largest(rest: F64, scale: F64, k: int) -> tuple[I32, F32]:
    """(int32[n, k], float32[n, k]): of each item j, the items i with the largest `|rest_ij|`, and their weights."""
    n = len(rest)
    item, weight = np.full((n, k), -1, np.int32), np.zeros((n, k), np.float32)
    size, touched, unused = np.zeros(n), np.empty(n, np.int32), np.empty(k, np.float32)
    for j in range(n):
        count = 0
        for i in range(n):
            if i != j and rest[j, i] != 0.0:
                size[i] = abs(rest[j, i])
                touched[count] = i
                count += 1
        keep_best(size, touched, count, item[j], unused)
        for p in range(min(count, k)):
            weight[j, p] = rest[j, item[j, p]] * scale[item[j, p]] / scale[j]
    return item, weight


@compiled
def _visits(at: F64) -> F64:
    """float64, like `at`: number of the visit of each engagement, 0 for the newest; one visit has one time."""
    visit, out = 0.0, np.empty(len(at))
    for e in range(len(at)):
        if e > 0 and at[e] != at[e - 1]:
            visit += 1.0
        out[e] = visit
    return out


@compiled
def _scores(near: I32, near_weight: F32, speaking: F32, spoken_to: F32, candidates: I32, item: I32, recent: F64) -> F64:
    """float64[2, c]: sums of the weights of the list's items for each candidate; with their recency, and as they are.

    Each item counts once, as its first engagement in the list, and not for itself. Sums are in the order of the list
    and of the candidate's row, so that they do not depend on the other candidates.
    """
    slots, rank = slots_of(item), speaking.shape[1]
    user = np.zeros((2, rank))
    for e in range(len(item)):
        if find(slots, item, item[e]) == e:
            for r in range(rank):
                user[0, r] += recent[e] * speaking[item[e], r]
                user[1, r] += speaking[item[e], r]
    out = np.zeros((2, len(candidates)))
    listed = np.empty(near.shape[1], np.int32)
    for c in range(len(candidates)):
        upcoming = candidates[min(c + AHEAD, len(candidates) - 1)]
        prefetch(near, upcoming)
        prefetch(near_weight, upcoming)
        prefetch(spoken_to, upcoming)
        row, factor = near[candidates[c]], spoken_to[candidates[c]]
        for r in range(rank):
            out[0, c] += user[0, r] * factor[r]
            out[1, c] += user[1, r] * factor[r]
        own = find(slots, item, candidates[c])
        if own >= 0:
            itself = 0.0
            for r in range(rank):
                itself += speaking[item[own], r] * factor[r]
            out[0, c] -= itself * recent[own]
            out[1, c] -= itself
        count = 0
        for k in range(near.shape[1]):
            listed[count] = k
            count += slots[first_slot(slots, row[k])] >= 0
        for h in range(count):
            position = find(slots, item, row[listed[h]])
            if position >= 0:
                w = near_weight[candidates[c], listed[h]]
                out[0, c] += w * recent[position]
                out[1, c] += w
    return out


@compiled
def _low_rank_scores(speaking: F32, spoken_to: F32, rows: I32, item: I32) -> F64:
    """float64, like `rows`: score of each by the part of low rank, for the whole list."""
    rank = speaking.shape[1]
    user, out = np.zeros(rank), np.zeros(len(rows))
    for e in range(len(item)):
        for r in range(rank):
            user[r] += speaking[item[e], r]
    for c in range(len(rows)):
        for r in range(rank):
            out[c] += user[r] * spoken_to[rows[c], r]
    return out


@dataclass(frozen=True)
class Linear:
    """The weights of a linear model, and what each item retrieves. All have n + 1 rows, the last for the unknown item.

    into: of each item, the items of a user's list that count for or against it beyond the part of low rank, largest
    first; weights of both signs. speaking, spoken_to: float32[n + 1, r], factors of the part of low rank: the weight of
    item i for item j is `speaking[i] @ spoken_to[j]`; 0 for items outside the model. offered: int32[n + 1, k], of each
    item, the items for which its weight is largest, `-1` if there are fewer.
    """

    into: Neighbours
    speaking: F32
    spoken_to: F32
    offered: I32

    @classmethod
    def none(cls, n_items: int) -> Linear:
        """A model before anything is logged: every score is 0."""
        factors = np.zeros((n_items + 1, 1), np.float32)
        return cls(Neighbours.none(n_items), factors, factors, np.full((n_items + 1, 1), -1, np.int32))

    @classmethod
    def build(cls, events: Events, n_items: int, at: float, most: int = MOST_ITEMS) -> Linear:
        """The model at a time, from the engagements strictly before it, of which the newest of each user suffice.

        most: number of items in the model.
        """
        past = events.before(at)
        past = past.take((past.kind != Kind.IMPRESSION) & (past.item >= 0))
        pair = np.unique(past.user.astype(np.int64) << 32 | past.item)
        user, item = pair >> 32, pair & 0xFFFFFFFF
        users = np.bincount(item, minlength=n_items)
        known = np.sort(np.argsort(-users, kind="stable")[: min(most, int((users > 0).sum()))])
        if not len(known):
            return cls.none(n_items)
        column = np.full(n_items, -1, np.int32)
        column[known] = np.arange(len(known), dtype=np.int32)
        user, item = user[column[item] >= 0], item[column[item] >= 0]
        _, start = np.unique(user, return_index=True)
        shared = _shared_users(np.append(start, len(user)), column[item], len(known))
        matrix, scale = _symmetric(shared, PENALTY)
        vector, value = _low_rank(matrix, RANK)
        into = _largest(matrix - (vector * value) @ vector.T, scale, WEIGHTS)
        speaking, spoken_to = np.zeros((2, n_items + 1, len(value)), np.float32)
        speaking[known] = vector * value * scale[:, None]
        spoken_to[known] = vector / scale[:, None]
        weight = matrix * scale[:, None] / scale
        largest = np.argsort(-weight, axis=1, kind="stable")[:, :_OFFERED]
        offered = np.full((n_items + 1, largest.shape[1]), -1, np.int32)
        offered[known] = np.where(np.take_along_axis(weight, largest, 1) > 0, known[largest], -1)
        return cls(_of_catalogue(known, *into, n_items), speaking, spoken_to, offered)

    @cached_property
    def _known(self) -> I32:
        """int32, ascending: the items of the model."""
        return np.flatnonzero(self.spoken_to.any(axis=1)).astype(np.int32)

    def best(self, item: I32, at: F64) -> tuple[I32, F64]:
        """(int32[b], float64[b]): the items with the best scores for all of a user's list, ascending, and the scores.

        Of a large model, only the `_COMPARED` items that the part of low rank scores best, and those whose single
        weights are for the newest items of the list, are scored. item, at: as in `scores`.
        """
        rows = self._known
        if len(rows) > _COMPARED:
            near = _low_rank_scores(self.speaking, self.spoken_to, rows, item)
            cut = np.partition(near, len(near) - _COMPARED)[len(near) - _COMPARED]
            offered = self.offered[item[:_NEWEST]]
            rows = np.union1d(rows[near >= cut], offered[offered >= 0]).astype(np.int32)
        return rows, self.scores(rows, item, at).sum(axis=0)

    def scores(self, candidates: I32, item: I32, at: F64) -> F64:
        """float64[2, c]: what the user's list says for each candidate; the recent list, and all of it. 0 for nothing.

        item: int32[m <= 100], the user's list, newest first, without `-1`. at: float64[m], time of each engagement.
        """
        recent = np.exp2(-_visits(at) / MEMORY)
        into = self.into
        return _scores(into.item, into.weight, self.speaking, self.spoken_to, candidates, item, recent)


def _of_catalogue(known: I64, item: I32, weight: F32, n_items: int) -> Neighbours:
    """A table over the items of the model as one over the catalogue."""
    out = Neighbours.none(n_items, item.shape[1])
    out.item[known] = np.where(item >= 0, known[item], -1)
    out.weight[known] = weight
    return out
