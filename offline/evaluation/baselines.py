"""Simple baselines: rankings by counts, co-occurrence, EASE and text similarity, as of the time of each list.

The baselines are tuned, because beating a weak one proves nothing: where users rarely buy an item again, no baseline
recommends what the user already had, and the penalty and memory of EASE are selected on events before the test.
Co-occurrence weighs engagements by age, in what is counted and in the user's list. `sessions` counts pairs of one
session alone, and starts from the latest visits. `blend` adds co-occurrence and text similarity, with a weight that was
chosen on validation lists of other data sets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from features.arrays import F32, F64, I32, I64
from features.history import History
from features.log import Events, Kind, Lists
from features.moment import LONGEST, Moment
from features.neighbours import Neighbours
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
    "sessions",
    "ease",
    "text_zero_shot",
    "text",
    "blend",
)
DEPTH = 100
"""Number of items kept per ranking; no metric uses more."""

_TEXT_WEIGHT = 0.7
"""Weight of text relative to co-occurrence in `blend`, in standard deviations within the list."""
_VISIT_MEMORY = 1.0
"""Half-life, in visits, of what `sessions` starts from."""

REPEATS_ARE_RARE = 0.05
"""Repeat rate below which the baselines put items that the user already had at the end."""


def own_history(history: History, candidates: I32) -> F64:
    """float64, like `candidates`: number of the user's visits with each candidate; ties go to the latest.

    A visit is all engagements at one time. This is the frequency baseline of next-basket recommendation (Li et al.,
    TOIS 2023), hard to beat where users buy items again. All NaN if the history has no candidate.
    """
    visit = np.cumsum(np.diff(history.at, prepend=history.at[:1]) != 0)
    known, first, row = np.unique(history.item, return_index=True, return_inverse=True)
    count = np.bincount(np.unique(np.stack((row, visit)), axis=1)[0], minlength=len(known))
    # The history is newest first. The addend is below 1, so it only breaks ties.
    score = count + 1 / (2.0 + visit[first])
    place = np.searchsorted(known, candidates)
    is_known = (place < len(known)) & (candidates >= 0)
    is_known[is_known] = known[place[is_known]] == candidates[is_known]
    if not is_known.any():
        return np.full(len(candidates), np.nan)
    out = np.zeros(len(candidates))
    out[is_known] = score[place[is_known]]
    return out


def blend(co_occurrence: F64, text: F32) -> F64:
    """float64, like both: their sum, each at mean 0 and deviation 1 over the candidates, text times `_TEXT_WEIGHT`.

    An unknown similarity counts as a mean one. All NaN if neither tells any candidates apart.
    """
    standard = []
    for score in (co_occurrence, text.astype(np.float64)):
        known = score[~np.isnan(score)]
        deviation = known.std() if len(known) else 0.0
        mean = known.mean() if len(known) else 0.0
        standard.append(np.nan_to_num((score - mean) / deviation) if deviation > 0 else np.zeros(len(score)))
    out: F64 = standard[0] + _TEXT_WEIGHT * standard[1]
    return out if out.any() else np.full(len(out), np.nan)


class EngagementCounts:
    """Number of engagements of entities (users, items or pairs) before given times.

    Each query reads the whole log once and needs memory for the query alone.
    """

    def __init__(self, events: Events, entity: Callable[[Events], I64]) -> None:
        """events: the log. entity: int64, the entity of each event, as any number."""
        self._events, self._entity = events, entity

    def before(self, entity: I64, at: F64 | float) -> F64:
        """float64, like `entity`: its engagements strictly before `at`; 0 for an unknown entity."""
        entities, code = np.unique(entity, return_inverse=True)
        times, when = np.unique(np.broadcast_to(at, entity.shape), return_inverse=True)
        query = code.astype(np.int64) * (len(times) + 1) + when
        count = np.zeros(len(query), np.int64)
        for part in self._events.before(float(times[-1]) if len(times) else -np.inf).parts():
            acts = engagements(part)
            event_entity = self._entity(acts)
            place = np.minimum(np.searchsorted(entities, event_entity), len(entities) - 1)
            known = entities[place] == event_entity
            # An event counts for all times after its own.
            since = np.searchsorted(times, acts.at[known], side="right")
            key = np.sort(place[known].astype(np.int64) * (len(times) + 1) + since)
            count += np.searchsorted(key, query, "right") - np.searchsorted(key, query - when, "left")
        return count.astype(np.float64)


class RunningCounts:
    """Number of engagements with each item before a time. Times must not decrease from call to call."""

    def __init__(self, events: Events, n_items: int) -> None:
        self._events, self._done, self._count = events, 0, np.zeros(n_items, np.int64)

    def before(self, item: I32, at: float) -> F64:
        """float64, like `item` (catalogue rows): engagements with it strictly before `at`."""
        end = int(np.searchsorted(self._events.at, at, side="left"))
        for part in self._events.take(slice(self._done, end)).parts():
            self._count += np.bincount(engagements(part).item, minlength=len(self._count))
        self._done = max(end, self._done)
        return self._count[item].astype(np.float64)


def repeat_rate(events: Events) -> float:
    """Share, 0 to 1, of engagements that go to an item their user had engaged with before; 0 without engagements.

    Engagements of one user with one item at one time count once. For example, 0.39 in a shop that sells refills, and 0
    if users review what they own.
    """
    acts = engagements(events)
    if not len(acts):
        return 0.0
    key = pairs(acts.user, acts.item)
    order = np.lexsort((acts.at, key))
    key, at = key[order], acts.at[order]
    same_pair = np.diff(key, prepend=-1) == 0
    later = np.diff(at, prepend=-np.inf) > 0
    # Repeats are the rows at a new time that are not the first of their pair.
    return float((same_pair & later).sum() / (~same_pair | later).sum())


class Baselines:
    """Rankings by each of `BASELINES`, for lists read in time order."""

    def __init__(self, replay: Replay, lists: Lists, zero_shot: Vectors, seed: int, whole: bool) -> None:
        """lists: the lists that will be read, from the log of `replay`. whole: rank the whole catalogue instead of the
        candidates of each list.

        EASE and the neighbours by session are fitted once, to events before the first list. With `whole`, lists may
        have any time, and they are fitted up to four times. They always use earlier events only: each user's newest
        engagements, as many as item neighbours use.
        """
        self._n, self._zero_shot, self._seed, self._whole = len(replay.catalogue), zero_shot, seed, whole
        self._recent, self._count = replay.recent, RunningCounts(replay.events, self._n)
        begin = float(lists.at.min(initial=np.inf))
        is_rebuilt = not (lists.position >= 0).any()
        self._new_only = is_rebuilt and repeat_rate(replay.recent(begin)) < REPEATS_ARE_RARE
        times = np.quantile(lists.at, [0, 0.25, 0.5, 0.75], method="lower") if len(lists) else np.empty(0)
        self._fit_at = np.unique(times if whole else times[:1]).tolist()
        self._fit: tuple[Ease, Neighbours] | None = None

    def best(self, snapshot: Snapshot) -> I32:
        """int32[BASELINES, DEPTH]: the top items of each baseline, best first; `-1` after the last.

        All `-1` for a baseline that can score no candidate.
        """
        r = snapshot
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

    def scores(self, snapshot: Snapshot) -> F64:
        """float64[candidates, BASELINES]: the score of each candidate by each baseline; NaN where it has none.

        item_click_rate shrinks toward the shop's rate, not toward a prediction, so that it uses counts alone.
        """
        r = snapshot
        moment = Moment(r.items, r.history, r.candidates, r.at)
        clicks, shown = moment.counts[:, Kind.CLICK, LONGEST], moment.counts[:, Kind.IMPRESSION, LONGEST]
        shop_rate = moment.shop_rate(Kind.CLICK, Kind.IMPRESSION)
        ease, by_session = self._fitted(r.at)
        engaged = moment.engaged
        visit = np.cumsum(np.diff(engaged.at, prepend=engaged.at[:1]) != 0)
        of_sessions = by_session.scores(r.candidates, engaged.item, np.exp2(-visit / _VISIT_MEMORY))[0]
        text = r.items.vectors.cosines_to(r.candidates, r.items.vectors.pooled(engaged.item, moment.weight))
        out = np.column_stack(
            [
                np.random.default_rng((self._seed, r.number)).random(len(r.candidates)),
                self._count.before(r.candidates, r.at),
                recent_popularity(r.items, r.candidates, r.at),
                (clicks + RATE_STRENGTH * shop_rate) / (shown + RATE_STRENGTH),
                own_history(r.history, r.candidates),
                moment.co_occurrence[0],
                of_sessions if of_sessions.any() else np.full(len(r.candidates), np.nan),
                ease.scores(r.history, r.candidates),
                self._zero_shot.cosines_to(r.candidates, self._zero_shot.pooled(moment.engaged.item, moment.weight)),
                text,
                blend(moment.co_occurrence[0], text),
            ]
        )
        if self._new_only:
            # own_history only scores items that the user had before.
            out[:, BASELINES.index("own_history")] = np.nan
            seen = np.isin(r.candidates, r.history.item)
            out[seen] = np.where(np.isnan(out[seen]), np.nan, -np.inf)
        return out

    def _fitted(self, at: float) -> tuple[Ease, Neighbours]:
        due = [time for time in self._fit_at if time <= at]
        if due:
            self._fit_at = self._fit_at[len(due) :]
            recent = self._recent(due[-1])
            by_session = Neighbours.build(recent, self._n, due[-1], users=False)
            self._fit = Ease.select(recent, self._n, self._new_only, self._seed), by_session
        assert self._fit is not None, "lists must be read in time order, starting with the first of those given"
        return self._fit


def order_of(score: F64 | F32, item: I32, start: I64, ties: U64) -> I32:
    """int32[lists, DEPTH]: the items of each list by descending score; `-1` after the last. ties: from `tie_break`."""
    rows = top_k(score, start, ties, DEPTH)
    return np.where(rows >= 0, item[rows] if len(item) else -1, -1).astype(np.int32)
