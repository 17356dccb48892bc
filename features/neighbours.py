"""Item neighbours by co-occurrence: the top K items engaged with by the same users and in the same sessions.

The similarity is a cosine over users and sessions, `sum_g w_gi w_gj / (|i| |j| + shrinkage)`. There is one coordinate g
per user and one per session, the latter scaled by the square root of `session_weight`. The norms keep items that are
merely popular from becoming everyone's neighbours. Weights of engagements decay with age. Users and sessions are capped
at their newest items, and the sessions of a user at their newest engagements (without caps, the heaviest users took 280
times the work and added no signal). Two items of one shown list are never a pair, not even in a session: items shown
together compete for the click, so such pairs would make similar items look dissimilar.

The neighbours are part of a release. Item-based kNN: Sarwar et al., WWW 2001; with shrinkage as in Dacrema et al.,
RecSys 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import F32, F64, I32, I64
from features.history import SESSION_S, engagement_weights
from features.kernels.best import keep_best
from features.kernels.compiled import compiled
from features.kernels.prefetch import AHEAD, prefetch
from features.kernels.slots import find, first_slot, slots_of
from features.log import Events, Kind

PER_GROUP = 50
"""Number of items of a user, and of a session, that are paired with each other: the newest."""
MAX_PER_USER = 200
"""Number of engagements of a user that count in sessions: the newest."""
SESSION_WEIGHT = 0.25
"""Weight of a pair in a session relative to a pair of a user; chosen on validation, see docs/decisions.md."""
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
    for i in range(n):
        count = 0
        for p in range(item_start[i], item_start[i + 1]):
            g = group_of[p]
            for q in range(group_start[g], group_start[g + 1]):
                j, contribution = item_of[q], weight_at_item[p] * weight[q]
                # Weights of years ago underflow to 0, and a total of 0 would be listed again and again.
                if j == i or contribution == 0.0 or (list_of[q] >= 0 and list_of[q] == list_at_item[p]):
                    continue
                if total[j] == 0.0:
                    touched[count] = j
                    count += 1
                total[j] += contribution
        for t in range(count):
            total[touched[t]] /= norm[i] * norm[touched[t]] + shrinkage
        keep_best(total, touched, count, best[i], score[i])
    return best, score


@compiled
def _scores(near: I32, near_weight: F32, candidates: I32, item: I32, weight: F64) -> F64:
    """float64[2, c]: sum and maximum over the user's items of neighbour weight times engagement weight."""
    slots, value = slots_of(item), np.zeros(len(item))
    for j in range(len(item)):
        if item[j] >= 0:
            value[find(slots, item, item[j])] += weight[j]
    out = np.zeros((2, len(candidates)))
    listed = np.empty(near.shape[1], np.int32)
    for c in range(len(candidates)):
        upcoming = candidates[min(c + AHEAD, len(candidates) - 1)]
        prefetch(near, upcoming)
        prefetch(near_weight, upcoming)
        row = near[candidates[c]]
        # Most neighbours are not in the list. Always write, and count only if the slot is full, which leaves no branch
        # to mispredict.
        count = 0
        for k in range(near.shape[1]):
            listed[count] = k
            count += slots[first_slot(slots, row[k])] >= 0
        for h in range(count):
            position = find(slots, item, row[listed[h]])
            if position >= 0:
                contribution = near_weight[candidates[c], listed[h]] * value[position]
                out[0, c] += contribution
                out[1, c] = max(out[1, c], contribution)
    return out


@dataclass(frozen=True)
class Neighbours:
    """The K nearest neighbours of every item by co-occurrence.

    item: int32[n + 1, K], best first, `-1` if there are fewer. weight: float32[n + 1, K] in (0, 1], 0 if there are
    fewer. The last row, the unknown item, has no neighbours.
    """

    item: I32
    weight: F32

    @classmethod
    def none(cls, n_items: int, k: int = 1) -> Neighbours:
        """Neighbours before anything is logged: no item has any."""
        return cls(np.full((n_items + 1, k), -1, np.int32), np.zeros((n_items + 1, k), np.float32))

    @classmethod
    def build(
        cls,
        events: Events,
        n_items: int,
        at: float,
        k: int = 50,
        session_weight: float = SESSION_WEIGHT,
        users: bool = True,
    ) -> Neighbours:
        """Neighbours at a time, from the engagements strictly before it; the newest `MAX_PER_USER` per user suffice.

        session_weight: weight of a pair in a session relative to a pair of a user, at least 0. users: whether items of
        one user are pairs, also of different sessions.
        """
        past = events.before(at)
        past = past.take((past.kind != Kind.IMPRESSION) & (past.item >= 0))
        user_rows = _newest(past.user.astype(np.int64), past.item) if users else np.empty(0, np.int64)
        session_rows, session = _session_pairs(past) if session_weight > 0 else (np.empty(0, np.int64),) * 2
        row = np.concatenate([user_rows, session_rows])
        if not len(row):
            return cls.none(n_items, k)
        group = np.concatenate([past.user[user_rows], past.n_users + session])
        scale = np.repeat([1.0, np.sqrt(session_weight)], [len(user_rows), len(session_rows)])
        weight = (engagement_weights(past.kind[row], at - past.at[row]) * scale).astype(np.float32)
        item, request = past.item[row], past.request[row]
        by_group, by_item = np.argsort(group, kind="stable"), np.argsort(item, kind="stable")
        norm = np.sqrt(np.bincount(item, weight.astype(np.float64) ** 2, minlength=n_items))
        return cls(
            *_top_k(
                np.searchsorted(item[by_item], np.arange(n_items + 1)),
                group[by_item],
                np.searchsorted(group[by_group], np.arange(group.max() + 2)),
                item[by_group],
                request[by_group],
                request[by_item],
                weight[by_group],
                weight[by_item],
                norm,
                k,
                SHRINKAGE,
            )
        )

    def scores(self, candidates: I32, item: I32, weight: F64) -> F64:
        """float64[2, c]: sum and maximum of the weights of each candidate's neighbours in the user's list; 0 for none.

        item: int32[m <= 100], the user's list, `-1` is skipped. weight: float64[m], weight of each engagement.
        """
        return _scores(self.item, self.weight, candidates, item, weight)


def _session_pairs(events: Events) -> tuple[I64, I64]:
    """Rows that pair within sessions, ascending, and the session of each; sessions of a single item are left out."""
    newest_first = np.lexsort((-np.arange(len(events)), events.user))
    row = np.sort(newest_first[_rank_in_group(events.user[newest_first]) < MAX_PER_USER])
    session = session_numbers(events)[row]
    inside = _newest(session, events.item[row])
    row, session = row[inside], session[inside]
    several = np.bincount(session)[session] > 1
    return row[several], session[several]


def session_numbers(events: Events) -> I64:
    """int64[n]: session number of each event, at least 0; users never share one.

    This is the logged `session`, or else a new one after `SESSION_S` without an event of the user.
    """
    order = np.argsort(events.user, kind="stable")
    new = (np.diff(events.user[order], prepend=-1) != 0) | (np.diff(events.at[order], prepend=-np.inf) > SESSION_S)
    out = np.empty(len(events), np.int64)
    out[order] = np.cumsum(new) - 1
    logged = np.flatnonzero(events.session >= 0)
    user_sessions = events.session[logged].astype(np.int64) * events.n_users + events.user[logged]
    out[logged] = len(events) + np.unique(user_sessions, return_inverse=True)[1]
    return out


def _newest(group: I64, item: I32) -> I64:
    """Rows, ascending, of the latest event on each of a group's newest `PER_GROUP` items; rows are in time order."""
    newest_first = np.lexsort((-np.arange(len(group)), group))
    _, first = np.unique(group[newest_first] << 32 | item[newest_first], return_index=True)
    distinct = newest_first[np.sort(first)]
    return np.sort(distinct[_rank_in_group(group[distinct]) < PER_GROUP])


def _rank_in_group(group: I64 | I32) -> I64:
    """Rank of each row in its group, from 0; the rows of a group must be contiguous."""
    return np.arange(len(group)) - np.searchsorted(group, group)
