"""Redis access for the service: asyncio, with a timeout on every call; every failure raises `StoreAway`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from features.catalogue import Catalogue
from features.columns import Scalar
from features.history import History, Outside
from features.retention import DEFAULT_RETENTION, Retention
from serving.store import attributes, erasure, merging, users
from serving.store.address import Address
from serving.store.attributes import AttributeWrite
from serving.store.breaker import Breaker
from serving.store.cluster import Cluster
from serving.store.continuity import Extent, decode_extent, extent_commands
from serving.store.errors import StoreAway, to_store_away
from serving.store.layout import ERASED, EXPERIMENTS, GROUP, MERCHANDISING, NIGHTS, POINTER, SHADOW, USERS, Layout
from serving.store.memory import COMMANDS, Memory, memory_of
from serving.store.merging import Merge
from serving.store.pointer import Pointer, decode_pointer
from serving.store.server import Server, primary_client, server_client
from serving.store.stream import START, Event, Tail, decode_tail, tail_commands
from serving.store.users import DEFAULT_LIMITS, Moved, Outcome, UserLimits

_TAIL = 1000
_SCAN_COUNT, _SCANS = 1000, 5
"""Keys per SCAN and number of SCANs in `some_users`, which bound the load that a page puts on Redis."""


class PollResult(NamedTuple):
    """The live release, new events of the stream, and the release in shadow.

    away: why part of a cluster did not answer; empty if all nodes did. If it is set, the pointers may be those read
    before, and the events are those of the nodes that answered. merchandising: stamp of the stored merchandising rules;
    empty if there are none, None if they were not asked for or their node did not answer. experiments:
    the same of the stopped experiments, as `serving.experiments.decode_stops` reads them.
    """

    pointer: Pointer | None
    tail: Tail
    away: str = ""
    shadow: Pointer | None = None
    merchandising: str | None = None
    experiments: Mapping[bytes, bytes] | None = None


class Backlog(NamedTuple):
    """What Redis knows of work that is not done.

    update_age_s: age of the oldest item update that no embedding worker has finished, 0 without one. nights: days with
    a nightly run since the last one that succeeded.
    """

    update_age_s: float
    nights: int


class StoredUser(NamedTuple):
    """Stored state of a user, to be decoded for one release or several.

    lists, attributes: replies of Redis. unit: the unit of experiments that was taken over, None for that of the ID.
    """

    layout: Layout
    user_id: str
    lists: Sequence[Any]
    attributes: Mapping[bytes, bytes] | None
    unit: bytes | None

    def history(self, catalogue: Catalogue, at: float, retention: Retention) -> tuple[History, Outside]:
        """The engagements and impressions strictly before `at`, and the events with items outside the catalogue.

        retention: that of the release for which the lists are read. Raises StoreCorrupt.
        """
        return users.decode_lists(self.layout, self.lists, self.user_id, catalogue, at, retention)

    def decoded_attributes(self) -> dict[str, Scalar] | None:
        """The attributes, None if they were not read. Raises StoreCorrupt."""
        if self.attributes is None:
            return None
        return attributes.decode_attributes(self.layout, self.user_id, self.attributes)


class Store:
    """A single server, a cluster or the primary of sentinels, depending on the address. layout: names of the keys."""

    def __init__(
        self, url: str, timeout_s: float, failures: int = 3, pause_s: float = 1.0, limits: UserLimits = DEFAULT_LIMITS
    ) -> None:
        """url: see `Address`. timeout_s: timeout of each call, in seconds.

        failures, pause_s: see `Breaker`; `poll` ignores an open breaker and so notices when the server is back. limits:
        apply to users written. Raises AddressError for an invalid url.
        """
        address = Address.of(url)
        self.layout, self._limits = Layout(address.cluster, address.prefix), limits
        self._redis: Server | Cluster
        if address.cluster:
            self._redis = Cluster(address, timeout_s, lambda: Breaker(failures, pause_s))
        else:
            client, sentinels = (
                primary_client(address, timeout_s) if address.primary else (server_client(address.url), ())
            )
            self._redis = Server(client, timeout_s, Breaker(failures, pause_s), sentinels)
        self._pointer: Pointer | None = None
        self.shadow: Pointer | None = None
        """The release in shadow, as last read by `poll`."""
        self._turn = 0

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.close()

    async def run(self, commands: Sequence[Sequence[Any]], probe: bool = False) -> list[Any]:
        """Replies to commands sent in one round trip. probe: ignore an open breaker. Raises StoreAway."""
        replies = await self._redis.ask(commands, probe)
        if error := next((r for r in replies if isinstance(r, Exception)), None):
            raise _away(error) from error
        return replies

    async def write(self, events: Sequence[Event], now: float, moved: Moved | None = None) -> list[Outcome]:
        """Write new events to their users' lists and the stream; returns the outcome of each event.

        now: Unix seconds, from which the times to keep event IDs and lists are counted. moved: as in
        `users.write_commands`. If StoreAway is raised, none, some or all events were written; repeating the call writes
        the others.
        """
        if not events:
            return []
        commands, members = users.write_commands(self.layout, events, now, self._limits, moved)
        replies = await self.run(commands)
        for by in users.moved_events(replies):
            theirs = [events[members[k][p]] for k, p in by.places]
            for (k, p), outcome in zip(by.places, await self.write(theirs, now, by), strict=True):
                replies[k][p] = outcome
        return users.outcomes(replies, members, events)

    async def merge(self, merge: Merge, unit: bytes | None = None, unit_s: int = 0) -> int:
        """Move the history of one user to another; returns the number of events moved, or REFUSED.

        unit: the unit of the anonymous user's ID in experiments, which a new user takes over for `unit_s` seconds; None
        if units are not kept. Idempotent. If StoreAway is raised, repeating the call completes the merge.
        """
        if unit is not None:
            # Before the lists are moved: a call that was cut short must still find a new user when it is repeated.
            replies = await self.run(merging.unit_commands(self.layout, merge))
            if (kept := merging.inherited_unit(replies, unit)) is not None:
                await self.run([["SET", self.layout.user(merge.user_id, "x"), kept, "NX", "EX", unit_s]])
        layout, limits = self.layout, self._limits
        if layout.shard(merge.user_id) == layout.shard(merge.from_id):
            return int((await self.run(merging.merge_command(layout, merge, limits)))[0])
        ((*taken, goes_on),) = await self.run(merging.take_command(layout, merge, limits))
        if not goes_on:
            return 0
        moved = int((await self.run(merging.join_command(layout, merge, limits, taken)))[0])
        refused = moved == attributes.REFUSED
        after = [merging.unmark_command(layout, merge)] if refused else merging.clear_command(layout, merge, limits)
        await self.run(after)
        return moved

    async def read(
        self, user_id: str, catalogue: Catalogue, at: float, retention: Retention = DEFAULT_RETENTION
    ) -> History:
        """A user's engagements and impressions strictly before `at`; empty for an unknown user.

        retention: that of the release for which the lists are read, which replay used to train it.
        """
        return (await self.read_lists(user_id, catalogue, at, retention))[0]

    async def read_lists(
        self, user_id: str, catalogue: Catalogue, at: float, retention: Retention = DEFAULT_RETENTION
    ) -> tuple[History, Outside]:
        """`read`, and the events with items outside the catalogue."""
        replies = await self.run(users.read_commands(self.layout, user_id))
        return users.decode_lists(self.layout, replies, user_id, catalogue, at, retention)

    async def read_user(self, user_id: str, reads_attributes: bool = False, reads_unit: bool = False) -> StoredUser:
        """Stored state of a user, in one round trip.

        reads_attributes, reads_unit: whether to read the attributes, and the unit of experiments, too.
        """
        commands = users.read_commands(self.layout, user_id)
        if reads_attributes:
            commands.append(attributes.read_command(self.layout, user_id))
        if reads_unit:
            commands.append(["GET", self.layout.user(user_id, "x")])
        replies = await self.run(commands)
        unit = replies.pop() if reads_unit else None
        return StoredUser(self.layout, user_id, replies[:2], replies[2] if reads_attributes else None, unit)

    async def write_attributes(self, write: AttributeWrite) -> int:
        """Write attributes of a user. Returns the number of all that the user has afterwards, or one of the replies of
        `serving.store.attributes`."""
        return int((await self.run(attributes.write_command(self.layout, write, self._limits)))[0])

    async def erase(self, user_id: str, at: float) -> None:
        """Erase a user: delete lists, event IDs and attributes now, and add a tombstone for `shelfwise collect`, which
        erases the log.

        at: Unix seconds; events of the user after it are kept, and those up to it are refused from now on. Idempotent.
        """
        secret = (await self.run(erasure.secret_commands(self.layout, erasure.new_secret())))[-1].decode()
        # The tombstone comes first: if the call fails in between, the caller repeats it.
        name = erasure.tombstone(secret, erasure.user_hash(user_id))
        await self.run([["XADD", self.layout.key(ERASED), "*", "u", name, "t", repr(at)]])
        commands = erasure.erase_commands(self.layout, user_id, secret, at)
        await self.run([*commands, users.forget_command(self.layout, user_id)])

    async def append(self, stream: str, entries: Sequence[bytes]) -> int:
        """Append entries to a stream, each as field `l`; returns the approximate length of the stream.

        In a cluster, consecutive calls append to different parts in turn.
        """
        self._turn = (self._turn + 1) % self.layout.shards
        part = self.layout.part(stream, self._turn)
        commands = [["XADD", part, "*", "l", entry] for entry in entries]
        return int((await self.run([*commands, ["XLEN", part]]))[-1]) * self.layout.shards

    async def pointer(self) -> Pointer | None:
        """The live release; None before the first is published."""
        key = self.layout.key(POINTER)
        return decode_pointer((await self.run([["GET", key]]))[0], key)

    async def extent(self) -> Extent | None:
        """The extent of the events in Redis; None if the node of the origin does not answer. Raises StoreAway."""
        replies = await self._redis.ask(extent_commands(self.layout), probe=True)
        return decode_extent(replies)

    async def backlog(self, now: float) -> Backlog:
        """The work that is not done. now: Unix seconds. Raises StoreAway."""
        changes = self.layout.changes
        nights, groups = await self._redis.ask([["HLEN", self.layout.key(NIGHTS)], ["XINFO GROUPS", changes]])
        if isinstance(nights, Exception):
            raise _away(nights) from nights
        # XINFO fails without a stream; before the first embedding worker, the stream has no group.
        group = next((g for g in groups if g["name"] == GROUP.encode()), None) if isinstance(groups, list) else None
        delivered = group["last-delivered-id"].decode() if group else START
        commands = [["XRANGE", changes, f"({delivered}", "+", "COUNT", 1]]
        if group:
            commands.append(["XPENDING", changes, GROUP])
        waiting, *pending = await self.run(commands)
        oldest = [entry for entry, _ in waiting] + [p["min"] for p in pending if p["min"]]
        since = min((int(entry.partition(b"-")[0]) / 1000 for entry in oldest), default=now)
        return Backlog(max(0.0, now - since), int(nights))

    async def memory(self) -> Memory:
        """Memory of all servers. Raises StoreAway."""
        infos = []
        for server in await self._redis.servers():
            stats, memory = await server.ask(COMMANDS)
            if error := next((r for r in (stats, memory) if isinstance(r, Exception)), None):
                raise _away(error) from error
            infos.append((stats, memory))
        return memory_of(infos)

    async def count_users(self, now: float) -> int:
        """Number of users who have lists. now: Unix seconds. Raises StoreAway."""
        return sum(await self.run([["ZCOUNT", part, now, "+inf"] for part in self.layout.parts(USERS)]))

    async def some_users(self, count: int) -> list[str]:
        """At most `count` IDs of users with engagements, sorted: those found by a few short SCANs."""
        user_ids = set[str]()
        servers = await self._redis.servers()
        for server in servers:
            cursor = 0
            for _ in range(max(1, _SCANS // len(servers))):
                (reply,) = await server.ask([["SCAN", cursor, "MATCH", self.layout.users("e"), "COUNT", _SCAN_COUNT]])
                if isinstance(reply, ResponseError):
                    raise to_store_away(reply)
                cursor, keys = int(reply[0]), reply[1]
                user_ids |= {self.layout.user_of(key) for key in keys}
                if len(user_ids) >= count or not cursor:
                    break
        return sorted(user_ids)[:count]

    async def poll(
        self, last: str, count: int = _TAIL, merchandising: bool = False, experiments: bool = False
    ) -> PollResult:
        """The live release, the release in shadow, and at most about `count` events after `last`, in one round trip.

        merchandising: whether to ask for the stamp of the merchandising rules too. experiments: whether to ask for the
        stopped experiments too.
        """
        pointer_key, shadow_key = self.layout.key(POINTER), self.layout.key(SHADOW)
        commands = [["GET", pointer_key], ["GET", shadow_key], *tail_commands(self.layout, last, count)]
        if merchandising:
            commands.append(["HGET", self.layout.key(MERCHANDISING), "stamp"])
        if experiments:
            commands.append(["HGETALL", self.layout.key(EXPERIMENTS)])
        pointer, shadow, *parts = replies = await self._redis.ask(commands, probe=True)
        errors = [r for r in replies if isinstance(r, Exception)]
        if len(errors) == len(commands) or (errors and not self.layout.cluster):
            raise _away(errors[0]) from errors[0]
        if not isinstance(pointer, Exception):
            self._pointer = decode_pointer(pointer, pointer_key)
        if not isinstance(shadow, Exception):
            self.shadow = decode_pointer(shadow, shadow_key)
        stops = parts.pop() if experiments else None
        stamp = _stamp(parts.pop()) if merchandising else None
        tail = decode_tail(self.layout, [[] if isinstance(p, Exception) else p for p in parts], last)
        return PollResult(
            self._pointer, tail, str(_away(errors[0])) if errors else "", self.shadow, stamp, _unless_failed(stops)
        )


def _unless_failed(reply: Any) -> Any:
    return None if isinstance(reply, Exception) else reply


def _stamp(reply: Any) -> str | None:
    return None if isinstance(reply, Exception) else (reply or b"").decode(errors="replace")


def _away(error: Exception) -> StoreAway:
    return to_store_away(error) if isinstance(error, ResponseError) else StoreAway(str(error))
