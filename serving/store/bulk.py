"""Redis access for offline jobs: blocking calls on whole catalogues and logs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import AskError, ClusterCrossSlotError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from features.arrays import F32, F64, I8, I64
from features.catalogue import Catalogue
from features.history import History
from features.retention import DEFAULT_RETENTION, Retention
from serving.store import attributes, erasure, users
from serving.store.address import Address
from serving.store.attributes import AttributeWrite
from serving.store.continuity import Origin, decode_origin, extent_commands
from serving.store.errors import StoreCorrupt, to_store_away
from serving.store.layout import AUDIT, ERASED, ERASED_UNTIL, NIGHTS, ORIGIN, POINTER, SHADOW, STREAM, Layout
from serving.store.pointer import AUDITED, Pointer, decode_pointer
from serving.store.sentinel import watch
from serving.store.stream import (
    START,
    Event,
    Tail,
    decode_event,
    decode_events,
    decode_tail,
    entry_number,
    last_position,
    tail_commands,
)
from serving.store.users import DEFAULT_LIMITS, Moved, Outcome, UserLimits
from serving.store.vectors import decode_vectors, encode_vectors

_IDS_KEY = re.compile(rb":d:\d+$")
_FIND_S = 5.0
"""Time within which sentinels have to name the primary."""
_BATCH = 1000
"""Number of keys or entries per command, so that no command holds Redis for more than about a millisecond."""


class Seeded(NamedTuple):
    """Results of seeding: records added to lists, and users left out because the maximum number of users have lists."""

    records: int
    refused_users: int


class BulkStore:
    """A single server, a cluster or the primary of sentinels, depending on the address.

    A context manager that closes its connections.

    Raises the errors of redis-py, StoreCorrupt, StoreAway if the address is of the wrong kind (a cluster node given as
    a single server, or the reverse), and AddressError for an invalid address.
    """

    def __init__(self, url: str, timeout_s: float = 60.0, limits: UserLimits = DEFAULT_LIMITS) -> None:
        """url: see `Address`. limits: apply to users written or seeded."""
        address = Address.of(url)
        self.layout, self._limits = Layout(address.cluster, address.prefix), limits
        self.client: Any
        self._sentinels: list[redis.Redis] = []
        if address.cluster:
            nodes = [ClusterNode(*node) for node in address.nodes]  # type: ignore[no-untyped-call]
            self.client = RedisCluster.from_url(
                address.at(address.nodes[0]), startup_nodes=nodes, socket_timeout=timeout_s, require_full_coverage=False
            )
        elif address.primary:
            watched = watch(address, _FIND_S)
            once = {"retry": Retry(NoBackoff(), 0)}
            sentinel = Sentinel(watched.sentinels, sentinel_kwargs=watched.sentinel | once)  # type: ignore[no-untyped-call]
            options = watched.primary | {"retry": Retry(NoBackoff(), 1), "socket_timeout": timeout_s}
            self.client = sentinel.master_for(address.primary, **options)  # type: ignore[no-untyped-call]
            self._sentinels = sentinel.sentinels
        else:
            self.client = redis.Redis.from_url(address.url, retry=Retry(NoBackoff(), 1), socket_timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for client in (self.client, *self._sentinels):
            client.close()

    def run(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Replies to commands sent in one round trip (in a cluster, one per node)."""
        pipeline = self.client.pipeline(transaction=False) if not self.layout.cluster else self.client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        try:
            replies: list[Any] = pipeline.execute()
        except (AskError, ClusterCrossSlotError) as e:
            raise to_store_away(e) from e
        return replies

    def write(self, events: Sequence[Event], now: float, moved: Moved | None = None) -> list[Outcome]:
        """Same as `Store.write`."""
        if not events:
            return []
        commands, members = users.write_commands(self.layout, events, now, self._limits, moved)
        replies = self.run(commands)
        for by in users.moved_events(replies):
            theirs = [events[members[k][p]] for k, p in by.places]
            for (k, p), outcome in zip(by.places, self.write(theirs, now, by), strict=True):
                replies[k][p] = outcome
        return users.outcomes(replies, members, events)

    def read(self, user_id: str, catalogue: Catalogue, at: float, retention: Retention = DEFAULT_RETENTION) -> History:
        """Same as `Store.read`."""
        replies = self.run(users.read_commands(self.layout, user_id))
        return users.decode_lists(self.layout, replies, user_id, catalogue, at, retention)[0]

    def tail(self, last: str = START, count: int = _BATCH) -> Tail:
        """About `count` events of the stream after position `last`; at the end, `item_ids` is empty."""
        return decode_tail(self.layout, self.run(tail_commands(self.layout, last, count)), last)

    def events(self, last: str = START, count: int = _BATCH) -> tuple[str, list[Event]]:
        """The same as `Event` objects, for the log: (position of the last entry, events)."""
        parts = self.run(tail_commands(self.layout, last, count))
        return last_position(self.layout, parts, last), decode_events(parts)

    def trim(self, before: float, shard: int = 0) -> int:
        """Delete the entries of one part of the event stream that arrived before a time; returns their number.

        before: Unix seconds, at most the cut-off of the oldest release that may still be served; the item state of a
        release contains all events before its cut-off. Call this only after those events are in the log.
        """
        return self.trim_to(self.layout.part(STREAM, shard), str(max(0, int(before * 1000))))

    def entries(self, key: str, field: bytes, last: str = START, count: int = _BATCH) -> list[tuple[str, bytes]]:
        """(ID, content) of at most `count` entries after entry `last` of the stream with this key, in order of
        arrival."""
        entries = self.run([["XRANGE", key, f"({last}", "+", "COUNT", count]])[0]
        if bad := next((i for i, fields in entries if field not in fields), None):
            raise StoreCorrupt(f"{key}: entry {bad.decode()} is not a valid Shelfwise entry: delete it")
        return [(i.decode(), fields[field]) for i, fields in entries]

    def length(self, stream: str) -> int:
        """Number of entries of a stream, over all parts."""
        return sum(map(int, self.run([["XLEN", part] for part in self.layout.parts(stream)])))

    def trim_to(self, key: str, last: str) -> int:
        """Delete the entries before entry `last` of the stream with this key; returns their number."""
        # `~` deletes whole blocks of entries, of which LIMIT bounds the number per call; the rest is less than a block.
        deleted = 0
        while more := int(self.run([["XTRIM", key, "MINID", "~", last, "LIMIT", _BATCH]])[0]):
            deleted += more
        return deleted + int(self.run([["XTRIM", key, "MINID", last]])[0])

    def trim_through(self, key: str, last: str) -> int:
        """Delete the entries up to entry `last`, and this one, of the stream with this key; returns their number."""
        milliseconds, number = map(int, last.split("-"))
        return self.trim_to(key, f"{milliseconds}-{number + 1}")

    def erasure_secret(self, secret: str) -> str:
        """The secret of tombstones. secret: the one to use if Redis has none."""
        out: bytes = self.run(erasure.secret_commands(self.layout, secret))[-1]
        return out.decode()

    def erased(self) -> tuple[str, list[tuple[str, float]]]:
        """Erasures not yet processed by `collect`: ID of the last entry, and (tombstone, Unix seconds) of each.

        Versions before tombstones had a secret wrote the `user_hash` in its place.
        """
        last, erasures = START, list[tuple[str, float]]()
        while entries := self.run([["XRANGE", self.layout.key(ERASED), f"({last}", "+", "COUNT", _BATCH]])[0]:
            last = entries[-1][0].decode()
            erasures += [(fields[b"u"].decode(), float(fields[b"t"])) for _, fields in entries]
        return last, erasures

    def drop_events(self, until: Callable[[str], float]) -> int:
        """Delete the events of erased users from the stream; returns their number.

        until: Unix seconds of the erasure of a user, -inf for a user who was not erased.
        """
        dropped = 0
        for part in self.layout.parts(STREAM):
            last = START
            while entries := self.entries(part, b"e", last):
                last = entries[-1][0]
                events = ((i, decode_event(e)) for i, e in entries)
                ids = [i for i, e in events if e.at <= until(e.user_id)]
                dropped += self.run([["XDEL", part, *ids]])[0] if ids else 0
        return dropped

    def erase(self, until: Callable[[str], float]) -> int:
        """Erase users from a restored backup: their records up to the erasure, their event IDs and attributes.

        until: as in `drop_events`. Returns the number of records deleted. Reads the name of every list, so it takes a
        second per 100,000 users or so. Nothing else may write meanwhile.
        """
        count = 0
        for suffix in ("a", "m", "x", "e", "s", "d:*"):
            for key in self.client.scan_iter(match=self.layout.users(suffix), count=_BATCH):
                user = self.layout.user_of(key)
                if (erased_at := until(user)) == -math.inf:
                    continue
                if suffix in {"a", "m", "x"}:
                    # None has a time to compare. Attributes of a user who came back are also in the log.
                    self.run([["UNLINK", key]])
                    continue
                if suffix == "d:*":
                    # In a cluster, the pattern also matches the lists of a user ID that contains `:d:`.
                    self.run([["UNLINK", key]] if _IDS_KEY.search(key) else [])
                    continue
                times = [users.record_time(r) for r in self.run([["LRANGE", key, 0, -1]])[0]]
                kept = sum(at > erased_at for at in times)  # records are sorted, newest first
                gone = [["UNLINK", key], users.forget_command(self.layout, user)]
                self.run([["LTRIM", key, 0, kept - 1]] if kept else gone)
                count += len(times) - kept
        return count

    def refuse_events(self, secret: str, until: Mapping[str, float]) -> None:
        """Refuse the events of erased users that arrive from now on. until: Unix seconds by tombstone."""
        commands = list(erasure.mark_commands(self.layout, secret, until))
        for first in range(0, len(commands), _BATCH):
            self.run(commands[first : first + _BATCH])

    def forget_merges(self, from_ids: Iterable[str]) -> None:
        """Delete the marks of users who were merged into erased ones."""
        commands = [["UNLINK", self.layout.user(from_id, "m")] for from_id in from_ids]
        for first in range(0, len(commands), _BATCH):
            self.run(commands[first : first + _BATCH])

    def drop_old_erasures(self, now: float) -> int:
        """Forget the erasures after which late events are no longer expected; returns their number.

        now: Unix seconds.
        """
        dropped = 0
        for part in self.layout.parts(ERASED_UNTIL):
            cursor = 0
            while True:
                cursor, fields = self.run([["HSCAN", part, cursor, "COUNT", _BATCH]])[0]
                old = [f for f, at in fields.items() if f and float(at) < now - erasure.KEPT_S]
                dropped += self.run([["HDEL", part, *old]])[0] if old else 0
                if not int(cursor):
                    break
        return dropped

    def rewrite_log(self) -> str | None:
        """Start a rewrite of Redis' append-only file, which then has no command from before.

        Returns None if there is nothing to do or the rewrite was started, and otherwise why Redis refused it.
        """
        for server in self._servers():
            if not server.info("persistence").get("aof_enabled"):
                continue
            try:
                server.execute_command("BGREWRITEAOF")
            except redis.ResponseError as e:  # also if a rewrite is in progress, which may have begun before
                return str(e)
        return None

    def _servers(self) -> list[Any]:
        """A client of each server that is not a replica."""
        if not self.layout.cluster:
            return [self.client]
        return [self.client.get_redis_connection(node) for node in self.client.get_primaries()]

    def pointer(self) -> Pointer | None:
        """The live release; None before the first is published."""
        key = self.layout.key(POINTER)
        return decode_pointer(self.run([["GET", key]])[0], key)

    def set_pointer(self, pointer: Pointer) -> None:
        """Make a release live: every worker loads it and switches to it within about a second."""
        self.run([["SET", self.layout.key(POINTER), msgspec.json.encode(pointer)]])

    def end(self, key: str) -> tuple[int, int]:
        """The ID of the last entry ever added to the stream with this key; (0, 0) before the first."""
        try:
            (info,) = self.run([["XINFO STREAM", key]])
        except ResponseError:  # there is no such stream
            return 0, 0
        return entry_number(info["last-generated-id"].decode())

    def origin(self) -> Origin | None:
        """The origin of the data; None before the first collection."""
        return decode_origin(self.run([extent_commands(self.layout)[0]])[0])

    def set_origin(self, origin: Origin) -> None:
        """Write the origin of the data: after a collection or a repair."""
        fields = [x for pair in origin._asdict().items() for x in pair]
        self.run([["HSET", self.layout.key(ORIGIN), *fields]])

    def shadow(self) -> Pointer | None:
        """The release in shadow, or None."""
        key = self.layout.key(SHADOW)
        return decode_pointer(self.run([["GET", key]])[0], key)

    def set_shadow(self, shadow: Pointer | None) -> None:
        """Put a release in shadow, so that every worker also scores some requests with it; None ends this."""
        key = self.layout.key(SHADOW)
        self.run([["SET", key, msgspec.json.encode(shadow)] if shadow else ["DEL", key]])

    def append_audit(self, line: str) -> None:
        """Append a line to the audit log in Redis, which keeps the last `AUDITED` lines."""
        key = self.layout.key(AUDIT)
        self.run([["RPUSH", key, line], ["LTRIM", key, -AUDITED, -1]])

    def begin_night(self, day: str) -> None:
        """Record that a nightly run was started on this day; `end_night` deletes it if the run succeeds."""
        self.run([["HSET", self.layout.key(NIGHTS), day, ""]])

    def end_night(self) -> None:
        """Record that a nightly run succeeded."""
        self.run([["UNLINK", self.layout.key(NIGHTS)]])

    def seed(
        self,
        user_ids: Sequence[str],
        start: I64,
        at: F64,
        kind: I8,
        item_ids: Sequence[str],
        event_ids: Sequence[str],
        now: float,
        as_of: float,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Seeded:
        """Add missing events of the log to users' lists.

        Rows `start[u]:start[u + 1]` (int64[users + 1]) are those of user u, in any order. at: float64[n], Unix seconds.
        kind: int8[n]. Existing records are kept, and an event that was also written by `write` counts once, by its ID.
        now: Unix seconds. as_of: the end of the log, Unix seconds; events that have expired by then are left out.
        on_progress: called with (users done, users).
        """
        records, refused, calls, shards, of_call = 0, set[str](), list[list[Any]](), list[int](), list[str]()
        for u, user in enumerate(user_ids):
            rows = np.arange(start[u], start[u + 1])
            of_user = users.seed_calls(self.layout, user, at, kind, item_ids, event_ids, rows, now, as_of, self._limits)
            calls += of_user
            shards += [self.layout.shard(user)] * len(of_user)
            of_call += [user] * len(of_user)
            if len(calls) >= _BATCH or u + 1 == len(user_ids):
                replies = self.run(users.script_commands(users.SEED, calls, shards))
                records += sum(max(0, added) for added in replies)
                refused |= {of for of, added in zip(of_call, replies, strict=True) if added < 0}
                calls, shards, of_call = [], [], []
                if on_progress:
                    on_progress(u + 1, len(user_ids))
        return Seeded(records, len(refused))

    def seed_attributes(self, writes: Sequence[AttributeWrite]) -> int:
        """Add attributes of the log to those that users have, which are not changed. Returns the number of users who
        have none because the maximum number of users have lists."""
        refused = 0
        for first in range(0, len(writes), _BATCH):
            commands = attributes.seed_commands(self.layout, writes[first : first + _BATCH], self._limits)
            refused += sum(reply == attributes.REFUSED for reply in self.run(commands))
        return refused

    def write_vectors(
        self,
        fingerprint: str,
        item_ids: Sequence[str],
        vectors: F32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Store the vector of each item as float16, replacing any existing vector of this encoder and item.

        vectors: float32[items, d]; a row of NaN is an item without text. on_progress: called with (items done, items).
        Raises ValueError if the shapes do not match or a value is infinite or too large for float16.
        """
        if vectors.ndim != 2 or len(vectors) != len(item_ids):
            raise ValueError(f"vectors have shape {vectors.shape} for {len(item_ids)} items: expected one row per item")
        for first in range(0, len(item_ids), _BATCH):
            ids = item_ids[first : first + _BATCH]
            rows = encode_vectors(ids, vectors[first : first + _BATCH])
            pairs = [(self.layout.vector(fingerprint, i), row) for i, row in zip(ids, rows, strict=True)]
            # One MSET is four times as fast, but in a cluster the keys are on several nodes.
            commands = [["SET", *pair] for pair in pairs] if self.layout.cluster else []
            self.run(commands or [["MSET", *(x for pair in pairs for x in pair)]])
            if on_progress:
                on_progress(min(first + _BATCH, len(item_ids)), len(item_ids))

    def read_vectors(self, fingerprint: str, item_ids: Sequence[str], dimension: int) -> F32:
        """Item vectors in float16 precision, float32[items, dimension]; NaN for an item without a vector."""
        replies = self.run([["GET", self.layout.vector(fingerprint, i)] for i in item_ids]) if len(item_ids) else []
        return decode_vectors(fingerprint, replies, dimension)

    def drop_vectors(self, fingerprint: str) -> int:
        """Delete all vectors of an encoder; returns their number. For encoders that no release uses any more."""
        dropped, batch = 0, []
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", self.layout.vector(fingerprint, ""))
        for key in self.client.scan_iter(match=pattern + "*", count=_BATCH):
            batch.append(["UNLINK", key])
            if len(batch) == _BATCH:
                dropped += sum(self.run(batch))
                batch = []
        return dropped + (sum(self.run(batch)) if batch else 0)
