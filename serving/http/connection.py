"""One HTTP connection: uvicorn's, with bounds on who says nothing, or says it too slowly, and on how many there are.

uvicorn bounds the pause between two requests of a connection, not the time that the head of one may take.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 64 * 1024
_FULL = (
    b'{"type":"urn:shelfwise:problem:busy","title":"Too many connections","status":503,'
    b'"detail":"this worker has as many connections as it may","remedy":"Keep connections open and use them again."}'
)


class Connection(HttpToolsProtocol):
    """A head must be whole within `timeout_keep_alive`, be it a connection's first; more than `limit_concurrency`
    connections are closed with 503."""

    _head: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller is there."""
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
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._head is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._forget_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone."""
        self._forget_head()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._forget_head()
        self._head = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
        self._head, self._head_bytes = None, 0
