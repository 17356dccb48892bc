"""The event queue: bounded, ordered and counted, so that no event is lost silently. No I/O except the spool, no clock.

An event stays in the queue from `put` until it is settled: accepted by the service, rejected with a reason, or expired
because it can no longer be known whether it was counted. The two clients send the batches; responses are handled here.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from shelfwise_client import calls
from shelfwise_client.answers import EventsAnswer, Rejected
from shelfwise_client.errors import QueueFull, ServiceError, ShelfwiseError, UnsentError
from shelfwise_client.forms import Event
from shelfwise_client.retry import Retry, may_pass, surely_not_done
from shelfwise_client.spool import Spool

log = logging.getLogger("shelfwise_client")

REMEMBERED_S = 47 * 3600.0
"""Seconds for which the service recognises a repeated event id (two days, see docs/serving.md), minus an hour."""
_PAUSE_MOST_S = 300.0

Refused = Callable[[Event, str | None, str], None]
"""Callback for an event that will not be delivered: (event, invalid field or None, reason)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """Settings of the event queue.

    batch: maximum events per request (the service accepts 1,000). every_s: maximum time an event waits for others.
    queue: maximum events queued. when_full: `block` the caller up to the client's deadline and then raise QueueFull, or
    `raise` it at once; events are never dropped. attempt_s: deadline of one request. close_s: maximum time `close` and
    the exit of the program wait for deliveries. retry: pauses between attempts; the number of attempts is unlimited.
    spool: a folder that also stores queued events, so that a killed process loses none; processes may share it.
    """

    batch: int = 500
    every_s: float = 0.5
    queue: int = 10_000
    when_full: Literal["block", "raise"] = "block"
    attempt_s: float = 10.0
    close_s: float = 10.0
    retry: Retry = field(default_factory=lambda: Retry(first_s=0.2, most_s=15.0))
    spool: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 1000 or self.queue < 1 or min(self.every_s, self.attempt_s, self.close_s) < 0:
            raise ValueError(f"{self}: batch must be 1 to 1000, queue at least 1, and times at least 0 s")


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of events passed to `send`. The queued events are waiting + accepted + duplicates + rejected + expired.

    accepted, duplicates: delivered, and new or already known to the service. rejected: rejected by the service with a
    reason. expired: given up because for 47 hours it was not known whether they had been counted. turned_away: never
    queued, because QueueFull was raised.
    """

    waiting: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    expired: int = 0
    turned_away: int = 0


@dataclass(slots=True)
class Queued:
    """A queued event as JSON. number: its sequence number. tried_at: Unix seconds of the first attempt that may have
    reached the service, None if there was none. kept: its row in the spool."""

    number: int
    body: bytes
    tried_at: float | None = None
    kept: int = 0

    @property
    def event(self) -> Event:
        """The decoded event."""
        decoded: Event = json.loads(self.body)
        return decoded


class Outbox:
    """The queue. Not thread-safe: its owner must synchronise access."""

    def __init__(self, sending: Sending, on_refused: Refused | None = None, max_bytes: int = 1_000_000) -> None:
        """max_bytes: maximum size of a request body. Events left in the spool are queued again."""
        self.sending, self._on_refused, self._max_bytes = sending, on_refused or _log_refused, max_bytes
        self._counts, self._batch, self._put = Counts(), sending.batch, 0
        self._waiting: deque[Queued] = deque()
        self._first_tried: list[Queued] = []
        self._refused: list[tuple[Event, str | None, str]] = []
        self._spool = Spool(sending.spool) if sending.spool is not None else None
        for row, body, tried_at in self._spool.rows() if self._spool else ():
            self._append(Queued(self._put, body, tried_at, row))
        self.attempts = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def counts(self) -> Counts:
        """Counts of the events so far, by outcome."""
        return replace(self._counts, waiting=len(self._waiting))

    @property
    def put_so_far(self) -> int:
        """Number of events queued so far."""
        return self._put

    @property
    def settled_before(self) -> int:
        """Sequence number of the first event that is not settled; all earlier ones are."""
        return self._waiting[0].number if self._waiting else self._put

    @property
    def full(self) -> bool:
        """True if the queue is full."""
        return len(self._waiting) >= self.sending.queue

    def put(self, event: Event) -> str:
        """Queue an event that has an id, and return the id.

        Raises QueueFull, or ValueError or TypeError if the event cannot be encoded as JSON.
        """
        body = calls.encoded(event)
        if self.full:
            self._count(turned_away=1)
            raise QueueFull(
                f"event queue full ({len(self._waiting)} of {self.sending.queue} events): check that the service is "
                "reachable, raise Sending.queue, or keep this event and send it later"
            )
        kept = self._spool.add(body) if self._spool else 0
        self._append(Queued(self._put, body, None, kept))
        event_id = event["event_id"]
        assert event_id is not None
        return event_id

    def _append(self, queued: Queued) -> None:
        self._waiting.append(queued)
        self._put += 1

    @property
    def has_batch(self) -> bool:
        """True if there are enough events for a full batch."""
        return len(self._waiting) >= self._batch

    def take(self, now: float) -> list[Queued]:
        """The oldest events, as many as fit in one request. They stay queued until `settle`. now: Unix seconds."""
        while self._waiting and self._is_expired(self._waiting[0], now):
            expired = self._waiting.popleft()
            self._remove([expired])
            self._count(expired=1)
            why = (
                "expired: first sent over 47 hours ago without a response, and not resent as it could be counted twice"
            )
            self._refused.append((expired.event, None, why))
        out: list[Queued] = []
        size = 2
        for queued in self._waiting:
            size += len(queued.body) + 1
            if len(out) == self._batch or (out and size > self._max_bytes) or self._is_expired(queued, now):
                break
            out.append(queued)
        return out

    @staticmethod
    def _is_expired(queued: Queued, now: float) -> bool:
        return queued.tried_at is not None and now - queued.tried_at > REMEMBERED_S

    def mark_tried(self, batch: Sequence[Queued], now: float) -> None:
        """Record that a batch is about to be sent. now: Unix seconds."""
        self._first_tried = [q for q in batch if q.tried_at is None]
        self._mark(self._first_tried, now)

    def _mark(self, events: Sequence[Queued], at: float | None) -> None:
        for queued in events:
            queued.tried_at = at
        if self._spool:
            self._spool.mark([q.kept for q in events], at)

    def settle(self, batch: Sequence[Queued], outcome: EventsAnswer | ShelfwiseError, draw: float) -> float:
        """Process the outcome of a batch. Returns the seconds to wait before the next one. draw: uniform in [0, 1]."""
        if isinstance(outcome, EventsAnswer):
            self._settled(batch, outcome)
            return 0.0
        if isinstance(outcome, ServiceError) and outcome.rejected:  # no event of the batch was valid
            self._settled(batch, EventsAnswer(0, 0, outcome.rejected, ()))
            return 0.0
        if isinstance(outcome, ServiceError) and outcome.status in (400, 413, 422):
            return self._split(batch, outcome)
        return self._retry_later(batch, outcome, draw)

    def _settled(self, batch: Sequence[Queued], answer: EventsAnswer) -> None:
        self._dequeue(batch)
        rejected = {r.index: r for r in answer.rejected if 0 <= r.index < len(batch)}
        self._count(accepted=answer.accepted, duplicates=answer.duplicates, rejected=len(rejected))
        for index, why in rejected.items():
            self._refused.append((batch[index].event, why.field, why.message))

    def _split(self, batch: Sequence[Queued], error: ServiceError) -> float:
        """Handle a request refused for its content: halve batches until the event at fault is alone, and reject it."""
        if len(batch) > 1:
            self._batch = max(1, len(batch) // 2)
            return 0.0
        self._settled(batch, EventsAnswer(0, 0, (Rejected(0, error.field, str(error)),), ()))
        return 0.0

    def _retry_later(self, batch: Sequence[Queued], error: ShelfwiseError, draw: float) -> float:
        self.attempts += 1
        if surely_not_done(error):
            self._mark(self._first_tried, None)
        retryable = may_pass(error)
        log.log(
            logging.WARNING if retryable else logging.ERROR,
            "%d events queued: attempt %d failed and will be retried: %s",
            len(self._waiting),
            self.attempts,
            error,
        )
        after = error.retry_after_s if isinstance(error, ServiceError) else None
        attempt = self.attempts if retryable else 64  # an invalid key will not be fixed within a second
        return min(_PAUSE_MOST_S, self.sending.retry.pause_s(attempt, after, draw if retryable else 1.0))

    def _dequeue(self, batch: Sequence[Queued]) -> None:
        self.attempts = 0
        if len(batch) == self._batch:  # a full batch was settled: grow back to the configured size
            self._batch = min(self.sending.batch, self._batch * 2)
        for _ in batch:
            self._waiting.popleft()
        self._remove(batch)

    def _remove(self, batch: Sequence[Queued]) -> None:
        if self._spool:
            self._spool.remove([q.kept for q in batch])

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{k: getattr(self._counts, k) + v for k, v in more.items()})

    def tell(self) -> None:
        """Call on_refused for the events refused since the last call. Must be called without holding a lock."""
        refused, self._refused = self._refused, []
        for event, name, message in refused:
            try:
                self._on_refused(event, name, message)
            except Exception:
                log.exception("on_refused failed for event %s", event.get("event_id"))

    def unsent(self) -> UnsentError:
        """An UnsentError with the events still queued."""
        events, kept = [q.event for q in self._waiting], self._spool is not None
        where = f"they are stored in {self.sending.spool}" if kept else "they are in this error's `events`"
        return UnsentError(f"{len(events)} events were not delivered; {where}", events, kept)

    def close(self) -> None:
        """Close the spool. Events still in it are left for the next client."""
        if self._spool:
            self._spool.close(empty=not self._waiting)
            self._spool = None

    def abandon(self) -> None:
        """Leave the spool to the parent process, in a forked child."""
        if self._spool:
            self._spool.abandon()


def _log_refused(event: Event, name: str | None, message: str) -> None:
    log.error("event %s was refused%s: %s", event.get("event_id"), f" ({name})" if name else "", message)
