"""Co-occurrence neighbours: items engaged with by the same users and in the same visits, top-K, a release artefact.

Cosine over users and visits, `sum_g w_gi w_gj / (|i| |j| + shrinkage)` with a coordinate g for each user and, smaller
by the root of `session_weight`, for each visit: so a popular item is no one's neighbour by popularity alone. The weight
of an item fades with age. Users and visits are capped at their newest items, a user's visits at his newest engagements
(uncapped, the heaviest users are 280 times the work and no more signal). Two items of one shown list are never a pair,
in a visit neither: what is shown together competes, which would make likes look opposed.

Item-based kNN: Sarwar et al., WWW 2001; with shrinkage as in Dacrema et al., RecSys 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import F32, F64, I32, I64
from features.history import SESSION_S, engagement_weights
from features.kernels.compiled import compiled
from features.kernels.prefetch import AHEAD, prefetch
from features.kernels.slots import find, home, slots_of
from features.log import Events, Kind

PER_GROUP = 50
"""Items of a user, and of a visit, that pair with each other: the newest."""
MAX_PER_USER = 200
"""Engagements of a user that count in visits: the newest."""
SESSION_WEIGHT = 0.25
"""What a pair in a visit counts for against one of a user; chosen on validation, see docs/decisions.md."""
SHRINKAGE = 1.0


@compiled
def _top_k(
    item_start: I64,
    group_of: I64,
    group_start: I64,
    item_of: I32,
    list_of: I32,
    list_at_item: I32,
    weight: F32,
    weight_at_item: F32,
    norm: F64,
    k: int,
    shrinkage: float,
) -> tuple[I32, F32]:
    n = len(norm)
    best = np.full((n + 1, k), -1, np.int32)
    score = np.zeros((n + 1, k), np.float32)
    total = np.zeros(n)
    touched = np.empty(n, np.int32)
    top = np.empty(k + 1)
    near = np.empty(k + 1, np.int32)
    for i in range(n):
        count = 0
        for p in range(item_start[i], item_start[i + 1]):
            g = group_of[p]
            for q in range(group_start[g], group_start[g + 1]):
                j = item_of[q]
                if j == i or (list_of[q] >= 0 and list_of[q] == list_at_item[p]):
                    continue
                if total[j] == 0.0:
                    touched[count] = j
                    count += 1
                total[j] += weight_at_item[p] * weight[q]
        # Put in at its place among the best so far; most are no better than the last of them. A sort of all took more
        # than half of the time.
        held = 0
        for t in range(count):
            j = touched[t]
            cosine = total[j] / (norm[i] * norm[j] + shrinkage)
            total[j] = 0.0
            place = held
            while place > 0 and (cosine > top[place - 1] or (cosine == top[place - 1] and j < near[place - 1])):
                top[place] = top[place - 1]
                near[place] = near[place - 1]
                place -= 1
            if place < k:
                top[place] = cosine
                near[place] = j
                held = min(held + 1, k)
        for t in range(held):
            best[i, t] = near[t]
            score[i, t] = top[t]
    return best, score


@compiled
def _scores(near: I32, near_weight: F32, candidates: I32, item: I32, weight: F64) -> F64:
    """float64[2, c]: sum and maximum over the user's items of neighbour weight times engagement weight."""
    slots, value = slots_of(item), np.zeros(len(item))
    for j in range(len(item)):
        if item[j] >= 0:
            value[find(slots, item, item[j])] += weight[j]
    out = np.zeros((2, len(candidates)))
    held = np.empty(near.shape[1], np.int32)
    for c in range(len(candidates)):
        coming = candidates[min(c + AHEAD, len(candidates) - 1)]
        prefetch(near, coming)
        prefetch(near_weight, coming)
        row = near[candidates[c]]
        # Most neighbours are not in the list. Written always and counted if its slot is full: no jump to guess.
        count = 0
        for k in range(near.shape[1]):
            held[count] = k
            count += slots[home(slots, row[k])] >= 0
        for h in range(count):
            place = find(slots, item, row[held[h]])
            if place >= 0:
                part = near_weight[candidates[c], held[h]] * value[place]
                out[0, c] += part
                out[1, c] = max(out[1, c], part)
    return out


@dataclass(frozen=True)
class Neighbours:
    """The K nearest of every item by co-occurrence.

    item: int32[n + 1, K], best first, `-1` where there are fewer. weight: float32[n + 1, K] in (0, 1], 0 where none.
    The last row, the unknown item, has none.
    """

    item: I32
    weight: F32

    @classmethod
    def none(cls, n_items: int, k: int = 1) -> Neighbours:
        """No item has a neighbour: before anything is logged."""
        return cls(np.full((n_items + 1, k), -1, np.int32), np.zeros((n_items + 1, k), np.float32))

    @classmethod
    def build(
        cls, events: Events, n_items: int, at: float, k: int = 50, session_weight: float = SESSION_WEIGHT
    ) -> Neighbours:
        """Neighbours as of a moment, from the engagements strictly before it: each user's newest `IN_VISITS` suffice.

        session_weight: what a pair in a visit counts for against one of a user, at least 0.
        """
        past = events.before(at)
        past = past.take((past.kind != Kind.IMPRESSION) & (past.item >= 0))
        of_users = _newest(past.user.astype(np.int64), past.item)
        of_visits, visit = _session_pairs(past) if session_weight > 0 else (of_users[:0], of_users[:0])
        row = np.concatenate([of_users, of_visits])
        if not len(row):
            return cls.none(n_items, k)
        group = np.concatenate([past.user[of_users], past.n_users + visit])
        scale = np.repeat([1.0, np.sqrt(session_weight)], [len(of_users), len(of_visits)])
        weight = (engagement_weights(past.kind[row], at - past.at[row]) * scale).astype(np.float32)
        item, shown_in = past.item[row], past.request[row]
        by_group, by_item = np.argsort(group, kind="stable"), np.argsort(item, kind="stable")
        norm = np.sqrt(np.bincount(item, weight.astype(np.float64) ** 2, minlength=n_items))
        return cls(
            *_top_k(
                np.searchsorted(item[by_item], np.arange(n_items + 1)),
                group[by_item],
                np.searchsorted(group[by_group], np.arange(group.max() + 2)),
                item[by_group],
                shown_in[by_group],
                shown_in[by_item],
                weight[by_group],
                weight[by_item],
                norm,
                k,
                SHRINKAGE,
            )
        )

    def scores(self, candidates: I32, item: I32, weight: F64) -> F64:
        """float64[2, c], sum and maximum: how strongly each candidate's neighbours are in the user's list; 0 for not.

        item: int32[m <= 100] of the user's list, `-1` skipped. weight: float64[m], what each engagement counts.
        """
        return _scores(self.item, self.weight, candidates, item, weight)


def _session_pairs(events: Events) -> tuple[I64, I64]:
    """Rows that pair within visits, ascending, and each one's visit. A visit of one item pairs nothing: left out."""
    newest_first = np.lexsort((-np.arange(len(events)), events.user))
    row = np.sort(newest_first[_place(events.user[newest_first]) < MAX_PER_USER])
    visit = session_numbers(events)[row]
    inside = _newest(visit, events.item[row])
    row, visit = row[inside], visit[inside]
    several = np.bincount(visit)[visit] > 1
    return row[several], visit[several]


def session_numbers(events: Events) -> I64:
    """int64[n]: a number for the visit of each event, from 0; two users share none.

    By `session` where it was logged, else a new one after `SESSION_S` without an event of the user.
    """
    order = np.argsort(events.user, kind="stable")
    new = (np.diff(events.user[order], prepend=-1) != 0) | (np.diff(events.at[order], prepend=-np.inf) > SESSION_S)
    out = np.empty(len(events), np.int64)
    out[order] = np.cumsum(new) - 1
    logged = np.flatnonzero(events.session >= 0)
    owned = events.session[logged].astype(np.int64) * events.n_users + events.user[logged]
    out[logged] = len(events) + np.unique(owned, return_inverse=True)[1]
    return out


def _newest(group: I64, item: I32) -> I64:
    """Rows, ascending, of the newest `PER_GROUP` distinct items of each group, each at its newest; rows are by time."""
    newest_first = np.lexsort((-np.arange(len(group)), group))
    _, first = np.unique(group[newest_first] << 32 | item[newest_first], return_index=True)
    distinct = newest_first[np.sort(first)]
    return np.sort(distinct[_place(group[distinct]) < PER_GROUP])


def _place(group: I64 | I32) -> I64:
    """The place of each row in its group, from 0, where rows of a group stand together."""
    return np.arange(len(group)) - np.searchsorted(group, group)
