"""EASE: item-to-item weights by ridge regression, the strongest linear baseline."""

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
"""Items in the model, those with most engagements. Its matrix is dense: 200 MB, and 10 seconds of one core to fit."""
_SELECTION_ITEMS = 1500
"""Items in the models that select the penalty and the memory."""
_PENALTIES = (30.0, 100.0, 300.0, 1000.0)
_MEMORIES = (2.0, 8.0, 64.0)


def engagements(events: Events) -> Events:
    """The events other than impressions whose item is in the catalogue."""
    return events.take((events.kind != Kind.IMPRESSION) & (events.item >= 0))


def pairs(user: I32, item: I32) -> I64:
    """int64: a unique number for each pair of user and item."""
    return user.astype(np.int64) << 32 | item.astype(np.int64)


@dataclass(frozen=True)
class Ease:
    """Item-to-item weights by ridge regression of each item on all others, in closed form (EASE; Steck, WWW 2019).

    item: int64[m], catalogue rows of the items in the model. weight: float32[m, m], from item, to item. memory:
    half-life, in visits, of an engagement's weight when a user is scored; a visit is all engagements at one time.
    """

    item: I64
    weight: F32
    memory: float

    @classmethod
    def fit(cls, events: Events, n_items: int, penalty: float, memory: float, most: int = EASE_ITEMS) -> Ease:
        """Weights from each user's distinct engagements, for at most the `most` items with most engagements."""
        acts = engagements(events)
        user, item = np.divmod(np.unique(pairs(acts.user, acts.item)), 1 << 32)
        count = np.bincount(item, minlength=n_items)
        known = np.sort(np.argsort(-count, kind="stable")[: min(most, int((count > 0).sum()))])
        column = np.full(n_items, -1)
        column[known] = np.arange(len(known))
        is_known = column[item] >= 0
        x = scipy.sparse.csr_array(
            (np.ones(int(is_known.sum())), (user[is_known], column[item[is_known]])), shape=(events.n_users, len(known))
        )
        gram = (x.T @ x).toarray() + penalty * np.eye(len(known))
        if not len(known):
            return cls(known, np.zeros((0, 0), np.float32), memory)
        inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(gram, overwrite_a=True), np.eye(len(known)))
        weight = -inverse / np.diag(inverse)
        np.fill_diagonal(weight, 0)
        return cls(known, weight.astype(np.float32), memory)

    @classmethod
    def select(cls, events: Events, n_items: int, new_only: bool, seed: int) -> Ease:
        """The model whose penalty and memory best predict the last engagements of each user.

        Selection uses the items with most engagements and at most 1,000 users, and fits to the earlier engagements. The
        selected model is then fitted to all events. new_only: leave items that a user had before out of their ranking.
        """
        acts = engagements(events)
        last = np.zeros(events.n_users)
        np.maximum.at(last, acts.user, acts.at)
        before = acts.take(acts.at < last[acts.user])
        users = np.random.default_rng(seed).permutation(np.unique(before.user).astype(np.int64))[:1000]
        settings = list(product(_PENALTIES, _MEMORIES))
        if not len(users):
            return cls.fit(events, n_items, *settings[0])
        recall = []
        for penalty in _PENALTIES:
            fit = cls.fit(before, n_items, penalty, 0.0, _SELECTION_ITEMS)
            recall += [
                replace(fit, memory=memory)._recall(acts, last, users, n_items, new_only) for memory in _MEMORIES
            ]
        return cls.fit(events, n_items, *settings[int(np.argmax(recall))])

    def scores(self, history: History, candidates: I32) -> F64:
        """float64, like `candidates`: the score of each for this history; NaN for items outside the model, and for all
        candidates where no item of the history is in it."""
        known = np.searchsorted(self.item, history.item)
        known[known == len(self.item)] = 0
        is_known = np.zeros(len(history.item), bool) if not len(self.item) else self.item[known] == history.item
        out = np.full(len(candidates), np.nan)
        if not is_known.any():
            return out
        # The history is newest first, and each new time is one visit further back.
        visit = np.cumsum(np.diff(history.at, prepend=history.at[:1]) != 0)[is_known]
        rows, first = np.unique(known[is_known], return_index=True)
        total = np.exp2(-visit[first] / self.memory) @ self.weight[rows]
        column = np.minimum(np.searchsorted(self.item, candidates), len(self.item) - 1)
        in_model = self.item[column] == candidates
        out[in_model] = total[column[in_model]]
        return out

    def _recall(self, acts: Events, last: F64, users: I64, n_items: int, new_only: bool) -> float:
        """Mean recall@10 of each user's last engagements, predicted from the earlier ones."""
        order = np.lexsort((-acts.at, acts.user))
        start = np.searchsorted(acts.user[order], np.arange(len(last) + 1))
        every, recall = np.arange(n_items, dtype=np.int32), []
        for u in users.tolist():
            rows = order[start[u] : start[u + 1]]
            earlier = rows[acts.at[rows] < last[u]][:100]
            history = History(acts.item[earlier], acts.kind[earlier], acts.at[earlier], acts.item[:0], acts.at[:0])
            score = np.nan_to_num(self.scores(history, every), nan=-np.inf)
            if new_only:
                score[history.item] = -np.inf
            best = np.argpartition(-score, min(10, n_items - 1))[:10]
            recall.append(np.isin(acts.item[rows[acts.at[rows] == last[u]]], best).mean())
        return float(np.mean(recall))
