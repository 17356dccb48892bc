"""EASE: item-item weights by ridge regression, the strongest of the linear baselines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
import scipy.sparse  # type: ignore[import-untyped]

from features.arrays import F32, F64, I32, I64
from features.history import History
from features.log import Events, Kind

EASE_ITEMS = 5000
"""Items EASE knows, the most engaged with: its one matrix is dense, 200 MB at this size and 10 seconds of one core."""


_EASE_TRIED_ON = 1500


_PENALTIES = (30.0, 100.0, 300.0)


_MEMORIES = (2.0, 8.0)


def engagements(events: Events) -> Events:
    """The events with an item of the catalogue that are more than an impression."""
    return events.take((events.kind != Kind.IMPRESSION) & (events.item >= 0))


def pairs(user: I32, item: I32) -> I64:
    """int64: one number for each user and item."""
    return user.astype(np.int64) << 32 | item.astype(np.int64)


@dataclass(frozen=True)
class Ease:
    """Item-item weights by ridge regression of each item on all others (EASE; Steck, WWW 2019), in closed form.

    item: int64[m], the rows of the catalogue it knows. weight: float32[m, m], from, to. memory: visits after which an
    engagement counts half when a user is scored; latest visits say most.
    """

    item: I64
    weight: F32
    memory: float

    @classmethod
    def fit(cls, events: Events, n_items: int, penalty: float, memory: float, most: int = EASE_ITEMS) -> Ease:
        """Weights from every user's distinct engagements; at most the `most` engaged items are known."""
        acts = engagements(events)
        user, item = np.divmod(np.unique(pairs(acts.user, acts.item)), 1 << 32)
        count = np.bincount(item, minlength=n_items)
        known = np.sort(np.argsort(-count, kind="stable")[: min(most, int((count > 0).sum()))])
        column = np.full(n_items, -1)
        column[known] = np.arange(len(known))
        some = column[item] >= 0
        x = scipy.sparse.csr_array(
            (np.ones(int(some.sum())), (user[some], column[item[some]])), shape=(events.n_users, len(known))
        )
        gram = (x.T @ x).toarray() + penalty * np.eye(len(known))
        if not len(known):
            return cls(known, np.zeros((0, 0), np.float32), memory)
        inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(gram, overwrite_a=True), np.eye(len(known)))
        weight = -inverse / np.diag(inverse)
        np.fill_diagonal(weight, 0)
        return cls(known, weight.astype(np.float32), memory)

    @classmethod
    def chosen(cls, events: Events, n_items: int, new_only: bool, seed: int) -> Ease:
        """The fit whose penalty and memory find most of what users engaged with last, of the events given.

        Tried on the most engaged items and at most 1,000 users, fitted to what they did before; then fitted to all.
        new_only: whether what a user had before is left out of his order.
        """
        acts = engagements(events)
        last = np.zeros(events.n_users)
        np.maximum.at(last, acts.user, acts.at)
        before = acts.take(acts.at < last[acts.user])
        users = np.random.default_rng(seed).permutation(np.unique(before.user).astype(np.int64))[:1000]
        tried = list(product(_PENALTIES, _MEMORIES))
        if not len(users):
            return cls.fit(events, n_items, *tried[0])
        found = []
        for penalty in _PENALTIES:
            fit = cls.fit(before, n_items, penalty, 0.0, _EASE_TRIED_ON)
            found += [replace(fit, memory=memory)._recall(acts, last, users, n_items, new_only) for memory in _MEMORIES]
        return cls.fit(events, n_items, *tried[int(np.argmax(found))])

    def scores(self, history: History, candidates: I32) -> F64:
        """float64, like `candidates`: how much the user's list speaks for each; NaN where it says nothing of it."""
        known = np.searchsorted(self.item, history.item)
        known[known == len(self.item)] = 0
        some = np.zeros(len(history.item), bool) if not len(self.item) else self.item[known] == history.item
        out = np.full(len(candidates), np.nan)
        if not some.any():
            return out
        # Newest first: each new moment is a visit further back.
        visit = np.cumsum(np.diff(history.at, prepend=history.at[:1]) != 0)[some]
        rows, first = np.unique(known[some], return_index=True)
        total = np.exp2(-visit[first] / self.memory) @ self.weight[rows]
        place = np.minimum(np.searchsorted(self.item, candidates), len(self.item) - 1)
        there = self.item[place] == candidates
        out[there] = total[place[there]]
        return out

    def _recall(self, acts: Events, last: F64, users: I64, n_items: int, new_only: bool) -> float:
        """Mean share of each user's last engagements among the first ten of this order."""
        order = np.lexsort((-acts.at, acts.user))
        start = np.searchsorted(acts.user[order], np.arange(len(last) + 1))
        every, found = np.arange(n_items, dtype=np.int32), []
        for u in users.tolist():
            mine = order[start[u] : start[u + 1]]
            old = mine[acts.at[mine] < last[u]][:100]
            past = History(acts.item[old], acts.kind[old], acts.at[old], acts.item[:0], acts.at[:0])
            score = np.nan_to_num(self.scores(past, every), nan=-np.inf)
            if new_only:
                score[past.item] = -np.inf
            best = np.argpartition(-score, min(10, n_items - 1))[:10]
            found.append(np.isin(acts.item[mine[acts.at[mine] == last[u]]], best).mean())
        return float(np.mean(found))
