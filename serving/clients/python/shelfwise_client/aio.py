"""`AsyncShelfwise`: the asynchronous client, with a task that delivers events."""

from __future__ import annotations

import asyncio
import atexit
import logging
import random
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import httpx

from shelfwise_client import calls
from shelfwise_client.answers import EventsAnswer
from shelfwise_client.calls import Call
from shelfwise_client.client import attempted
from shelfwise_client.errors import ShelfwiseError
from shelfwise_client.exchange import LIMITS, Service, ShopperToken, answered, failed
from shelfwise_client.forms import Event
from shelfwise_client.outbox import Counts, Outbox, Queued, Refused, Sending
from shelfwise_client.retry import Retry

log = logging.getLogger("shelfwise_client")
T = TypeVar("T")
P = ParamSpec("P")


def _call_method(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncShelfwise, P], Awaitable[T]]:
    @wraps(build)
    async def method(self: AsyncShelfwise, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._call(build(*args, **kwargs))

    return method


def _send_method(build: Callable[P, Event]) -> Callable[Concatenate[AsyncShelfwise, P], Awaitable[str]]:
    @wraps(build)
    async def method(self: AsyncShelfwise, /, *args: P.args, **kwargs: P.kwargs) -> str:
        return await self._put(build(*args, **kwargs))

    return method


class AsyncShelfwise:
    """A client for one event loop at a time. Close it (`aclose` or `async with`) to deliver its events.

    If its loop ends without that, the remaining events are delivered when the program exits.
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
        """Arguments as for `Shelfwise`; on_refused is called in the event loop."""
        self._service = Service(url, key, deadline_s, retry or Retry(), shopper_token)
        self._sending = sending or Sending()
        self._outbox = Outbox(self._sending, on_refused)
        self._since, self._flush_before, self._close_by = time.monotonic(), 0, float("inf")
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        atexit.register(self._at_exit)

    def _begin(self) -> None:
        """Create the objects that belong to an event loop, if the running loop is a new one, and start the task."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._changed = loop, asyncio.Condition()
            self._http = httpx.AsyncClient(headers=self._service.headers, limits=LIMITS)
            self._task: asyncio.Task[None] | None = None
        if self._outbox and not self._closed and (self._task is None or self._task.done()):
            self._task = loop.create_task(self._run(), name="shelfwise-events")

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

    async def _call(self, call: Call[T]) -> T:
        self._begin()
        due, attempt = self._service.due(call), 0
        while True:
            attempt += 1
            try:
                return await self._exchange_once(call, due)
            except ShelfwiseError as error:
                await asyncio.sleep(self._service.pause_s(call, error, attempt, due, random.random()))

    async def _exchange_once(self, call: Call[T], due: float) -> T:
        """The result of a single attempt. Raises ShelfwiseError."""
        try:
            async with asyncio.timeout(due - time.monotonic()):
                response = await self._http.send(self._service.request(self._http, call, due))
        except (httpx.RequestError, TimeoutError) as e:
            raise failed(call, e, due) from e
        return answered(call, response.status_code, response.headers, response.content)

    @property
    def counts(self) -> Counts:
        """Counts of the events passed to `send`, by outcome."""
        return self._outbox.counts

    async def _put(self, event: Event) -> str:
        self._begin()
        if self._outbox.full and self._sending.when_full == "block":
            await self._wait_for(lambda: not self._outbox.full or self._closed, self._service.deadline_s)
        if self._closed:
            raise RuntimeError("the client is closed: send events before `aclose`")
        if not self._outbox:
            self._since = time.monotonic()
        event_id = self._outbox.put(event)
        self._begin()
        if len(self._outbox) == 1 or self._outbox.has_batch:
            await self._notify()
        return event_id

    async def _wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        try:
            async with asyncio.timeout(max(0.0, seconds)), self._changed:
                return await self._changed.wait_for(condition)
        except TimeoutError:
            return condition()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def flush(self, deadline_s: float | None = None) -> None:
        """Wait until all events sent so far are delivered.

        Raises UnsentError if that takes longer than deadline_s; the events stay queued.
        """
        self._begin()
        self._flush_before = before = self._outbox.put_so_far
        await self._notify()
        limit = self._service.deadline_s if deadline_s is None else deadline_s
        if not await self._wait_for(lambda: self._outbox.settled_before >= before, limit):
            raise self._outbox.unsent()

    async def aclose(self) -> None:
        """Deliver queued events within `Sending.close_s`, and close the client. Raises UnsentError with the rest."""
        atexit.unregister(self._at_exit)
        if self._closed:
            return
        self._begin()
        self._closed, self._close_by = True, time.monotonic() + self._sending.close_s
        self._outbox.attempts = 0
        await self._notify()
        if self._task is not None:
            await self._task
        self._outbox.tell()
        unsent = self._outbox.unsent() if self._outbox else None
        self._outbox.close()
        await self._http.aclose()
        if unsent is not None:
            raise unsent

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self) -> None:
        while (batch := await self._next()) is not None:
            pause = self._outbox.settle(batch, await self._attempt(batch), random.random()) if batch else 0.0
            self._outbox.tell()
            await self._notify()
            if pause:
                await self._rest(pause)

    async def _attempt(self, batch: list[Queued]) -> EventsAnswer | ShelfwiseError:
        """The outcome of one attempt to deliver a batch."""
        due = min(time.monotonic() + self._sending.attempt_s, self._close_by)
        try:
            return await self._exchange_once(calls.batch([q.body for q in batch], due - time.monotonic()), due)
        except ShelfwiseError as error:
            return error

    async def _rest(self, pause: float) -> None:
        """Wait before the next attempt; closing the client cuts the pause short."""
        closed = self._closed
        await self._wait_for(lambda: self._closed != closed, min(pause, self._close_by - time.monotonic()))

    async def _next(self) -> list[Queued] | None:
        """Wait for the next batch. Empty if all its events have expired; None if there will be no more batches."""
        while time.monotonic() < self._close_by and (self._outbox or not self._closed):
            if self._outbox and (self._is_due() or self._since + self._sending.every_s <= time.monotonic()):
                batch = self._outbox.take(time.time())
                self._outbox.mark_tried(batch, time.time())
                self._since = time.monotonic()
                return batch
            if self._outbox:
                await self._wait_for(self._is_due, self._since + self._sending.every_s - time.monotonic())
            else:
                await self._wait_for(lambda: self._closed or bool(self._outbox), 3600.0)
        return None

    def _is_due(self) -> bool:
        """True if events should be sent now instead of waiting for more."""
        return self._closed or self._flush_before > self._outbox.settled_before or self._outbox.has_batch

    def _at_exit(self) -> None:
        """Deliver queued events synchronously, as the event loop may have ended."""
        close_by = time.monotonic() + self._sending.close_s
        self._outbox.attempts = 0
        with httpx.Client(headers=self._service.headers) as http:
            while self._outbox and time.monotonic() < close_by:
                if batch := self._outbox.take(time.time()):
                    self._outbox.mark_tried(batch, time.time())
                    outcome = attempted(self._service, http, batch, close_by)
                    pause = self._outbox.settle(batch, outcome, random.random())
                    self._outbox.tell()
                    time.sleep(max(0.0, min(pause, close_by - time.monotonic())))
        if self._outbox:
            log.error("at program exit, %s", self._outbox.unsent())
        self._outbox.close()
