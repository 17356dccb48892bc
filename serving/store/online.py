"""The service's side of Redis: asyncio, every call within a deadline, every failure a `StoreAway`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from features.catalogue import Catalogue
from features.history import History
from serving.store import users
from serving.store.address import Address
from serving.store.breaker import Breaker
from serving.store.cluster import Cluster
from serving.store.errors import StoreAway, refusal
from serving.store.layout import ERASED, POINTER, SHADOW, Layout
from serving.store.pointer import Pointer, decode_pointer
from serving.store.server import Server
from serving.store.stream import Event, Tail, decode_tail, tail_commands

_TAIL = 5000
_STEP, _STEPS = 1000, 5
"""Keys that one look for users goes over, and how many such looks: what a page asks must not tire Redis."""


class PollResult(NamedTuple):
    """What a look found: the live release, events of the stream, and the release in shadow.

    away: why part of a cluster did not answer, empty where all did. Pointers are then the last that were read, and the
    events are those of the nodes that answered.
    """

    pointer: Pointer | None
    tail: Tail
    away: str = ""
    shadow: Pointer | None = None


class Store:
    """One server or a cluster, as the address says; the keys are named by `layout`."""

    def __init__(self, url: str, timeout_s: float, failures: int = 3, pause_s: float = 1.0) -> None:
        """url: see `Address`. timeout_s: deadline of each call, in seconds.

        failures, pause_s: when to leave a server alone, as in `Breaker`; `poll` looks all the same, and so finds out
        when it is back. Raises ValueError where the url is no address.
        """
        address = Address.of(url)
        self.layout = Layout(address.cluster)
        self._redis: Server | Cluster = (
            Cluster(address, timeout_s, lambda: Breaker(failures, pause_s))
            if address.cluster
            else Server(url, timeout_s, Breaker(failures, pause_s))
        )
        self._pointer: Pointer | None = None
        self.shadow: Pointer | None = None
        """The release in shadow, as `poll` last read it."""
        self._turn = 0

    async def close(self) -> None:
        """Give back the connections."""
        await self._redis.close()

    async def run(self, commands: Sequence[Sequence[Any]], look: bool = False) -> list[Any]:
        """Replies to commands sent in one round trip. look: ask even while Redis is being left alone."""
        replies = await self._redis.ask(commands, look)
        if wrong := next((r for r in replies if isinstance(r, Exception)), None):
            raise _away(wrong) from wrong
        return replies

    async def write(self, events: Sequence[Event], now: float) -> list[bool]:
        """True for each event that was new, False for a duplicate; on return all are in their users' lists.

        now: Unix seconds, for how long ids are remembered. If StoreAway is raised, some, all or none were written:
        the same call again completes them.
        """
        if not events:
            return []
        commands, members = users.write_commands(self.layout, events, now)
        return users.flags(await self.run(commands), members, len(events))

    async def read(self, user_id: str, catalogue: Catalogue, at: float) -> History:
        """What a user did and was shown strictly before `at`; empty lists for a user never seen."""
        replies = await self.run(users.read_commands(self.layout, user_id))
        return users.decode_history(self.layout, replies, user_id, catalogue, at)

    async def erase(self, user_id: str, at: float) -> None:
        """Forget a user: the lists and ids now, the log by a tombstone that `shelfwise collect` obeys.

        at: Unix seconds; what the user did later is kept. Twice is the same as once.
        """
        # The tombstone first: cut off in between, the call is made again.
        await self.run([["XADD", ERASED, "*", "u", users.user_hash(user_id), "t", repr(at)]])
        await self.run([users.forget_command(self.layout, user_id, at)])

    async def append(self, stream: str, entries: Sequence[bytes]) -> int:
        """Add entries to the end of a stream, each as its field `l`; returns about how long it is then.

        In a cluster to the end of one of its parts, each in its turn.
        """
        self._turn = (self._turn + 1) % self.layout.shards
        part = self.layout.part(stream, self._turn)
        commands = [["XADD", part, "*", "l", entry] for entry in entries]
        return int((await self.run([*commands, ["XLEN", part]]))[-1]) * self.layout.shards

    async def pointer(self) -> Pointer | None:
        """The live release, None before the first."""
        return decode_pointer((await self.run([["GET", POINTER]]))[0])

    async def some_users(self, count: int) -> list[str]:
        """At most `count` users who have a list, in no order, as a few short steps through the keys find them."""
        found = set[str]()
        servers = await self._redis.servers()
        for server in servers:
            cursor = 0
            for _ in range(max(1, _STEPS // len(servers))):
                (reply,) = await server.ask([["SCAN", cursor, "MATCH", self.layout.users("e"), "COUNT", _STEP]])
                if isinstance(reply, ResponseError):
                    raise refusal(reply)
                cursor, keys = int(reply[0]), reply[1]
                found |= {self.layout.user_of(key) for key in keys}
                if len(found) >= count or not cursor:
                    break
        return sorted(found)[:count]

    async def poll(self, last: str, count: int = _TAIL) -> PollResult:
        """Which releases are live and in shadow, and about `count` events after a place at most: one round trip."""
        commands = [["GET", POINTER], ["GET", SHADOW], *tail_commands(self.layout, last, count)]
        pointer, shadow, *parts = await self._redis.ask(commands, look=True)
        wrong = [r for r in (pointer, shadow, *parts) if isinstance(r, Exception)]
        if len(wrong) == len(commands) or (wrong and not self.layout.cluster):
            raise _away(wrong[0]) from wrong[0]
        if not isinstance(pointer, Exception):
            self._pointer = decode_pointer(pointer)
        if not isinstance(shadow, Exception):
            self.shadow = decode_pointer(shadow, SHADOW)
        tail = decode_tail(self.layout, [[] if isinstance(p, Exception) else p for p in parts], last)
        return PollResult(self._pointer, tail, str(_away(wrong[0])) if wrong else "", self.shadow)


def _away(error: Exception) -> StoreAway:
    return refusal(error) if isinstance(error, ResponseError) else StoreAway(str(error))
