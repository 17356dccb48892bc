"""An asyncio client of one Redis server, with a timeout on every call and a circuit breaker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from serving.store.address import Address
from serving.store.breaker import Breaker
from serving.store.errors import StoreAway
from serving.store.sentinel import watch

log = logging.getLogger(__name__)


class Server:
    """Sends commands, concurrently for any number of requests, each with a timeout of `timeout_s`."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        timeout_s: float,
        breaker: Breaker,
        sentinels: Sequence[redis.asyncio.Redis] = (),
    ) -> None:
        """client, sentinels: see `server_client` and `primary_client`."""
        self._client: Any = client
        self._sentinels = sentinels
        self._timeout_s, self._breaker = timeout_s, breaker

    async def close(self) -> None:
        """Close the connections."""
        for client in (self._client, *self._sentinels):
            await client.aclose()

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
            # Health checks need no key and show the reason, so it has neither host nor user. The log has all of it.
            timed_out = f"Redis did not answer within {self._timeout_s} s"
            reason = timed_out if isinstance(e, TimeoutError) else f"Redis cannot be used ({type(e).__name__})"
            if self._breaker.failed(reason):
                log.warning("%s: %s", reason, e)
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


def server_client(url: str) -> redis.asyncio.Redis:
    """A client of the server at a `redis://`, `rediss://` or `unix://` URL."""
    return redis.asyncio.Redis.from_url(url, **_client_options())


def primary_client(address: Address, timeout_s: float) -> tuple[redis.asyncio.Redis, Sequence[redis.asyncio.Redis]]:
    """A client of the server that the sentinels of an address name as the primary, and clients of the sentinels.

    timeout_s: timeout of a call, in which the primary may have to be found.
    """
    watched = watch(address, timeout_s)
    once = {"retry": Retry(NoBackoff(), 0)}
    sentinel = Sentinel(watched.sentinels, sentinel_kwargs=watched.sentinel | once)  # type: ignore[no-untyped-call]
    client: redis.asyncio.Redis = sentinel.master_for(address.primary, **watched.primary, **_client_options())
    return client, sentinel.sentinels


def _client_options() -> dict[str, Any]:
    # One immediate retry: after a restart of the server, pooled connections are dead but a new one works. All commands
    # used here can safely be sent twice. The number of connections is bounded by that of concurrent requests, which the
    # guard limits.
    return {"retry": Retry(NoBackoff(), 1), "socket_timeout": None, "max_connections": 2**31 - 1}


def _extend_timeout(limit: asyncio.Timeout, seconds: float) -> None:
    """Allow a little more time at the timeout, to read replies that arrived while the event loop was busy."""
    limit.reschedule(asyncio.get_running_loop().time() + seconds)
