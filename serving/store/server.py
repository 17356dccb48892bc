"""One Redis, asked by the service: within a deadline, and left alone for a while when it does not answer."""

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
    """Asked by any number of requests at once, each within `timeout_s`."""

    def __init__(self, url: str, timeout_s: float, breaker: Breaker) -> None:
        """url: `redis://`, `rediss://` or `unix://`."""
        self._timeout_s, self._breaker = timeout_s, breaker
        # One retry at once: after a restart of the server, pooled connections are dead and the next one is not.
        # Every command here may safely be sent twice.
        # Connections are as many as requests at once, which the guard bounds.
        self._client: Any = redis.asyncio.Redis.from_url(
            url, retry=Retry(NoBackoff(), 1), socket_timeout=None, max_connections=2**31 - 1
        )

    async def close(self) -> None:
        """Give back the connections."""
        await self._client.aclose()

    async def servers(self) -> list[Server]:
        """All there are: itself."""
        return [self]

    async def ask(self, commands: Sequence[Sequence[Any]], look: bool = False) -> list[Any]:
        """Replies to commands sent in one round trip; of one that was refused, its ResponseError.

        look: ask even while Redis is being left alone. Raises StoreAway where there is no answer.
        """
        if not self._breaker.allows() and not look:
            raise StoreAway(self._breaker.reason)
        try:
            replies = await self._send(commands)
        except (TimeoutError, RedisError, OSError) as e:
            late = f"Redis did not answer within {self._timeout_s} s"
            reason = late if isinstance(e, TimeoutError) else f"Redis: {type(e).__name__}: {e}"
            self._breaker.failed(reason)
            raise StoreAway(reason) from e
        self._breaker.succeeded()  # be it with an error: it is there
        return replies

    async def _send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            due = loop.call_later(self._timeout_s, _last_call, limit, self._timeout_s / 10)
            try:
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                replies: list[Any] = await pipeline.execute(raise_on_error=False)
                return replies
            finally:
                due.cancel()


def _last_call(limit: asyncio.Timeout, seconds: float) -> None:
    """Past the deadline, what has come is still read: a loop that was busy itself must not take it for a slow Redis."""
    limit.reschedule(asyncio.get_running_loop().time() + seconds)
