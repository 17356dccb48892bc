"""uvicorn's HTTP connection, with limits on idle and slow clients and on the number of connections.

uvicorn limits the pause between two requests of a connection, but not the time that the head of a request may take.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 64 * 1024
_FULL = (
    b'{"type":"urn:shelfwise:problem:busy","title":"Too many connections","status":503,'
    b'"detail":"this worker has reached its connection limit","remedy":"Keep connections open and reuse them."}'
)


class Connection(HttpToolsProtocol):
    """A connection whose request heads must each be complete within `timeout_keep_alive`, including the first.

    Connections beyond `limit_concurrency` are closed with 503.
    """

    _head: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected: refuse the connection, or wait for the head of a request."""
        super().connection_made(transport)
        most = self.config.limit_concurrency
        if most is not None and len(self.connections) >= most:
            self.connections.discard(self)
            transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(_FULL), _FULL)
            )
            transport.close()
            return
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Data has arrived: parse it, and limit the size of the head."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._head is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self.send_400_response("The request head is too large.")

    def on_message_begin(self) -> None:
        """A request head begins: start its timer."""
        super().on_message_begin()
        self._start_timer()

    def on_headers_complete(self) -> None:
        """A request head is complete: stop its timer."""
        self._stop_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has disconnected: stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head is not None:
            self._head.cancel()
        self._head, self._head_bytes = None, 0
