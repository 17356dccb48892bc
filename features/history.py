"""User state: two short lists, newest first. User features are functions of them, the candidates and the moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I8, I32, I64
from features.kernels.compiled import compiled
from features.log import Events, Kind

ENGAGEMENTS = 100
SHOWN = 240
"""Caps of the two lists, the same in Redis and in replay. 240 impressions are ten lists of 24."""


SESSION_S = 1800.0
"""A visit ends where nothing happens for half an hour."""


class History(NamedTuple):
    """What a user did and was shown strictly before a moment, newest first.

    Equal times stand by kind, then item id, descending.

    item: int32[m <= 100], `-1` outside the catalogue. kind: int8[m], a `Kind` other than IMPRESSION. at: float64[m].
    shown_item: int32[s <= 240], shown_at: float64[s]: the impressions.
    """

    item: I32
    kind: I8
    at: F64
    shown_item: I32
    shown_at: F64


EMPTY = History(np.empty(0, np.int32), np.empty(0, np.int8), np.empty(0), np.empty(0, np.int32), np.empty(0))


class Session(NamedTuple):
    """The visit under way: engagements and impressions so far, and when it began, Unix seconds; now where it begins."""

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
    """The visit of a user at a moment, by his two lists: it goes back to the newest gap of more than `SESSION_S`.

    engaged_at, shown_at: float64, Unix seconds, newest first. No further than the lists reach.
    """
    return Session(*_session(engaged_at, shown_at, float(at), SESSION_S))


@compiled
def _ends(start: I64, at: F64, moment: float) -> I64:
    """int64[users]: the end of each user's rows strictly before a moment."""
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

    row: int64[n], where each stands in the log. item: int32[n]. kind: int8[n]. at: float64[n].
    """

    start: I64
    row: I64
    item: I32
    kind: I8
    at: F64

    @classmethod
    def of(cls, events: Events, rows: I64) -> EventsByUser:
        """Of these rows (ascending) of a log."""
        # `events` is in (at, kind, item) order already, so a stable sort by user keeps that order within each.
        rows = rows[np.argsort(events.user[rows], kind="stable")]
        start = np.searchsorted(events.user[rows], np.arange(events.n_users + 1))
        return cls(start, rows, events.item[rows], events.kind[rows], events.at[rows])

    def newest(self, user: int, at: float, cap: int) -> slice:
        """A user's newest rows strictly before a moment, at most `cap`."""
        lo, hi = self.start[user], self.start[user + 1]
        end = lo + int(np.searchsorted(self.at[lo:hi], at, side="left"))
        return slice(max(lo, end - cap), end)

    def newest_of_all(self, at: float, cap: int) -> I64:
        """int64, ascending: where in the log the newest events of every user strictly before a moment stand, at most
        `cap` of each."""
        end = _ends(self.start, self.at, float(at))
        size = np.minimum(end - self.start[:-1], cap)
        first = np.cumsum(size) - size
        place = np.repeat(end - size - first, size) + np.arange(size.sum())
        return np.sort(self.row[place])


class Histories:
    """Every user's two lists at any moment, from a log: what Redis would have held then."""

    def __init__(self, engagements: EventsByUser, shown: EventsByUser) -> None:
        self.engagements, self.shown = engagements, shown

    @classmethod
    def of(cls, events: Events) -> Histories:
        """Of a log, in memory."""
        shown = events.kind == Kind.IMPRESSION
        return cls(*(EventsByUser.of(events, np.flatnonzero(rows)) for rows in (~shown, shown)))

    def read(self, user: int, at: float) -> History:
        """The lists of a user strictly before a moment."""
        e, s = self.engagements, self.shown
        i, j = e.newest(user, at, ENGAGEMENTS), s.newest(user, at, SHOWN)
        # Copies, not reversed views: the service reads contiguous arrays, and equal memory gives equal bits.
        return History(
            e.item[i][::-1].copy(),
            e.kind[i][::-1].copy(),
            e.at[i][::-1].copy(),
            s.item[j][::-1].copy(),
            s.at[j][::-1].copy(),
        )


AGE_HALF_LIFE_S = 14 * 86400.0
"""An engagement this old weighs half as much as one just now."""


_KIND_WEIGHT = np.zeros(len(Kind), np.float32)


_KIND_WEIGHT[[Kind.VIEW, Kind.CLICK, Kind.CART, Kind.PURCHASE, Kind.RATING]] = (1.0, 1.0, 2.0, 3.0, 1.0)


def engagement_weights(kind: I8, age_s: F64) -> F32:
    """float32, like `kind`: how much each engagement counts towards interest; impressions 0, a fresh purchase 3.

    age_s: seconds from the engagement to the moment of reading, at least 0.
    """
    out: F32 = (_KIND_WEIGHT[kind] * np.exp2(-age_s / AGE_HALF_LIFE_S)).astype(np.float32)
    return out
