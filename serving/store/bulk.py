"""The offline side of Redis: plain calls, whole catalogues and logs at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import AskError, ClusterCrossSlotError
from redis.retry import Retry

from features.arrays import F32, F64, I8, I64
from features.catalogue import Catalogue
from features.history import History
from serving.store import users
from serving.store.address import Address
from serving.store.errors import StoreCorrupt, refusal
from serving.store.layout import AUDIT, ERASED, POINTER, SHADOW, STREAM, Layout
from serving.store.pointer import AUDITED, Pointer, decode_pointer
from serving.store.stream import START, Event, Tail, decode_event, decode_events, decode_tail, reached, tail_commands
from serving.store.vectors import decode_vectors, encode_vectors, vector_key

_BATCH = 1000


class BulkStore:
    """One server or a cluster, as the address says. Raises what redis-py raises, StoreCorrupt, or StoreAway where the
    address is of the other kind; ValueError where it is none.

    A context manager; leaving it gives back the connections.
    """

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        """url: see `Address`."""
        address = Address.of(url)
        self.layout = Layout(address.cluster)
        self.client: Any
        if address.cluster:
            known = [ClusterNode(*node) for node in address.nodes]  # type: ignore[no-untyped-call]
            self.client = RedisCluster.from_url(
                address.at(address.nodes[0]), startup_nodes=known, socket_timeout=timeout_s, require_full_coverage=False
            )
        else:
            self.client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 1), socket_timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.client.close()

    def run(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Replies to commands sent in one round trip, to each node in a cluster."""
        pipeline = self.client.pipeline(transaction=False) if not self.layout.cluster else self.client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        try:
            replies: list[Any] = pipeline.execute()
        except (AskError, ClusterCrossSlotError) as e:
            raise refusal(e) from e
        return replies

    def write(self, events: Sequence[Event], now: float) -> list[bool]:
        """As `Store.write`."""
        if not events:
            return []
        commands, members = users.write_commands(self.layout, events, now)
        return users.flags(self.run(commands), members, len(events))

    def read(self, user_id: str, catalogue: Catalogue, at: float) -> History:
        """As `Store.read`."""
        replies = self.run(users.read_commands(self.layout, user_id))
        return users.decode_history(self.layout, replies, user_id, catalogue, at)

    def tail(self, last: str = START, count: int = 10 * _BATCH) -> Tail:
        """About `count` events of the stream after a place; none left when its `item_ids` is empty."""
        return decode_tail(self.layout, self.run(tail_commands(self.layout, last, count)), last)

    def events(self, last: str = START, count: int = 10 * _BATCH) -> tuple[str, list[Event]]:
        """The same as whole events, for the log: (place of the last entry, events)."""
        parts = self.run(tail_commands(self.layout, last, count))
        return reached(self.layout, parts, last), decode_events(parts)

    def trim(self, before: float, shard: int = 0) -> int:
        """Drop entries of a part of the event stream that came before a moment (Unix seconds); returns how many.

        For a moment no later than the cut-off of the oldest release that may still be served, and only once those
        events are in the log: whatever came before a cut-off is in the release's own item state.
        """
        return self.trim_to(self.layout.part(STREAM, shard), str(max(0, int(before * 1000))))

    def entries(self, stream: str, field: bytes, last: str = START, count: int = _BATCH) -> list[tuple[str, bytes]]:
        """(id, content) of at most `count` entries of a stream after entry `last`, in order of arrival."""
        found = self.run([["XRANGE", stream, f"({last}", "+", "COUNT", count]])[0]
        if bad := next((i for i, fields in found if field not in fields), None):
            raise StoreCorrupt(f"{stream} holds an entry {bad.decode()} that is none of ours: delete it")
        return [(i.decode(), fields[field]) for i, fields in found]

    def length(self, stream: str) -> int:
        """How many entries a stream holds, in all its parts."""
        return sum(map(int, self.run([["XLEN", part] for part in self.layout.parts(stream)])))

    def trim_to(self, stream: str, last: str) -> int:
        """Drop the entries of a stream before `last`; returns how many."""
        return int(self.run([["XTRIM", stream, "MINID", last]])[0])

    def erased(self) -> tuple[str, list[tuple[str, float]]]:
        """Erasures that `collect` has not taken away: the last entry's id, and (user_hash, Unix seconds) of each."""
        found = self.run([["XRANGE", ERASED, "-", "+"]])[0]
        last = found[-1][0].decode() if found else START
        return last, [(fields[b"u"].decode(), float(fields[b"t"])) for _, fields in found]

    def drop_events(self, erased: Mapping[str, float]) -> int:
        """Take events of erased users, up to their erasure, out of the stream; returns how many there were."""
        dropped = 0
        for part in self.layout.parts(STREAM):
            last = START
            while found := self.entries(part, b"e", last, 10 * _BATCH):
                last = found[-1][0]
                held = ((i, decode_event(e)) for i, e in found)
                ids = [i for i, e in held if e.at <= erased.get(users.user_hash(e.user_id), -math.inf)]
                dropped += self.run([["XDEL", part, *ids]])[0] if ids else 0
        return dropped

    def pointer(self) -> Pointer | None:
        """The live release, None before the first."""
        return decode_pointer(self.run([["GET", POINTER]])[0])

    def point(self, pointer: Pointer) -> None:
        """Make a release live: every worker loads it within a second or so and swaps to it."""
        self.run([["SET", POINTER, msgspec.json.encode(pointer)]])

    def shadow(self) -> Pointer | None:
        """The release in shadow, None where none is."""
        return decode_pointer(self.run([["GET", SHADOW]])[0], SHADOW)

    def cast(self, shadow: Pointer | None) -> None:
        """Put a release in shadow: every worker loads it and scores some requests with it too; None ends that."""
        self.run([["SET", SHADOW, msgspec.json.encode(shadow)] if shadow else ["DEL", SHADOW]])

    def audit(self, line: str) -> None:
        """Add a line to the audit of releases, the oldest beyond `AUDITED` going."""
        self.run([["RPUSH", AUDIT, line], ["LTRIM", AUDIT, -AUDITED, -1]])

    def audited(self) -> list[str]:
        """The audit of releases, oldest first."""
        return [line.decode() for line in self.run([["LRANGE", AUDIT, 0, -1]])[0]]

    def seed(
        self,
        user_ids: Sequence[str],
        start: I64,
        at: F64,
        kind: I8,
        item_ids: Sequence[str],
        event_ids: Sequence[str],
        now: float,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Put the log's events into users' lists where they are missing; returns how many records were added.

        Rows `start[u]:start[u + 1]` (int64[users + 1]) are user u's, in any order; at: float64[n], Unix seconds;
        kind: int8[n]. What is there already stays, and an event that came by `write` too, known by its id, counts
        once. now: Unix seconds. on_progress: called with (users done, users).
        """
        added, calls, shards = 0, [], []
        for u, user in enumerate(user_ids):
            rows = np.arange(start[u], start[u + 1])
            calls.append(users.seed_command(self.layout, user, at, kind, item_ids, event_ids, rows, now))
            shards.append(self.layout.shard(user))
            if len(calls) == _BATCH or u + 1 == len(user_ids):
                added += sum(self.run(users.scripted(users.SEED, calls, shards)))
                calls, shards = [], []
                if on_progress:
                    on_progress(u + 1, len(user_ids))
        return added

    def write_vectors(
        self,
        fingerprint: str,
        item_ids: Sequence[str],
        vectors: F32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Keep the vector of each item as float16, replacing what was there for this encoder and item.

        vectors: float32[items, d]; a row of NaN is an item without text. on_progress: called with (items done, items).
        Raises ValueError where the shapes disagree or a value is infinite or beyond float16.
        """
        if vectors.ndim != 2 or len(vectors) != len(item_ids):
            raise ValueError(
                f"vectors have shape {vectors.shape} for {len(item_ids)} items: one row an item is expected"
            )
        for first in range(0, len(item_ids), _BATCH):
            ids = item_ids[first : first + _BATCH]
            rows = encode_vectors(ids, vectors[first : first + _BATCH])
            pairs = [(vector_key(fingerprint, i), row) for i, row in zip(ids, rows, strict=True)]
            # One command for all is four times as fast; in a cluster they are on many nodes.
            alone = [["SET", *pair] for pair in pairs] if self.layout.cluster else []
            self.run(alone or [["MSET", *(x for pair in pairs for x in pair)]])
            if on_progress:
                on_progress(min(first + _BATCH, len(item_ids)), len(item_ids))

    def read_vectors(self, fingerprint: str, item_ids: Sequence[str], dimension: int) -> F32:
        """float32[items, dimension]: what `write_vectors` kept, to float16's precision; NaN for an item without."""
        held = self.run([["GET", vector_key(fingerprint, i)] for i in item_ids]) if len(item_ids) else []
        return decode_vectors(fingerprint, held, dimension)

    def drop_vectors(self, fingerprint: str) -> int:
        """Delete every vector of an encoder that no release uses any more; returns how many there were."""
        dropped, batch = 0, []
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", vector_key(fingerprint, ""))
        for key in self.client.scan_iter(match=pattern + "*", count=_BATCH):
            batch.append(["UNLINK", key])
            if len(batch) == _BATCH:
                dropped += sum(self.run(batch))
                batch = []
        return dropped + (sum(self.run(batch)) if batch else 0)
