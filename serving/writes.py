"""Writes of the service: events, items, attributes of users, merges and erasures. Each is validated, then stored."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from features.bounds import COLUMNS
from features.columns import Column
from serving.api import (
    Accepted,
    Derived,
    EventsAnswer,
    ItemsAnswer,
    MergeAnswer,
    Problem,
    Refusal,
    Rejected,
    UserAnswer,
    accept_item,
    columns,
    decoding,
    events,
    merges,
)
from serving.config import ServiceConfig
from serving.experiments import unit_hash
from serving.records import EventLimits, Metrics
from serving.store import (
    REFUSED,
    TOO_MANY,
    AttributeWrite,
    Event,
    ItemSize,
    Merge,
    Outcome,
    Store,
    StoreAway,
    WrittenItems,
)

_EVENTS_PER_TURN = 100
"""Events validated before other requests have a turn: 1,000 events take more than 10 ms."""


class Writes:
    """The writing operations behind the routes."""

    def __init__(
        self,
        config: ServiceConfig,
        store: Store,
        written: WrittenItems,
        clock: Callable[[], float],
        metrics: Metrics,
        columns: Callable[[], Sequence[Column]],
    ) -> None:
        """clock: the time of a request, Unix seconds. columns: those that the live release declares."""
        self._config, self._store, self._written, self._clock, self._metrics = config, store, written, clock, metrics
        self._columns = columns
        self._limits = EventLimits(config)

    def _moment(self) -> float:
        """Now, as `Service.moment`."""
        return math.ceil(self._clock() * 1e6) / 1e6

    async def take(self, body: bytes, content_type: str = "", shopper: str | None = None) -> EventsAnswer:
        """Validate the events of a body one by one, and store the valid ones.

        Events of new users are refused while the maximum number of users have lists. shopper: the user whose events
        these must be; None for any. Raises Problem if no event is valid (422), if every valid one is over a limit of
        its shopper (429) or refused (503), or if Redis is unavailable (503).
        """
        now, most = self._clock(), self._config.max_events
        accepted: list[tuple[int, Accepted]] = []
        rejected: list[Rejected] = []
        wait_s = list[int]()
        for index, one in enumerate(decoding.split_body(body, most, content_type)):
            for event in events.accept(one, now, self._config.future_s):
                if not isinstance(event, Accepted):
                    rejected.append(Rejected(index, event.field, event.message))
                elif shopper is not None and event.event.user_id != shopper:
                    rejected.append(Rejected(index, "user_id", "is not the shopper of the token"))
                elif over := self._limits.exceeded(event.event, now):
                    rejected.append(Rejected(index, "user_id", f"the limit of {over[0]} is reached"))
                    wait_s.append(over[1])
                else:
                    accepted.append((index, event))
            decoding.check_count(len(accepted) + len(rejected), most, "events")
            if index % _EVENTS_PER_TURN == _EVENTS_PER_TURN - 1:
                await asyncio.sleep(0)
        outcomes = await self._write([a.event for _, a in accepted], now)
        count, of_event = Counter(outcomes), list(zip(accepted, outcomes, strict=True))
        late = "the user was erased after this time"
        rejected += [Rejected(index, "timestamp", late) for (index, _), o in of_event if o is Outcome.ERASED]
        rejected.sort(key=lambda r: r.index)
        self._metrics.rejected(rejected)
        new, duplicates, refused = count[Outcome.NEW], count[Outcome.DUPLICATE], count[Outcome.REFUSED]
        self._metrics.events(new, duplicates, refused, count[Outcome.ERASED], len(wait_s))
        full = f"the maximum of {self._config.max_users} users have lists; send this user's events again later"
        if (rejected or refused) and not new + duplicates:
            raise _too_many_users(full) if refused else _no_event(rejected, wait_s)
        rejected += [Rejected(index, "user_id", full) for (index, _), o in of_event if o is Outcome.REFUSED]
        rejected.sort(key=lambda r: r.index)
        stored = [(index, a) for (index, a), o in of_event if o in {Outcome.NEW, Outcome.DUPLICATE}]
        return EventsAnswer(new, duplicates, rejected, [Derived(i, a.event.event_id) for i, a in stored if a.derived])

    async def write_items(self, body: bytes, content_type: str = "") -> ItemsAnswer:
        """Validate the items of a body one by one, and store the valid ones, new or changed.

        An item that would become too large with what was written before is rejected. Raises Problem if no item is valid
        (422) or Redis is unavailable (503).
        """
        now = self._moment()
        valid: dict[str, dict[str, bytes]] = {}
        indices: dict[str, list[int]] = {}
        rejected: list[Rejected] = []
        parts = decoding.split_body(body, self._config.max_items, content_type, "items")
        for index, one in enumerate(parts):
            try:
                item_id, fields = accept_item(one, now)
            except Refusal as e:
                rejected.append(Rejected(index, e.field, e.message))
            else:
                valid[item_id] = valid.get(item_id, {}) | fields
                indices.setdefault(item_id, []).append(index)
        oversized = await self._write_items(valid, now)
        for item_id, size in oversized.items():
            message = f"item {item_id!r} would have {size}; no field of it was written"
            rejected += [Rejected(index, None, message) for index in indices[item_id]]
        if rejected and len(oversized) == len(valid):
            raise Problem(
                422,
                "no-item-taken",
                "No valid item",
                rejected[0].message,
                "See /docs for the fields and their types.",
                rejected[0].field,
                rejected=msgspec.to_builtins(rejected),
            )
        return ItemsAnswer(len(parts) - len(rejected), rejected)

    async def withdraw(self, item_id: str) -> ItemsAnswer:
        """Remove an item from all results. Idempotent. Raises Problem."""
        now = self._moment()
        fields = {"at": msgspec.json.encode(now), "available": b"false"}
        await self._write_items({decoding.request_id("item_id", item_id): fields}, now)
        return ItemsAnswer(1, [])

    async def _write_items(self, fields: dict[str, dict[str, bytes]], now: float) -> dict[str, ItemSize]:
        """Write items; returns the sizes of those that were not written because they would be too large."""
        with redis_required("Items cannot be written", "Retry after a second."):
            refused = await self._written.write(fields, now, self._config.written_items)
        if refused.full:
            raise Problem(
                503,
                "too-many-written-items",
                "Too many written items",
                f"the limit of {self._config.written_items} items written since the release is reached",
                "Import the catalogue with `shelfwise import` and run `shelfwise nightly`, or raise `written_items`.",
                headers={"Retry-After": "30"},
            )
        return refused.oversized

    async def _write(self, given: list[Event], now: float) -> list[Outcome]:
        """Write events that are within the limits of their shoppers, and count only those that are new."""
        remedy = "Retry after a second. With an event_id, an event that was already stored is counted once."
        stored: list[Outcome] = []
        try:
            with redis_required("Events cannot be stored", remedy):
                stored = await self._store.write(given, now)
            return stored
        finally:
            outcomes = stored or [Outcome.DUPLICATE] * len(given)
            self._limits.take_back(e for e, o in zip(given, outcomes, strict=True) if o != Outcome.NEW)

    async def write_user(self, user_id: str, body: bytes) -> UserAnswer:
        """Write attributes of a user. Raises Problem (422, 503)."""
        user_id = decoding.request_id("user_id", user_id)
        write = AttributeWrite(user_id, self._moment(), columns.user_attributes(body, self._columns()))
        with redis_required("Attributes cannot be written", "Retry after a second."):
            count = await self._store.write_attributes(write)
        if count == REFUSED:
            raise _too_many_users(f"the maximum of {self._config.max_users} users have lists or attributes")
        if count == TOO_MANY:
            raise Problem(
                422,
                "too-many-attributes",
                "Too many attributes",
                f"the user would have more than {COLUMNS} attributes; none was written",
                "Write fewer attributes. Those that were cleared count until the user expires.",
                "attributes",
            )
        return UserAnswer(write.at)

    async def merge(self, user_id: str, body: bytes) -> MergeAnswer:
        """Move the history and the attributes of an anonymous user to a user. Idempotent. Raises Problem (400, 422,
        503)."""
        user, anonymous = merges.merge_users(user_id, body)
        merge = Merge(user, anonymous, self._moment())
        unit, unit_s = None, math.ceil(self._config.retention.of(user))
        if any(one.unit == "user" for one in self._config.experiments.values()):
            unit = unit_hash(anonymous).to_bytes(8, "little")
        with redis_required("The users cannot be merged", "Retry after a second. What was moved is moved once."):
            moved = await self._store.merge(merge, unit, unit_s)
        if moved == REFUSED:
            raise _too_many_users(f"the maximum of {self._config.max_users} users have lists; nothing was moved")
        return MergeAnswer(merge.at, moved)

    async def erase(self, user_id: str) -> events.ErasureAnswer:
        """Erase a user: at once from Redis, and from the log with the next `collect`. Idempotent. Raises Problem."""
        at = self._moment()
        with redis_required("The user cannot be erased", "Retry after a second."):
            await self._store.erase(decoding.request_id("user_id", user_id), at)
        return events.ErasureAnswer(at)


@contextmanager
def redis_required(title: str, remedy: str) -> Iterator[None]:
    """Raise Problem (503) if Redis is unavailable inside the block."""
    try:
        yield
    except StoreAway as e:
        raise Problem(503, "store-away", title, str(e), remedy, headers={"Retry-After": "1"}) from e


def _no_event(rejected: list[Rejected], wait_s: list[int]) -> Problem:
    """A problem (422, or 429 if every event is over a limit): no event was valid. wait_s: as in `_over_limit`."""
    if len(wait_s) == len(rejected):
        return _over_limit(rejected, wait_s)
    return Problem(
        422,
        "no-event-taken",
        "No valid event",
        rejected[0].message,
        "See /docs for the fields and their types.",
        rejected[0].field,
        rejected=msgspec.to_builtins(rejected),
    )


def _too_many_users(detail: str) -> Problem:
    """A problem (503): every valid event was refused, because the maximum number of users have lists."""
    return Problem(
        503,
        "too-many-users",
        "Too many users",
        detail,
        "Raise `max_users` if the memory of Redis allows it, or let lists expire sooner (`user_ttl_days`).",
        headers={"Retry-After": "30"},
    )


def _over_limit(rejected: list[Rejected], wait_s: list[int]) -> Problem:
    """A problem (429): every event is over a limit. wait_s: seconds until the limit of each is lifted."""
    return Problem(
        429,
        "shopper-rate",
        "Too many events of a shopper",
        rejected[0].message,
        "Check that `user_id` is one person. If it is, raise the `shopper_..._per_...` settings of the service.",
        "user_id",
        headers={"Retry-After": str(min(wait_s))},
        # A client gives these events up, so that one shopper does not hold up the queue of a back end.
        rejected=msgspec.to_builtins(rejected),
    )
