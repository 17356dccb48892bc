"""uvicorn's HTTP connection, with a time limit on every state of a connection and a limit on their number.

uvicorn limits the pause after a response, but not the time that a client takes to send a request or to read a response,
and it drops its limit when a byte arrives that begins no request.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
from typing import Any, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serving.config import ServiceConfig

_HEAD_BYTES = 64 * 1024
_HEALTH = ("/health/live", "/health/ready")
_PIPELINED = 16
"""Requests of a connection that may wait for earlier ones; with more, it is closed after these."""
_PIPELINE_PAUSE_S = 0.01
"""Pause before a waiting request, so that one connection takes turns with the others however many it sends at once."""
_SEND_BYTES = 256 * 1024
"""Send buffer of a connection in the kernel, which would otherwise keep up to 4 MB for a client that reads nothing."""
_RESERVED = 16
"""Connections of a worker beyond `max_connections`, on which only health checks are answered."""
_RESERVED_HEAD_S = 1.0


def _document(status: int, slug: str, title: str, detail: str, remedy: str) -> bytes:
    """A whole response with a problem document, which closes the connection."""
    body = json.dumps(
        {"type": f"urn:shelfwise:problem:{slug}", "title": title, "status": status, "detail": detail, "remedy": remedy}
    ).encode()
    later = b"retry-after: 1\r\n" if status == 503 else b""
    return b"%bcontent-type: application/problem+json\r\n%bconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
        STATUS_LINE[status],
        later,
        len(body),
        body,
    )


_FULL = _document(
    503,
    "busy",
    "Too many connections",
    "this worker has reached its connection limit",
    "Keep connections open and reuse them.",
)
_INVALID = _document(
    400,
    "request",
    "Invalid HTTP request",
    "the data received are not an HTTP/1.1 request",
    "Check the client, and whether it sent a body longer than its Content-Length.",
)
_LARGE_HEAD = _document(
    400,
    "head",
    "Head too large",
    f"the request head is larger than {_HEAD_BYTES} bytes",
    "Send fewer or shorter headers.",
)
_CONNECT = _document(
    405, "method", "CONNECT is not supported", "the service is not a proxy", "Send the request to the service itself."
)
_UPGRADE = _document(
    400,
    "upgrade",
    "Upgrade is not supported",
    "a request with an Upgrade header and a body cannot be read",
    "Send it without Upgrade; in Java: HttpClient.newBuilder().version(HTTP_1_1).",
)


class Connections:
    """Makes the connections of a worker, for uvicorn, and keeps those for health checks within their own limit."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.health = frozenset(f"{root}{path}".encode() for root in ("", config.root_path) for path in _HEALTH)
        self._reserved: dict[Connection, None] = {}

    def __call__(self, **uvicorn: Any) -> Connection:
        """A connection, with the arguments of uvicorn."""
        return Connection(self, **uvicorn)

    def reserve(self, connection: Connection) -> bool:
        """True if a new connection is beyond the limit, and therefore one that answers health checks only.

        If too many of these are open, the oldest is closed: a health check sends its request at once.
        """
        if len(connection.connections) - len(self._reserved) <= self.config.max_connections:
            return False
        if len(self._reserved) >= _RESERVED:
            oldest = next(iter(self._reserved))
            self.release(oldest)
            oldest.refuse(_FULL)
        self._reserved[connection] = None
        return True

    def release(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._reserved.pop(connection, None)


class Connection(HttpToolsProtocol):
    """A connection that is closed when its client is too slow.

    A client may take `head_s` for the head of a request, the first included; `body_s` for its body, whether or not
    a route reads it; `idle_s` from a response to the next request; and `write_s` to read a response. Only bytes of
    a request count: others do not extend the time.

    The time that a request takes to be answered is limited by the guard.
    """

    _part: Literal["head", "body"] | None = None
    """The part of a request being received."""
    _running: RequestResponseCycle | None = None
    """The request being answered. Later ones of the same connection wait in `pipeline`."""
    _reserved = False
    _deaf = False
    """True if further data are ignored, since the connection is closed after the response in progress."""
    _refused = False
    """True if the request being received is not answered."""
    _unread = False
    """True if the client has left so much unread that no further request is begun."""
    _head_bytes = 0
    """Size of an incomplete head, without the data in which it began."""
    _begun = False
    """True if a head has begun in the data being parsed."""
    _read_by = _write_by = _wakes_at = math.inf
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, of: Connections, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._of, self._limits = of, of.config

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected: wait for the head of a request."""
        super().connection_made(transport)
        if (client := transport.get_extra_info("socket")) is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        self._reserved = self._of.reserve(self)
        self._wait(min(self._limits.head_s, _RESERVED_HEAD_S) if self._reserved else self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed: stop the timer."""
        self._of.release(self)
        self._wakes_at = -math.inf
        if self._timer is not None:
            self._timer.cancel()
        self.pipeline.clear()
        if self._running is not None:  # uvicorn tells only the last of several pipelined requests
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Data have arrived: parse them, and limit the size of a head."""
        if self._deaf or self.transport.is_closing():
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._close_after_response()  # what follows is not HTTP
        except httptools.HttpParserError:
            self.refuse(_INVALID)
        if self._part == "head":
            self._head_bytes = 0 if self._begun else self._head_bytes + len(data)  # other requests may be before it
            self._begun = False
            if self._head_bytes > _HEAD_BYTES:
                self.refuse(_LARGE_HEAD)

    def on_message_begin(self) -> None:
        """A request begins: limit the time of its head."""
        super().on_message_begin()
        self._part, self._begun = "head", True
        self._wait(min(self._limits.head_s, _RESERVED_HEAD_S) if self._reserved else self._limits.head_s)

    def on_headers_complete(self) -> None:
        """A head is complete: limit the time of the body, and begin to answer."""
        self._part = "body"
        self._wait(self._limits.body_s)
        if self._deaf:
            self._refused = True
        elif self._reserved and self.url.partition(b"?")[0] not in self._of.health:
            self.refuse(_FULL)
        elif self.parser.get_method() == b"CONNECT":
            self.refuse(_CONNECT)
        elif self.parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 "))
            for name, value in self.headers
        ):
            self.refuse(_UPGRADE)  # the parser would skip the body
        else:
            super().on_headers_complete()
            if self._reserved or len(self.pipeline) >= _PIPELINED:
                self._close_after_response()

    def on_body(self, body: bytes) -> None:
        """A part of a body has arrived."""
        if self.cycle is not None and not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete: its client owes nothing until it is answered."""
        self._part, self._read_by = None, math.inf
        if self.cycle is None or self._refused:
            return
        super().on_message_complete()
        if self.cycle.response_complete:
            self._wait(self._limits.idle_s)

    def on_response_complete(self) -> None:
        """A response is written, at least to memory: limit the time to read it, and go on with the next request."""
        self.server_state.total_requests += 1
        self._running = None
        self._limit_reading()
        if self.transport.is_closing():
            return
        if self.pipeline:  # read no more before these are answered
            self.loop.call_later(_PIPELINE_PAUSE_S, self._start_waiting)
            return
        self.flow.resume_reading()
        if self._part is None:
            self._wait(self._limits.idle_s)

    def pause_writing(self) -> None:
        """The client does not read. Begin no further request: a response in progress is in memory already."""
        self._unread = True
        self._limit_reading()

    def resume_writing(self) -> None:
        """The client has read: go on with the next request."""
        self._unread = False
        self._start_waiting()

    def _start_waiting(self) -> None:
        """Begin the next waiting request, unless one is being answered or the client does not read."""
        if self.pipeline and self._running is None and not self._unread and not self.transport.is_closing():
            self._start_asgi_task(*self.pipeline.pop())

    def refuse(self, response: bytes) -> None:
        """Answer with this response and close, or close after the response to an earlier request."""
        self._refused = True
        earlier = self._running
        if self.pipeline or (earlier is not None and not earlier.more_body):
            self._close_after_response()
            return
        if earlier is None:
            self.transport.write(response)
        elif not earlier.response_started:
            earlier.disconnected = True  # its body is what is invalid
            earlier.message_event.set()
            self.transport.write(response)
        self._close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._unread:
            self.flow.pause_reading()
            self.pipeline.append((cycle, app))
            return
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _close_after_response(self) -> None:
        self._deaf = True
        if self._running is None and not self.pipeline:
            self._close()
        else:
            self.cycle.keep_alive = False
            self.flow.pause_reading()

    def _close(self) -> None:
        self._deaf = True
        self.transport.close()
        self._limit_reading()  # a transport closes only when all is sent

    def _wait(self, seconds: float) -> None:
        """Expect the next part of a request within this time."""
        self._read_by = self.loop.time() + seconds
        self._wake_at(self._read_by)

    def _limit_reading(self) -> None:
        """Expect the client to read everything written within `write_s`."""
        self._write_by = self.loop.time() + self._limits.write_s
        self._wake_at(self._write_by)

    def _wake_at(self, at: float) -> None:
        """Check the limits at this time, or before: most requests move a limit, but only few have to set a timer."""
        if at < self._wakes_at:
            if self._timer is not None:
                self._timer.cancel()
            self._wakes_at, self._timer = at, self.loop.call_at(at, self._check_limits)

    def _check_limits(self) -> None:
        now = self.loop.time() + 0.001  # the resolution of the loop's clock
        self._wakes_at, self._timer = math.inf, None
        if self._write_by <= now:
            if self.transport.is_closing() or self.transport.get_write_buffer_size():
                self.transport.abort()
                return
            self._write_by = math.inf
        if self._read_by <= now:
            self._read_by = math.inf
            if self._running is None and not self.pipeline:
                self.refuse(_FULL) if self._reserved else self._close()
            elif self.flow.read_paused:
                self._wait(self._limits.head_s)  # the service does not read, so the client is not late
            else:
                self._close_after_response()
        if self.transport.is_closing() and self._write_by == math.inf:
            self._limit_reading()
        # While a request is answered, nothing is due: look again later whether the connection is closing.
        self._wake_at(min(self._read_by, self._write_by, now + self._limits.write_s))
