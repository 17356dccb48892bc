"""Dull orders to beat, each from what was known at the moment of the list, and each at its best.

Counting (popularity, click rate), who engaged with what (co-occurrence, EASE) and text alone. A baseline that nobody
would put up is no comparison: where people do not come back to what they had, no baseline offers it again, and EASE's
penalty and memory are chosen on what came before the test.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from features.arrays import F32, F64, I32, I64
from features.history import History
from features.log import Events, Kind, Lists
from features.moment import LONGEST, Moment
from features.popularity import RATE_STRENGTH
from features.replay import Replay, Snapshot
from features.retrieval import recent_popularity
from features.text.vectors import Vectors
from offline.evaluation.ease import Ease, engagements, pairs
from ranker.metrics import U64, tie_break, top_k

BASELINES = (
    "random",
    "popularity",
    "recency_popularity",
    "item_click_rate",
    "own_history",
    "cooccurrence",
    "ease",
    "text_zero_shot",
    "text",
)
DEPTH = 100
"""Items of an order that are kept; what is deeper is in no metric."""

REPEATS_ARE_RARE = 0.05
"""Where fewer engagements than this share go to what the user had before, baselines rank what the user had last."""


def own_history(history: History, candidates: I32) -> F64:
    """float64, like `candidates`: in how many of the user's moments each was engaged with; the later first of equals.

    The frequency baseline of next-basket studies (Li et al., TOIS 2023), hard to beat where people buy again. NaN for
    all where none of them was.
    """
    visit = np.cumsum(np.diff(history.at, prepend=history.at[:1]) != 0)
    had, first, row = np.unique(history.item, return_index=True, return_inverse=True)
    count = np.bincount(np.unique(np.stack((row, visit)), axis=1)[0], minlength=len(had))
    # The list is newest first; less than one moment more, so that it only parts equals.
    score = count + 1 / (2.0 + visit[first])
    place = np.searchsorted(had, candidates)
    there = (place < len(had)) & (candidates >= 0)
    there[there] = had[place[there]] == candidates[there]
    if not there.any():
        return np.full(len(candidates), np.nan)
    out = np.zeros(len(candidates))
    out[there] = score[place[there]]
    return out


class EngagementCounts:
    """How often something had happened to an entity before a moment, for any entities and moments at once.

    The log is read through for each question: what is held is as long as the question.
    """

    def __init__(self, events: Events, entity: Callable[[Events], I64]) -> None:
        """events: those that count. entity: int64, of each of them, which it happened to; any numbers."""
        self._events, self._entity = events, entity

    def before(self, entity: I64, at: F64 | float) -> F64:
        """float64, like `entity`: engagements of it strictly before `at`; 0 for one that is not known."""
        wanted, code = np.unique(entity, return_inverse=True)
        moments, when = np.unique(np.broadcast_to(at, entity.shape), return_inverse=True)
        asked = code.astype(np.int64) * (len(moments) + 1) + when
        count = np.zeros(len(asked), np.int64)
        for part in self._events.before(float(moments[-1]) if len(moments) else -np.inf).parts():
            acts = engagements(part)
            found = self._entity(acts)
            place = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
            known = wanted[place] == found
            # An event counts for moments after it: from the first of them on.
            since = np.searchsorted(moments, acts.at[known], side="right")
            key = np.sort(place[known].astype(np.int64) * (len(moments) + 1) + since)
            count += np.searchsorted(key, asked, "right") - np.searchsorted(key, asked - when, "left")
        return count.astype(np.float64)


class RunningCounts:
    """How often each item was engaged with before a moment that only moves on."""

    def __init__(self, events: Events, n_items: int) -> None:
        self._events, self._done, self._count = events, 0, np.zeros(n_items, np.int64)

    def before(self, item: I32, at: float) -> F64:
        """float64, like `item` (of the catalogue): engagements with it strictly before `at`."""
        end = int(np.searchsorted(self._events.at, at, side="left"))
        for part in self._events.take(slice(self._done, end)).parts():
            self._count += np.bincount(engagements(part).item, minlength=len(self._count))
        self._done = max(end, self._done)
        return self._count[item].astype(np.float64)


def repeat_rate(events: Events) -> float:
    """0 to 1: engagements, one a user, item and moment, that go to what their user had engaged with before; 0 for none.

    0.39 in a shop of refills, 0 where people review what they own.
    """
    acts = engagements(events)
    if not len(acts):
        return 0.0
    key = pairs(acts.user, acts.item)
    order = np.lexsort((acts.at, key))
    key, at = key[order], acts.at[order]
    same = np.diff(key, prepend=-1) == 0
    later = np.diff(at, prepend=-np.inf) > 0
    # One a user, item and moment: the rows that begin one, and of these those that are not their pair's first.
    return float((same & later).sum() / (~same | later).sum())


class Baselines:
    """The orders of `BASELINES` over lists read in time order."""

    def __init__(self, replay: Replay, lists: Lists, zero_shot: Vectors, seed: int, whole: bool) -> None:
        """lists: those that will be read, of the log of `replay`. whole: each orders the whole catalogue, not the
        candidates of a list.

        EASE is fitted once, to what came before the first of the lists; with `whole`, where lists may be of any time,
        up to four times, always to what came before: each user's newest engagements, as many as neighbours know.
        """
        self._n, self._zero_shot, self._seed, self._whole = len(replay.catalogue), zero_shot, seed, whole
        self._recent, self._count = replay.recent, RunningCounts(replay.events, self._n)
        begin = float(lists.at.min(initial=np.inf))
        never_shown = not (lists.position >= 0).any()
        self._new_only = never_shown and repeat_rate(replay.recent(begin)) < REPEATS_ARE_RARE
        moments = np.quantile(lists.at, [0, 0.25, 0.5, 0.75], method="lower") if len(lists) else np.empty(0)
        self._fit_at = np.unique(moments if whole else moments[:1]).tolist()
        self._fit: Ease | None = None

    def best(self, reading: Snapshot) -> I32:
        """int32[BASELINES, DEPTH]: the items each would put first, best first; `-1` after the last.

        All `-1` for one that has nothing to say here.
        """
        r = reading
        if self._whole:
            n = self._n
            r = r._replace(candidates=np.flatnonzero(~(r.items.catalogue.available_from[:n] > r.at)).astype(np.int32))
        start = np.array([0, len(r.candidates)])
        ties = tie_break(r.candidates, start)
        out = np.full((len(BASELINES), DEPTH), -1, np.int32)
        for k, score in enumerate(self.scores(r).T):
            if np.isfinite(score).any():
                out[k] = order_of(score, r.candidates, start, ties)[0]
        return out

    def scores(self, reading: Snapshot) -> F64:
        """float64[candidates, BASELINES]: the score of each candidate by each, NaN where it has nothing to say.

        item_click_rate shrinks toward the shop's rate, not toward a prediction: it stands for counting alone.
        """
        r = reading
        moment = Moment(r.items, r.history, r.candidates, r.at)
        clicks, shown = moment.counts[:, Kind.CLICK, LONGEST], moment.counts[:, Kind.IMPRESSION, LONGEST]
        shop = moment.shop_rate(Kind.CLICK, Kind.IMPRESSION)
        out = np.column_stack(
            [
                np.random.default_rng((self._seed, r.number)).random(len(r.candidates)),
                self._count.before(r.candidates, r.at),
                recent_popularity(r.items, r.candidates, r.at),
                (clicks + RATE_STRENGTH * shop) / (shown + RATE_STRENGTH),
                own_history(r.history, r.candidates),
                moment.co_occurrence[0],
                self._ease(r.at).scores(r.history, r.candidates),
                self._zero_shot.toward(r.candidates, self._zero_shot.pooled(moment.engaged.item, moment.weight)),
                r.items.vectors.toward(r.candidates, r.items.vectors.pooled(moment.engaged.item, moment.weight)),
            ]
        )
        if self._new_only:
            # It has nothing else to offer.
            out[:, BASELINES.index("own_history")] = np.nan
            had = np.isin(r.candidates, r.history.item)
            out[had] = np.where(np.isnan(out[had]), np.nan, -np.inf)
        return out

    def _ease(self, at: float) -> Ease:
        due = [moment for moment in self._fit_at if moment <= at]
        if due:
            self._fit_at = self._fit_at[len(due) :]
            self._fit = Ease.chosen(self._recent(due[-1]), self._n, self._new_only, self._seed)
        assert self._fit is not None, "lists are read in time order, from the first that was given"
        return self._fit


def order_of(score: F64 | F32, item: I32, start: I64, ties: U64) -> I32:
    """int32[lists, DEPTH]: the items of each list by falling score; `-1` after the last. ties: of `tie_break`."""
    rows = top_k(score, start, ties, DEPTH)
    return np.where(rows >= 0, item[rows] if len(item) else -1, -1).astype(np.int32)
