"""`Shelfwise`: the synchronous client, with a thread that delivers events."""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from shelfwise_client import calls
from shelfwise_client.answers import EventsAnswer
from shelfwise_client.calls import Call
from shelfwise_client.errors import DeadlineError, ShelfwiseError, UnsentError
from shelfwise_client.exchange import LIMITS, Service, ShopperToken, answered, failed
from shelfwise_client.forms import Event
from shelfwise_client.outbox import Counts, Outbox, Queued, Refused, Sending
from shelfwise_client.retry import Retry

log = logging.getLogger("shelfwise_client")
T = TypeVar("T")
P = ParamSpec("P")


def _call_method(build: Callable[P, Call[T]]) -> Callable[Concatenate[Shelfwise, P], T]:
    @wraps(build)
    def method(self: Shelfwise, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._call(build(*args, **kwargs))

    return method


def _send_method(build: Callable[P, Event]) -> Callable[Concatenate[Shelfwise, P], str]:
    @wraps(build)
    def method(self: Shelfwise, /, *args: P.args, **kwargs: P.kwargs) -> str:
        return self._put(build(*args, **kwargs))

    return method


class Shelfwise:
    """A thread-safe client. Close it, or use it in a `with` block, to deliver its events.

    All errors are `ShelfwiseError`. If it is not closed, it closes itself when the program exits. In a forked child it
    starts afresh; events queued by the parent are delivered by the parent.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        deadline_s: float = 5.0,
        retry: Retry | None = None,
        sending: Sending | None = None,
        on_refused: Refused | None = None,
        shopper_token: ShopperToken = None,
    ) -> None:
        """key: API key, as `shelfwise keys new` prints it. deadline_s: maximum seconds per call, including retries.

        on_refused: called by the delivery thread for each event that will not be delivered; by default it is logged.
        shopper_token: proof of the shopper for whom this client acts, for a public key; a function if it is renewed.
        """
        self._service = Service(url, key, deadline_s, retry or Retry(), shopper_token)
        self._sending, self._on_refused = sending or Sending(), on_refused
        self._begin()
        atexit.register(self._at_exit)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._http = httpx.Client(headers=self._service.headers, limits=LIMITS)
        self._outbox = Outbox(self._sending, self._on_refused)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._since, self._flush_before, self._close_by = time.monotonic(), 0, float("inf")
        self._closed = False
        if self._outbox:
            self._deliver()

    def _check_fork(self) -> None:
        """Start afresh in a forked child, which has no delivery thread and must not use the parent's connections."""
        if self._pid != os.getpid():
            self._outbox.abandon()
            self._begin()

    rank = _call_method(calls.rank)
    recommend = _call_method(calls.recommend)
    page = _call_method(calls.page)
    similar = _call_method(calls.similar)
    item = _call_method(calls.item)
    events = _call_method(calls.events)
    put_item = _call_method(calls.put_item)
    put_items = _call_method(calls.put_items)
    delete_item = _call_method(calls.delete_item)
    put_user = _call_method(calls.put_user)
    merge_user = _call_method(calls.merge_user)
    delete_user = _call_method(calls.delete_user)
    health = _call_method(calls.health)
    send = _send_method(calls.event)

    def _call(self, call: Call[T]) -> T:
        self._check_fork()
        due, attempt = self._service.due(call), 0
        while True:
            attempt += 1
            try:
                return exchanged(self._service, self._http, call, due)
            except ShelfwiseError as error:
                time.sleep(self._service.pause_s(call, error, attempt, due, random.random()))

    @property
    def counts(self) -> Counts:
        """Counts of the events passed to `send`, by outcome."""
        self._check_fork()
        with self._changed:
            return self._outbox.counts

    def _put(self, event: Event) -> str:
        self._check_fork()
        with self._changed:
            if self._sending.when_full == "block":
                self._changed.wait_for(lambda: not self._outbox.full or self._closed, self._service.deadline_s)
            if self._closed:
                raise RuntimeError("the client is closed: send events before `close`")
            if not self._outbox:
                self._since = time.monotonic()
            event_id = self._outbox.put(event)
            self._deliver()
            if len(self._outbox) == 1 or self._outbox.has_batch:
                self._changed.notify_all()
        return event_id

    def flush(self, deadline_s: float | None = None) -> None:
        """Wait until all events sent so far are delivered.

        Raises UnsentError if that takes longer than deadline_s; the events stay queued.
        """
        self._check_fork()
        with self._changed:
            self._flush_before = before = self._outbox.put_so_far
            self._changed.notify_all()
            limit = self._service.deadline_s if deadline_s is None else deadline_s
            if not self._changed.wait_for(lambda: self._outbox.settled_before >= before, limit):
                raise self._outbox.unsent()

    def close(self) -> None:
        """Deliver queued events within `Sending.close_s`, and close the client. Raises UnsentError with the rest."""
        atexit.unregister(self._at_exit)
        if self._pid != os.getpid() or self._closed:
            return
        with self._changed:
            self._closed, self._close_by = True, time.monotonic() + self._sending.close_s
            self._outbox.attempts = 0
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._outbox.tell()
        unsent = self._outbox.unsent() if self._outbox else None
        self._outbox.close()
        self._http.close()
        if unsent is not None:
            raise unsent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _at_exit(self) -> None:
        try:
            self.close()
        except UnsentError as e:
            log.error("at program exit, %s", e)

    def _deliver(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="shelfwise-events", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            pause = 0.0
            if batch:
                due = min(time.monotonic() + self._sending.attempt_s, self._close_by)
                outcome = attempted(self._service, self._http, batch, due)
                with self._changed:
                    pause = self._outbox.settle(batch, outcome, random.random())
                    self._changed.notify_all()
            self._outbox.tell()  # without holding the lock: on_refused may send events itself
            with self._changed:
                if pause:
                    self._rest(pause)

    def _next(self) -> list[Queued] | None:
        """Wait for the next batch. Empty if all its events have expired; None if there will be no more batches."""
        with self._changed:
            while time.monotonic() < self._close_by and (self._outbox or not self._closed):
                left = self._since + self._sending.every_s - time.monotonic()
                is_due = self._closed or self._flush_before > self._outbox.settled_before
                if self._outbox and (is_due or self._outbox.has_batch or left <= 0):
                    batch = self._outbox.take(time.time())
                    self._outbox.mark_tried(batch, time.time())
                    self._since = time.monotonic()
                    self._changed.notify_all()
                    return batch
                self._changed.wait(left if self._outbox else None)
            return None

    def _rest(self, pause: float) -> None:
        """Wait before the next attempt; closing the client cuts the pause short."""
        closed, end = self._closed, time.monotonic() + pause
        self._changed.wait_for(lambda: self._closed != closed, max(0.0, min(end, self._close_by) - time.monotonic()))


def exchanged(service: Service, http: httpx.Client, call: Call[T], due: float) -> T:
    """The result of a single attempt. Raises ShelfwiseError."""
    try:
        response = http.send(service.request(http, call, due), stream=True)
        try:
            body = b"".join(_read_before(call, response, due))
        finally:
            response.close()
    except httpx.RequestError as e:
        raise failed(call, e, due) from e
    return answered(call, response.status_code, response.headers, body)


def _read_before(call: Call[Any], response: httpx.Response, due: float) -> Any:
    for part in response.iter_bytes():
        if time.monotonic() >= due:
            raise DeadlineError(f"{call.method} {call.path}: no complete response within the deadline", delivered=True)
        yield part


def attempted(service: Service, http: httpx.Client, batch: list[Queued], due: float) -> EventsAnswer | ShelfwiseError:
    """The outcome of one attempt to deliver a batch."""
    call = calls.batch([q.body for q in batch], due - time.monotonic())
    try:
        return exchanged(service, http, call, due)
    except ShelfwiseError as error:
        return error
