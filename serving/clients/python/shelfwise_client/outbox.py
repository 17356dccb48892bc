"""Events that wait to be delivered: bounded, in order, counted, and none forgotten. No I/O but the spool's, no clock.

An event is here from `put` until it is settled: taken by the service, refused by it with a reason, or given up because
nobody could tell any more whether it had counted. The two clients move batches; what an answer means is decided here.
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
"""How long the service surely knows an id again (docs/serving.md: two days), less an hour."""
_PAUSE_MOST_S = 300.0

Refused = Callable[[Event, str | None, str], None]
"""Told of an event that will not be delivered: the event, the field at fault or None, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How events are queued and sent.

    batch: most events of one request (the service takes 1,000). every_s: an event waits no longer than this for others.
    queue: most events that wait. when_full: `block` the caller up to the client's deadline, then raise QueueFull, or
    `raise` it at once; none is ever dropped. attempt_s: deadline of one request. close_s: how long `close`, and the end
    of the program, go on trying. retry: pauses between attempts; of events there are as many as it takes.
    spool: a folder in which events wait, too, so that a killed process loses none; many processes may share it.
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
            raise ValueError(f"{self}: batch is 1 to 1000, queue 1 or more, times are 0 s or more")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of events given to `send`: waiting + accepted + duplicates + rejected + expired is all of them.

    accepted, duplicates: delivered, new or known to the service before. rejected: not taken by the service, with a
    reason. expired: given up after 47 hours of not knowing whether they had counted. turned_away: QueueFull was raised;
    those were never in the queue.
    """

    waiting: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    expired: int = 0
    turned_away: int = 0


@dataclass(slots=True)
class Queued:
    """An event as JSON. number: its place in all that was queued. tried_at: Unix seconds of the first attempt that may
    have reached the service, None where there was none. kept: its row in the spool."""

    number: int
    body: bytes
    tried_at: float | None = None
    kept: int = 0

    @property
    def event(self) -> Event:
        """The event itself."""
        decoded: Event = json.loads(self.body)
        return decoded


class Outbox:
    """The queue. Not for several threads at a time: its owner sees to that."""

    def __init__(self, sending: Sending, on_refused: Refused | None = None, max_bytes: int = 1_000_000) -> None:
        """max_bytes: most bytes of one request's body. What a spool kept of another time waits again at once."""
        self.sending, self._on_refused, self._max_bytes = sending, on_refused or _log_refused, max_bytes
        self._counts, self._batch, self._put = Counts(), sending.batch, 0
        self._waiting: deque[Queued] = deque()
        self._first: list[Queued] = []
        self._refused: list[tuple[Event, str | None, str]] = []
        self._spool = Spool(sending.spool) if sending.spool is not None else None
        for row, body, tried_at in self._spool.rows() if self._spool else ():
            self._append(Queued(self._put, body, tried_at, row))
        self.attempts = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def counts(self) -> Counts:
        """What became of events so far."""
        return replace(self._counts, waiting=len(self._waiting))

    @property
    def put_so_far(self) -> int:
        """How many events were ever queued."""
        return self._put

    @property
    def settled_before(self) -> int:
        """The number before which all events are settled."""
        return self._waiting[0].number if self._waiting else self._put

    @property
    def full(self) -> bool:
        """Whether there is no room for another event."""
        return len(self._waiting) >= self.sending.queue

    def put(self, event: Event) -> str:
        """Queue an event that has an id, and say it. Raises QueueFull; ValueError or TypeError for what is no JSON."""
        body = calls.encoded(event)
        if self.full:
            self._count(turned_away=1)
            raise QueueFull(
                f"{len(self._waiting)} events wait already, at most {self.sending.queue} may: is the service away? "
                "Raise Sending.queue, or keep this event yourself"
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
        """Whether a whole batch waits."""
        return len(self._waiting) >= self._batch

    def take(self, now: float) -> list[Queued]:
        """The oldest events, as many as one request holds; they go on waiting until `settle`. now: Unix seconds."""
        while self._waiting and self._unknowable(self._waiting[0], now):
            late = self._waiting.popleft()
            self._forget([late])
            self._count(expired=1)
            why = "not known for 47 hours whether it counted: not sent again, lest it count twice"
            self._refused.append((late.event, None, why))
        out: list[Queued] = []
        size = 2
        for queued in self._waiting:
            size += len(queued.body) + 1
            if len(out) == self._batch or (out and size > self._max_bytes) or self._unknowable(queued, now):
                break
            out.append(queued)
        return out

    @staticmethod
    def _unknowable(queued: Queued, now: float) -> bool:
        return queued.tried_at is not None and now - queued.tried_at > REMEMBERED_S

    def trying(self, batch: Sequence[Queued], now: float) -> None:
        """Note that a batch is about to be sent. now: Unix seconds."""
        self._first = [q for q in batch if q.tried_at is None]
        self._mark(self._first, now)

    def _mark(self, events: Sequence[Queued], at: float | None) -> None:
        for queued in events:
            queued.tried_at = at
        if self._spool:
            self._spool.mark([q.kept for q in events], at)

    def settle(self, batch: Sequence[Queued], outcome: EventsAnswer | ShelfwiseError, draw: float) -> float:
        """Take in what came of a batch, and say how many seconds to wait before the next. draw: uniform in 0 to 1."""
        if isinstance(outcome, EventsAnswer):
            self._taken(batch, outcome)
            return 0.0
        if isinstance(outcome, ServiceError) and outcome.rejected:  # none of the batch was good
            self._taken(batch, EventsAnswer(0, 0, outcome.rejected, ()))
            return 0.0
        if isinstance(outcome, ServiceError) and outcome.status in (400, 413, 422):
            return self._too_much(batch, outcome)
        return self._later(batch, outcome, draw)

    def _taken(self, batch: Sequence[Queued], answer: EventsAnswer) -> None:
        self._done(batch)
        rejected = {r.index: r for r in answer.rejected if 0 <= r.index < len(batch)}
        self._count(accepted=answer.accepted, duplicates=answer.duplicates, rejected=len(rejected))
        for index, why in rejected.items():
            self._refused.append((batch[index].event, why.field, why.message))

    def _too_much(self, batch: Sequence[Queued], error: ServiceError) -> float:
        """The request as a whole was refused for what it holds: in halves, until the one at fault stands alone."""
        if len(batch) > 1:
            self._batch = max(1, len(batch) // 2)
            return 0.0
        self._taken(batch, EventsAnswer(0, 0, (Rejected(0, error.field, str(error)),), ()))
        return 0.0

    def _later(self, batch: Sequence[Queued], error: ShelfwiseError, draw: float) -> float:
        self.attempts += 1
        if surely_not_done(error):
            self._mark(self._first, None)
        passing = may_pass(error)
        log.log(
            logging.WARNING if passing else logging.ERROR,
            "%d events wait: attempt %d failed, the same events are sent again: %s",
            len(self._waiting),
            self.attempts,
            error,
        )
        after = error.retry_after_s if isinstance(error, ServiceError) else None
        attempt = self.attempts if passing else 64  # a bad key is not mended in a second
        return min(_PAUSE_MOST_S, self.sending.retry.pause_s(attempt, after, draw if passing else 1.0))

    def _done(self, batch: Sequence[Queued]) -> None:
        self.attempts = 0
        if len(batch) == self._batch:  # it went well: back toward the whole size
            self._batch = min(self.sending.batch, self._batch * 2)
        for _ in batch:
            self._waiting.popleft()
        self._forget(batch)

    def _forget(self, batch: Sequence[Queued]) -> None:
        if self._spool:
            self._spool.remove([q.kept for q in batch])

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{k: getattr(self._counts, k) + v for k, v in more.items()})

    def tell(self) -> None:
        """Tell of events that were refused since; the owner calls it holding no lock."""
        told, self._refused = self._refused, []
        for event, name, message in told:
            try:
                self._on_refused(event, name, message)
            except Exception:
                log.exception("on_refused failed for event %s", event.get("event_id"))

    def unsent(self) -> UnsentError:
        """The error that says what waits still."""
        events, kept = [q.event for q in self._waiting], self._spool is not None
        where = f"they are kept in {self.sending.spool}" if kept else "they are in this error's `events`"
        return UnsentError(f"{len(events)} events are not delivered; {where}", events, kept)

    def close(self) -> None:
        """Give back the spool; what waits in it stays for the next."""
        if self._spool:
            self._spool.close(empty=not self._waiting)
            self._spool = None

    def abandon(self) -> None:
        """In a forked child: what waits is the parent's."""
        if self._spool:
            self._spool.abandon()


def _log_refused(event: Event, name: str | None, message: str) -> None:
    log.error("event %s was refused%s: %s", event.get("event_id"), f" ({name})" if name else "", message)
