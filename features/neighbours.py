"""Co-occurrence neighbours: items that the same users engaged with, top-K per item, a release artefact.

Cosine over users, `sum_u w_ui w_uj / (|i| |j| + shrinkage)`, so a popular item is no one's neighbour by popularity
alone. A user's weight on an item fades with age; users are capped at their newest items (uncapped, the heaviest users
are 280 times the work and no more signal). Two items of one shown list are never a pair: what is shown together
competes, which would make likes look opposed.

Item-based kNN: Sarwar et al., WWW 2001; with shrinkage as in Dacrema et al., RecSys 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.compiled import compiled
from features.interest import weights
from features.log import F32, F64, I32, I64, Events, Kind

PER_USER = 50
SHRINKAGE = 1.0
_SLOTS = 4096
"""Slots of the hash table over a user's items, a power of two. So many that nearly every item not in his list of 100
meets an empty slot at once: with 512 a look-up took three times as long, most of it in branches guessed wrong."""


@compiled
def _top_k(
    item_start: I64, user_of: I32, user_start: I64, item_of: I32, list_of: I32, list_at_item: I32,
    weight: F32, weight_at_item: F32, norm: F64, k: int, shrinkage: float,
) -> tuple[I32, F32]:  # fmt: skip
    n = len(norm)
    best = np.full((n + 1, k), -1, np.int32)
    score = np.zeros((n + 1, k), np.float32)
    total = np.zeros(n)
    touched = np.empty(n, np.int32)
    for i in range(n):
        count = 0
        for p in range(item_start[i], item_start[i + 1]):
            u = user_of[p]
            for q in range(user_start[u], user_start[u + 1]):
                j = item_of[q]
                if j == i or (list_of[q] >= 0 and list_of[q] == list_at_item[p]):
                    continue
                if total[j] == 0.0:
                    touched[count] = j
                    count += 1
                total[j] += weight_at_item[p] * weight[q]
        near = np.sort(touched[:count])
        cosine = np.empty(count)
        for t in range(count):
            cosine[t] = -total[near[t]] / (norm[i] * norm[near[t]] + shrinkage)
            total[near[t]] = 0.0
        order = np.argsort(cosine, kind="mergesort")
        for t in range(min(k, count)):
            best[i, t] = near[order[t]]
            score[i, t] = -cosine[order[t]]
    return best, score


@compiled
def _scores(
    near: I32, near_weight: F32, candidates: I32, item: I32, weight: F64
) -> tuple[F64, F64]:  # fmt: skip
    """Sum and maximum over the user's items of `neighbour weight * engagement weight`, for each candidate."""
    # A mask in place of `%` (a division), and unsigned, so that no index is looked at for being negative. The odd
    # factor keeps neighbouring rows apart: a brand's items often stand together, and would probe past each other.
    last, spread, one = np.uint32(_SLOTS - 1), np.uint32(40503), np.uint32(1)
    key = np.full(_SLOTS, -1, np.int32)
    value = np.zeros(_SLOTS)
    for j in range(len(item)):
        if item[j] >= 0:
            s = np.uint32(item[j]) * spread & last
            while key[s] != -1 and key[s] != item[j]:
                s = s + one & last
            key[s] = item[j]
            value[s] += weight[j]
    # Rows come from all over memory. Fetched in a loop without branches, many are under way at once: half the time.
    fetched = np.empty((len(candidates), near.shape[1]), np.int32)
    for c in range(len(candidates)):
        row = near[candidates[c]]
        for k in range(near.shape[1]):
            fetched[c, k] = row[k]
    total = np.zeros(len(candidates))
    top = np.zeros(len(candidates))
    for c in range(len(candidates)):
        for k in range(near.shape[1]):
            j = fetched[c, k]
            if j < 0:
                break
            s = np.uint32(j) * spread & last
            while key[s] != -1 and key[s] != j:
                s = s + one & last
            if key[s] == j:
                part = near_weight[candidates[c], k] * value[s]
                total[c] += part
                top[c] = max(top[c], part)
    return total, top


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
    def build(cls, events: Events, n_items: int, at: float, k: int = 50) -> Neighbours:
        """Neighbours as of a moment, from the engagements strictly before it."""
        past = events.before(at)
        past = past.take((past.kind != Kind.IMPRESSION) & (past.item >= 0))
        past = past.take(_newest_per_user(past))
        if not len(past):
            return cls.none(n_items, k)
        weight = weights(past.kind, at - past.at)
        by_user = np.argsort(past.user, kind="stable")
        by_item = np.argsort(past.item, kind="stable")
        norm = np.sqrt(np.bincount(past.item, weight.astype(np.float64) ** 2, minlength=n_items))
        return cls(
            *_top_k(
                np.searchsorted(past.item[by_item], np.arange(n_items + 1)), past.user[by_item],
                np.searchsorted(past.user[by_user], np.arange(past.n_users + 1)), past.item[by_user],
                past.request[by_user], past.request[by_item], weight[by_user], weight[by_item], norm, k, SHRINKAGE,
            )
        )  # fmt: skip

    def scores(self, candidates: I32, item: I32, weight: F64) -> tuple[F64, F64]:
        """float64[c] sum and maximum: how strongly each candidate's neighbours are in the user's list; 0 for not.

        item: int32[m <= 100] of the user's list, `-1` skipped. weight: float64[m], what each engagement counts.
        """
        return _scores(self.item, self.weight, candidates, item, weight)


def _newest_per_user(events: Events) -> I64:
    """Rows, ascending, of the newest `PER_USER` distinct items of each user, each at its newest engagement."""
    newest_first = np.lexsort((-np.arange(len(events)), events.user))
    user, item = events.user[newest_first], events.item[newest_first]
    _, first = np.unique(user.astype(np.int64) << 32 | item, return_index=True)
    distinct = newest_first[np.sort(first)]
    user = events.user[distinct]
    place = np.arange(len(user)) - np.searchsorted(user, user)
    return np.sort(distinct[place < PER_USER])
