"""`AsyncShelfwise`: the same calls with `await`, and a task that delivers events."""

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
from shelfwise_client.exchange import LIMITS, Service, answered, failed
from shelfwise_client.forms import Event
from shelfwise_client.outbox import Counts, Outbox, Queued, Refused, Sending
from shelfwise_client.retry import Retry

log = logging.getLogger("shelfwise_client")
T = TypeVar("T")
P = ParamSpec("P")


def _offered(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncShelfwise, P], Awaitable[T]]:
    @wraps(build)
    async def method(self: AsyncShelfwise, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._call(build(*args, **kwargs))

    return method


def _queued(build: Callable[P, Event]) -> Callable[Concatenate[AsyncShelfwise, P], Awaitable[str]]:
    @wraps(build)
    async def method(self: AsyncShelfwise, /, *args: P.args, **kwargs: P.kwargs) -> str:
        return await self._put(build(*args, **kwargs))

    return method


class AsyncShelfwise:
    """A client for one event loop at a time. Close it (`aclose`, `async with`): that delivers its events.

    What waits when its loop ends without that is delivered at the end of the program.
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
    ) -> None:
        """As of `Shelfwise`; on_refused is called in the loop."""
        self._service = Service(url, key, deadline_s, retry or Retry())
        self._sending = sending or Sending()
        self._outbox = Outbox(self._sending, on_refused)
        self._since, self._flush_before, self._close_by = time.monotonic(), 0, float("inf")
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        atexit.register(self._at_exit)

    def _begin(self) -> None:
        """Make what belongs to a loop, in the one that runs now."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._changed = loop, asyncio.Condition()
            self._http = httpx.AsyncClient(headers=self._service.headers, limits=LIMITS)
            self._task: asyncio.Task[None] | None = None
        if self._outbox and not self._closed and (self._task is None or self._task.done()):
            self._task = loop.create_task(self._run(), name="shelfwise-events")

    rank = _offered(calls.rank)
    recommend = _offered(calls.recommend)
    similar = _offered(calls.similar)
    item = _offered(calls.item)
    events = _offered(calls.events)
    put_item = _offered(calls.put_item)
    put_items = _offered(calls.put_items)
    delete_item = _offered(calls.delete_item)
    delete_user = _offered(calls.delete_user)
    health = _offered(calls.health)
    send = _queued(calls.event)

    async def _call(self, call: Call[T]) -> T:
        self._begin()
        due, attempt = self._service.due(call), 0
        while True:
            attempt += 1
            try:
                return await self._exchanged(call, due)
            except ShelfwiseError as error:
                await asyncio.sleep(self._service.pause_s(call, error, attempt, due, random.random()))

    async def _exchanged(self, call: Call[T], due: float) -> T:
        """The answer of one attempt. Raises ShelfwiseError."""
        try:
            async with asyncio.timeout(due - time.monotonic()):
                response = await self._http.send(self._service.request(self._http, call, due))
        except (httpx.RequestError, TimeoutError) as e:
            raise failed(call, e, due) from e
        return answered(call, response.status_code, response.headers, response.content)

    @property
    def counts(self) -> Counts:
        """What became of the events given to `send`."""
        return self._outbox.counts

    async def _put(self, event: Event) -> str:
        self._begin()
        if self._outbox.full and self._sending.when_full == "block":
            await self._until(lambda: not self._outbox.full or self._closed, self._service.deadline_s)
        if self._closed:
            raise RuntimeError("the client is closed: send events before `aclose`")
        if not self._outbox:
            self._since = time.monotonic()
        event_id = self._outbox.put(event)
        self._begin()
        if len(self._outbox) == 1 or self._outbox.has_batch:
            await self._tell()
        return event_id

    async def _until(self, true: Callable[[], bool], seconds: float) -> bool:
        try:
            async with asyncio.timeout(max(0.0, seconds)), self._changed:
                return await self._changed.wait_for(true)
        except TimeoutError:
            return true()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def flush(self, deadline_s: float | None = None) -> None:
        """Wait until what was sent before is delivered. Raises UnsentError where it takes too long; they still wait."""
        self._begin()
        self._flush_before = before = self._outbox.put_so_far
        await self._tell()
        limit = self._service.deadline_s if deadline_s is None else deadline_s
        if not await self._until(lambda: self._outbox.settled_before >= before, limit):
            raise self._outbox.unsent()

    async def aclose(self) -> None:
        """Deliver what waits, within `Sending.close_s`, and end. Raises UnsentError with what was not delivered."""
        atexit.unregister(self._at_exit)
        if self._closed:
            return
        self._begin()
        self._closed, self._close_by = True, time.monotonic() + self._sending.close_s
        self._outbox.attempts = 0
        await self._tell()
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
            pause = self._outbox.settle(batch, await self._attempted(batch), random.random()) if batch else 0.0
            self._outbox.tell()
            await self._tell()
            if pause:
                await self._rest(pause)

    async def _attempted(self, batch: list[Queued]) -> EventsAnswer | ShelfwiseError:
        """What came of one attempt to deliver a batch."""
        due = min(time.monotonic() + self._sending.attempt_s, self._close_by)
        try:
            return await self._exchanged(calls.batch([q.body for q in batch], due - time.monotonic()), due)
        except ShelfwiseError as error:
            return error

    async def _rest(self, pause: float) -> None:
        """Wait before the next attempt; a client that is being closed has no time for the rest of a long pause."""
        closed = self._closed
        await self._until(lambda: self._closed != closed, min(pause, self._close_by - time.monotonic()))

    async def _next(self) -> list[Queued] | None:
        """The next batch, once there is one; empty where all of it was given up, None where none comes any more."""
        while time.monotonic() < self._close_by and (self._outbox or not self._closed):
            if self._outbox and (self._asked() or self._since + self._sending.every_s <= time.monotonic()):
                batch = self._outbox.take(time.time())
                self._outbox.trying(batch, time.time())
                self._since = time.monotonic()
                return batch
            if self._outbox:
                await self._until(self._asked, self._since + self._sending.every_s - time.monotonic())
            else:
                await self._until(lambda: self._closed or bool(self._outbox), 3600.0)
        return None

    def _asked(self) -> bool:
        """Whether events should go now rather than wait for others."""
        return self._closed or self._flush_before > self._outbox.settled_before or self._outbox.has_batch

    def _at_exit(self) -> None:
        """Deliver what waits though the loop is gone."""
        close_by = time.monotonic() + self._sending.close_s
        self._outbox.attempts = 0
        with httpx.Client(headers=self._service.headers) as http:
            while self._outbox and time.monotonic() < close_by:
                if batch := self._outbox.take(time.time()):
                    self._outbox.trying(batch, time.time())
                    outcome = attempted(self._service, http, batch, close_by)
                    pause = self._outbox.settle(batch, outcome, random.random())
                    self._outbox.tell()
                    time.sleep(max(0.0, min(pause, close_by - time.monotonic())))
        if self._outbox:
            log.error("at the end of the program %s", self._outbox.unsent())
        self._outbox.close()
