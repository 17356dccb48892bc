"""Load of a benchmark: closed-loop clients that query a service over loopback.

They read and write bytes without an HTTP library, so that the clients cost less than what they measure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import cast

import numpy as np

_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


@dataclass
class Load:
    """Results of the clients.

    ms: latency of each response, from the first byte sent to the last received. seconds: duration of the whole load.
    """

    ms: list[float] = field(default_factory=list)
    errors: int = 0
    degraded: int = 0
    seconds: float = 0.0
    first_error: str = ""

    def at(self, percent: float) -> float:
        """A percentile of the latency in ms; NaN if there are no responses."""
        return float(np.percentile(self.ms, percent)) if self.ms else float("nan")

    @property
    def per_second(self) -> float:
        """Responses per second."""
        return len(self.ms) / self.seconds

    def take(self, body: bytes, status: int, started: float) -> None:
        """Record one response."""
        self.ms.append((time.perf_counter() - started) * 1e3)
        self.degraded += b'"degraded":true' in body
        if status not in (200, 202):
            self.errors += 1
            self.first_error = self.first_error or body[:500].decode(errors="replace")


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._expected = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's transport is not a subclass of it

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the service closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._expected and (end := self._received.find(_END)) >= 0:
            head = bytes(self._received[:end]).lower()
            at = head.index(_LENGTH) + len(_LENGTH)
            self._expected = end + len(_END) + int(head[at:].split(b"\r\n", 1)[0])
        if self._expected and len(self._received) >= self._expected and self._answer is not None:
            response = bytes(self._received)
            self._received.clear()
            self._expected = 0
            self._answer.set_result((int(response[9:12]), response[response.index(_END) + len(_END) :]))

    async def ask(self, question: bytes) -> tuple[int, bytes]:
        """(status, body) of the response. question: from `posted`."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(question)
        return await self._answer

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


def posted(path: str, body: bytes, key: str = "") -> bytes:
    """The bytes of a POST request with a JSON body. key: the API key, if the service has any."""
    headers = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    if key:
        headers += f"\r\nAuthorization: Bearer {key}"
    return f"POST {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body


async def connected(port: int) -> Connection:
    """A connection to the service on this machine."""
    return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port))[1]


async def closed_loop(
    port: int, questions: Sequence[bytes], clients: int, *, seconds: float = 0, total: int = 0
) -> Load:
    """`clients` send requests from `questions` in turn, each on its own connection.

    They stop after `seconds`, or after `total` requests in all if given.
    """
    load, numbers, start = Load(), count(), time.perf_counter()

    async def one() -> None:
        connection = await connected(port)
        while (n := next(numbers)) < total or (not total and time.perf_counter() - start < seconds):
            started = time.perf_counter()
            status, body = await connection.ask(questions[n % len(questions)])
            load.take(body, status, started)
        connection.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    load.seconds = time.perf_counter() - start
    return load


async def stream(port: int, questions: Sequence[bytes], per_second: float, until: asyncio.Event) -> Load:
    """Send requests at a fixed rate until stopped. Late responses do not slow the rate."""
    load, start, pending, free = Load(), time.perf_counter(), set[asyncio.Task[None]](), [await connected(port)]

    async def one(question: bytes) -> None:
        connection, started = free.pop() if free else await connected(port), time.perf_counter()
        status, body = await connection.ask(question)
        load.take(body, status, started)
        free.append(connection)

    for n in count():
        if until.is_set():
            break
        await asyncio.sleep(max(0.0, start + n / per_second - time.perf_counter()))
        pending.add(task := asyncio.create_task(one(questions[n % len(questions)])))
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    for connection in free:
        connection.close()
    load.seconds = time.perf_counter() - start
    return load
