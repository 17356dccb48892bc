"""User state: two short lists of events per user, newest first.

User features are functions of these lists, the candidates and the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I8, I32, I64, U64
from features.kernels.compiled import compiled
from features.log import Events, Kind
from features.retention import DEFAULT_RETENTION, Retention, unexpired

ENGAGEMENTS = 100
SHOWN = 240
"""Maximum lengths of the two lists, the same in Redis and in replay. 240 impressions are ten lists of 24."""


SESSION_S = 1800.0
"""A session ends after 30 minutes without an event."""


class History(NamedTuple):
    """A user's engagements and impressions strictly before a time, newest first.

    Equal times are ordered by kind, then item id, descending.

    item: int32[m <= 100], `-1` outside the catalogue. kind: int8[m], a `Kind` other than IMPRESSION. at: float64[m].
    shown_item: int32[s <= 240], shown_at: float64[s]: the impressions.
    """

    item: I32
    kind: I8
    at: F64
    shown_item: I32
    shown_at: F64


class Outside(NamedTuple):
    """The events of both lists of a user whose item is outside the catalogue, in no particular order.

    Features do not use them; rules on item IDs do. item_ids: list of m IDs. kind: int8[m]. at: float64[m].
    """

    item_ids: list[str]
    kind: I8
    at: F64


NO_OUTSIDE = Outside([], np.empty(0, np.int8), np.empty(0))
EMPTY = History(np.empty(0, np.int32), np.empty(0, np.int8), np.empty(0), np.empty(0, np.int32), np.empty(0))


class Session(NamedTuple):
    """The current session: its engagements and impressions so far, and its start in Unix seconds.

    A session without events starts at the current time.
    """

    engaged: int
    shown: int
    began: float


@compiled
def _session(engaged_at: F64, shown_at: F64, at: float, gap_s: float) -> tuple[int, int, float]:
    e, s, began = 0, 0, at
    while True:
        newest = -np.inf
        if e < len(engaged_at):
            newest = engaged_at[e]
        if s < len(shown_at):
            newest = max(newest, shown_at[s])
        if not began - newest <= gap_s:
            return e, s, began
        began = min(began, newest)
        if e < len(engaged_at) and engaged_at[e] == newest:
            e += 1
        else:
            s += 1


def session(engaged_at: F64, shown_at: F64, at: float) -> Session:
    """The current session of a user, which begins after the newest gap of more than `SESSION_S` in their two lists.

    engaged_at, shown_at: float64, Unix seconds, newest first. A session reaches no further back than the lists.
    """
    return Session(*_session(engaged_at, shown_at, float(at), SESSION_S))


@compiled
def _ends(start: I64, at: F64, moment: float) -> I64:
    """int64[users]: the end of each user's rows strictly before a time."""
    out = np.empty(len(start) - 1, np.int64)
    for u in range(len(out)):
        low, high = start[u], start[u + 1]
        while low < high:
            middle = (low + high) // 2
            if at[middle] < moment:
                low = middle + 1
            else:
                high = middle
        out[u] = low
    return out


@dataclass(frozen=True)
class EventsByUser:
    """Events sorted by user, then time, kind and item: user u's are rows `start[u]:start[u + 1]`.

    row: int64[n], row numbers in the log. item: int32[n]. kind: int8[n]. at: float64[n].
    """

    start: I64
    row: I64
    item: I32
    kind: I8
    at: F64

    @classmethod
    def of(cls, events: Events, rows: I64) -> EventsByUser:
        """Sort the given rows (ascending) of a log by user."""
        # `events` is in (at, kind, item) order already, so a stable sort by user keeps that order within each.
        rows = rows[np.argsort(events.user[rows], kind="stable")]
        start = np.searchsorted(events.user[rows], np.arange(events.n_users + 1))
        return cls(start, rows, events.item[rows], events.kind[rows], events.at[rows])

    def newest(self, user: int, at: float, cap: int) -> slice:
        """A user's newest rows strictly before a time, at most `cap`."""
        lo, hi = self.start[user], self.start[user + 1]
        end = lo + int(np.searchsorted(self.at[lo:hi], at, side="left"))
        return slice(max(lo, end - cap), end)

    def newest_of_all(self, at: float, cap: int) -> I64:
        """int64, ascending: log rows of every user's newest events strictly before a time, at most `cap` per user."""
        end = _ends(self.start, self.at, float(at))
        size = np.minimum(end - self.start[:-1], cap)
        first = np.cumsum(size) - size
        place = np.repeat(end - size - first, size) + np.arange(size.sum())
        return np.sort(self.row[place])


class Merges(NamedTuple):
    """Merges of users, in time order: what user `source` had before `at` is in the lists of user `into` from then on.

    source, into: int32[m]. at: float64[m], Unix seconds.
    """

    source: I32
    into: I32
    at: F64


NO_MERGES = Merges(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0))
_NONE = np.empty(0, np.int64)


class _Periods(NamedTuple):
    """The events of one list of a user after a merge, before newer events: `place[start[p]:start[p + 1]]` for period p.

    user: int64[p], ascending. since: float64[p], ascending by user: time of the merge. place: int64, ascending by time,
    places in the `EventsByUser` of the list.
    """

    user: I64
    since: F64
    start: I64
    place: I64

    @classmethod
    def of(cls, periods: Sequence[tuple[int, float, I64]]) -> _Periods:
        """Periods from (user, since, places), in time order."""
        ordered = sorted(periods, key=lambda p: p[0])
        size = [len(place) for _, _, place in ordered]
        return cls(
            np.array([user for user, _, _ in ordered], np.int64),
            np.array([since for _, since, _ in ordered], np.float64),
            np.concatenate(([0], np.cumsum(size, dtype=np.int64))),
            np.concatenate([_NONE, *(place for _, _, place in ordered)]),
        )

    def at(self, user: int, at: float) -> tuple[float, I64] | None:
        """(since, places) of a user's period just before a time; None before the first merge of the user."""
        if not len(self.user):
            return None
        low, high = np.searchsorted(self.user, (user, user + 1))
        p = low + int(np.searchsorted(self.since[low:high], at)) - 1
        return (float(self.since[p]), self.place[self.start[p] : self.start[p + 1]]) if p >= low else None


class Histories:
    """Both lists of every user at any time, derived from a log: what Redis would have held then."""

    def __init__(
        self,
        engagements: EventsByUser,
        shown: EventsByUser,
        kept_s: F64,
        merges: Merges = NO_MERGES,
        event_key: U64 | None = None,
    ) -> None:
        """kept_s: float64[users], see `Retention.of_all`. event_key: uint64, hash of the ID of each event of the log; a
        merge drops events with an ID that the other user has. None if all IDs differ."""
        self.engagements, self.shown, self._kept_s = engagements, shown, kept_s
        self._periods = [
            _Periods.of(self._join(events, cap, merges, event_key))
            for events, cap in ((engagements, ENGAGEMENTS), (shown, SHOWN))
        ]

    @classmethod
    def of(
        cls,
        events: Events,
        retention: Retention = DEFAULT_RETENTION,
        merges: Merges = NO_MERGES,
        event_key: U64 | None = None,
    ) -> Histories:
        """Build from a log, in memory."""
        shown = events.kind == Kind.IMPRESSION
        engaged, impressions = (EventsByUser.of(events, np.flatnonzero(rows)) for rows in (~shown, shown))
        return cls(engaged, impressions, retention.of_all(events.user_ids), merges, event_key)

    def _join(
        self, events: EventsByUser, cap: int, merges: Merges, event_key: U64 | None
    ) -> list[tuple[int, float, I64]]:
        """The periods of one list, in time order: each merge begins one of either user."""
        latest: dict[int, tuple[float, I64]] = {}
        out = list[tuple[int, float, I64]]()
        for source, into, at in zip(merges.source.tolist(), merges.into.tolist(), merges.at.tolist(), strict=True):
            moved, own = (self._held(events, cap, user, at, latest.get(user)) for user in (source, into))
            if event_key is not None:
                moved = moved[~np.isin(event_key[events.row[moved]], event_key[events.row[own]])]
            both = np.concatenate((own, moved))
            both = both[np.argsort(events.row[both])][-cap:]
            for user, place in ((source, _NONE), (into, both)):
                latest[user] = (at, place)
                out.append((user, at, place))
        return out

    def _held(self, events: EventsByUser, cap: int, user: int, at: float, period: tuple[float, I64] | None) -> I64:
        """Places of the events in one list of a user strictly before a time, without expired ones, oldest first."""
        since, before = period or (-np.inf, _NONE)
        low, high = events.start[user], events.start[user + 1]
        first, end = low + np.searchsorted(events.at[low:high], (since, at))
        place = np.concatenate((before, np.arange(max(first, end - cap), end)))[-cap:]
        return place[len(place) - unexpired(events.at[place][::-1], at, self._kept_s[user]) :]

    def read(self, user: int, at: float) -> History:
        """The lists of a user strictly before a time, without expired events."""
        e, s = self.engagements, self.shown
        i, j = self._kept(e, 0, user, at, ENGAGEMENTS), self._kept(s, 1, user, at, SHOWN)
        # Copies rather than reversed views: the service uses contiguous arrays, and the same layout gives identical
        # bits.
        return History(
            e.item[i][::-1].copy(),
            e.kind[i][::-1].copy(),
            e.at[i][::-1].copy(),
            s.item[j][::-1].copy(),
            s.at[j][::-1].copy(),
        )

    def latest_rows(self, user: int, factor: int, since: float) -> tuple[I64, I64]:
        """Log rows of a user's newest engagements and impressions at the end of the log: `factor` times as many as a
        list may have, and all from `since` (Unix seconds) on. Those that a merge moved to another user are left out."""
        engaged = self._latest(self.engagements, 0, user, factor * ENGAGEMENTS, since)
        return engaged, self._latest(self.shown, 1, user, factor * SHOWN, since)

    def _latest(self, events: EventsByUser, of_list: int, user: int, most: int, since: float) -> I64:
        began, before = self._periods[of_list].at(user, np.inf) or (-np.inf, _NONE)
        low, high = events.start[user], events.start[user + 1]
        first, recent = low + np.searchsorted(events.at[low:high], (began, since))
        first = max(first, min(recent, high - most))
        rows: I64 = events.row[np.concatenate((before, np.arange(first, high)))]
        return rows

    def _kept(self, events: EventsByUser, of_list: int, user: int, at: float, cap: int) -> slice | I64:
        period = self._periods[of_list].at(user, at)
        if period is not None:
            return self._held(events, cap, user, at, period)
        newest = events.newest(user, at, cap)
        count = unexpired(events.at[newest][::-1], at, self._kept_s[user])
        return slice(newest.stop - count, newest.stop)


AGE_HALF_LIFE_S = 14 * 86400.0
"""An engagement of this age has half the weight of a new one."""


_KIND_WEIGHT = np.zeros(len(Kind), np.float32)


_KIND_WEIGHT[[Kind.VIEW, Kind.CLICK, Kind.CART, Kind.PURCHASE, Kind.RATING]] = (1.0, 1.0, 2.0, 3.0, 1.0)


def engagement_weights(kind: I8, age_s: F64) -> F32:
    """float32, like `kind`: weight of each engagement in the user's interest; impressions 0, a new purchase 3.

    age_s: seconds since the engagement, at least 0.
    """
    out: F32 = (_KIND_WEIGHT[kind] * np.exp2(-age_s / AGE_HALF_LIFE_S)).astype(np.float32)
    return out
