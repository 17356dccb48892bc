"""An asyncio client of one Redis server, with a timeout on every call and a circuit breaker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from serving.store.breaker import Breaker
from serving.store.errors import StoreAway


class Server:
    """Sends commands, concurrently for any number of requests, each with a timeout of `timeout_s`."""

    def __init__(self, url: str, timeout_s: float, breaker: Breaker) -> None:
        """url: `redis://`, `rediss://` or `unix://`."""
        self._timeout_s, self._breaker = timeout_s, breaker
        # One immediate retry: after a restart of the server, pooled connections are dead but a new one works.
        # All commands used here can safely be sent twice.
        # The number of connections is bounded by that of concurrent requests, which the guard limits.
        self._client: Any = redis.asyncio.Redis.from_url(
            url, retry=Retry(NoBackoff(), 1), socket_timeout=None, max_connections=2**31 - 1
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def servers(self) -> list[Server]:
        """This server only; see `Cluster.servers`."""
        return [self]

    async def ask(self, commands: Sequence[Sequence[Any]], probe: bool = False) -> list[Any]:
        """Replies to commands sent in one round trip; the reply to a failed command is its ResponseError.

        probe: ignore an open breaker. Raises StoreAway if there is no answer.
        """
        if not self._breaker.allows() and not probe:
            raise StoreAway(self._breaker.reason)
        try:
            replies = await self._send(commands)
        except (TimeoutError, RedisError, OSError) as e:
            timed_out = f"Redis did not answer within {self._timeout_s} s"
            reason = timed_out if isinstance(e, TimeoutError) else f"Redis: {type(e).__name__}: {e}"
            self._breaker.failed(reason)
            raise StoreAway(reason) from e
        self._breaker.succeeded()  # also after an error reply: the server is reachable
        return replies

    async def _send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            timer = loop.call_later(self._timeout_s, _extend_timeout, limit, self._timeout_s / 10)
            try:
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                replies: list[Any] = await pipeline.execute(raise_on_error=False)
                return replies
            finally:
                timer.cancel()


def _extend_timeout(limit: asyncio.Timeout, seconds: float) -> None:
    """Allow a little more time at the timeout, to read replies that arrived while the event loop was busy."""
    limit.reschedule(asyncio.get_running_loop().time() + seconds)
