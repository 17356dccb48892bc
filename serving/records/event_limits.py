"""Limits on the events of one shopper: per minute, per day, and per item and day.

They bound what a fake shopper can add to the counts of an item. An event over a limit is refused before it is stored,
so that live service and replay have the same counts. Counts are kept in each worker and not in Redis, as rate limits of
keys are: with several workers, a shopper who uses all of them reaches as many times the limits.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable

from features.log import Kind
from serving.config import ServiceConfig
from serving.store import Event

_KEPT = 100_000
"""Maximum number of counts per window; beyond it, the oldest are forgotten. One takes 215 bytes."""


class Window:
    """Counts by key in the current period of the clock, such as a UTC day. most: maximum per key, None for no limit."""

    def __init__(self, seconds: int, most: int | None) -> None:
        self.seconds, self.most = seconds, most
        # A plain dict takes ever longer to find its oldest key as keys are deleted.
        self._period, self._counts = -1, OrderedDict[Hashable, int]()

    def has_room(self, key: Hashable, now: float) -> bool:
        """True if another event of a key is within the limit. now: Unix seconds."""
        if (period := int(now // self.seconds)) != self._period:
            self._period, self._counts = period, OrderedDict()
        return self.most is None or self._counts.get(key, 0) < self.most

    def add(self, key: Hashable, count: int) -> None:
        """Add to the count of a key, after `has_room` for the same time. count: 1, or -1 to take an event back."""
        if self.most is None:
            return
        self._counts[key] = max(0, self._counts.get(key, 0) + count)
        if len(self._counts) > _KEPT:
            self._counts.popitem(last=False)

    def left_s(self, now: float) -> int:
        """Seconds until the next period, rounded up."""
        return math.ceil(self.seconds - now % self.seconds)


class EventLimits:
    """The limits of a configuration and the counts of a worker."""

    def __init__(self, config: ServiceConfig) -> None:
        self._minute = Window(60, config.shopper_events_per_minute)
        self._day = Window(86_400, config.shopper_events_per_day)
        self._engaged = Window(86_400, config.shopper_item_engagements_per_day)
        self._shown = Window(86_400, config.shopper_item_impressions_per_day)

    def exceeded(self, event: Event, now: float) -> tuple[str, int] | None:
        """Count an event, unless a limit is reached: then (the limit in words, seconds until it is lifted)."""
        windows = self._windows(event)
        for window, key, of_what in windows:
            if not window.has_room(key, now):
                return f"{window.most} {of_what}", window.left_s(now)
        for window, key, _ in windows:
            window.add(key, 1)
        return None

    def take_back(self, events: Iterable[Event]) -> None:
        """Undo `exceeded` for events that were counted and then not stored, such as duplicates."""
        for event in events:
            for window, key, _ in self._windows(event):
                window.add(key, -1)

    def _windows(self, event: Event) -> tuple[tuple[Window, int, str], ...]:
        # Hashes instead of IDs: a count has the same size whatever the length of the IDs. They differ by process.
        user, pair = hash(event.user_id), hash((event.user_id, event.item_id))
        if event.kind == Kind.IMPRESSION:
            of_item = (self._shown, pair, "impressions of one item to one shopper per day")
        else:
            of_item = (self._engaged, pair, "engagements of one shopper with one item per day")
        return (
            (self._minute, user, "events of one shopper per minute"),
            (self._day, user, "events of one shopper per day"),
            of_item,
        )
