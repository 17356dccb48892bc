"""Written items in Redis: items written through the API since a release, kept until every release contains them.

    sw:i:<item id>             hash: the written fields of an item, JSON each, and `at`
    sw:items                   sorted set of the IDs of written items, by the time of their last write
    sw:item-changes            stream of writes and new vectors, fields `i` (item ID) and `w` (put or vector)

In a cluster all three are on one node (for their names see `store.layout`), so that workers read a change only after it
was made. Vectors are stored as in `store.vectors`. Each field is written separately, so two writes of one item merge in
any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
from redis.exceptions import ResponseError

from features.arrays import F32
from serving.store.bulk import BulkStore
from serving.store.layout import GROUP, Layout
from serving.store.online import Store
from serving.store.stream import START
from serving.store.vectors import decode_vectors

_CHANGES_MOST = 200_000
"""Maximum length of the stream of changes, which workers poll several times per second."""
_BATCH = 1000


def _change(layout: Layout, item_id: str, what: str) -> list[Any]:
    """The command that adds a change to the stream."""
    return ["XADD", layout.changes, "MAXLEN", "~", _CHANGES_MOST, "*", "i", item_id, "w", what]


def _scan(layout: Layout, cursor: int) -> list[Any]:
    """The command that reads the next written items and their times. One ZRANGE would hold Redis for all of them."""
    return ["ZSCAN", layout.items, cursor, "COUNT", _BATCH]


def _by_time(at: Mapping[bytes, float]) -> list[str]:
    """IDs by time, and at equal times by ID."""
    return [i.decode() for i in sorted(at, key=lambda i: (at[i], i))]


def _fields(reply: Any) -> dict[bytes, bytes]:
    """The fields of a hash, from a reply in either protocol version of Redis."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


class WrittenItems:
    """Access to written items for the service; every failure raises `StoreAway`."""

    def __init__(self, store: Store) -> None:
        self._store, self._layout = store, store.layout

    async def write(self, fields: Mapping[str, Mapping[str, bytes]], at: float, most: int) -> bool:
        """Set these fields of each item, keep its other fields, and notify every worker.

        at: Unix seconds. most: maximum number of written items; above it, nothing is written and the result is False.
        """
        if not fields:
            return True
        count, *known = await self._store.run(
            [["ZCARD", self._layout.items], *(["ZSCORE", self._layout.items, i] for i in fields)]
        )
        if count + sum(k is None for k in known) > most:
            return False
        commands: list[list[Any]] = []
        for item_id, of_item in fields.items():
            commands.append(["HSET", self._layout.item(item_id), *(x for pair in of_item.items() for x in pair)])
            commands += [["ZADD", self._layout.items, repr(at), item_id], _change(self._layout, item_id, "put")]
        await self._store.run(commands)
        return True

    async def ids(self) -> list[str]:
        """IDs of the written items, in order of their last write."""
        at, cursor = dict[bytes, float](), 0
        while True:
            cursor, found = (await self._store.run([_scan(self._layout, cursor)]))[0]
            at.update(found)
            if not cursor:
                return _by_time(at)

    async def fields(self, item_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        """The written fields of each item as JSON bytes; empty for an item that was not written."""
        return (
            [_fields(r) for r in await self._store.run([["HGETALL", self._layout.item(i)] for i in item_ids])]
            if item_ids
            else []
        )

    async def vectors(self, fingerprint: str, item_ids: Sequence[str], dimension: int) -> F32:
        """Same as `BulkStore.read_vectors`."""
        if not item_ids:
            return np.empty((0, dimension), np.float32)
        # One GET per key, because in a cluster the keys are on several nodes.
        replies = await self._store.run([["GET", self._layout.vector(fingerprint, i)] for i in item_ids])
        return decode_vectors(fingerprint, replies, dimension)

    async def changed(self, last: str, count: int = _BATCH) -> tuple[str, list[str]]:
        """(ID of the last entry, distinct item IDs): items written or given a vector after entry `last`."""
        entries = (
            await self._store.run([["XRANGE", self._layout.changes, f"({last}", "+", "COUNT", count]], probe=True)
        )[0]
        ids = dict.fromkeys(fields[b"i"].decode() for _, fields in entries)
        return (entries[-1][0].decode() if entries else last), list(ids)

    async def end(self) -> str:
        """The ID of the last change."""
        entries = (await self._store.run([["XREVRANGE", self._layout.changes, "+", "-", "COUNT", 1]]))[0]
        return entries[0][0].decode() if entries else START


class BulkWrittenItems:
    """Access to written items for offline jobs. Raises the errors of redis-py."""

    def __init__(self, store: BulkStore) -> None:
        self._store, self._layout = store, store.layout

    def ids(self) -> list[str]:
        """Same as `WrittenItems.ids`."""
        at, cursor = dict[bytes, float](), 0
        while True:
            cursor, found = self._store.run([_scan(self._layout, cursor)])[0]
            at.update(found)
            if not cursor:
                return _by_time(at)

    def fields(self, item_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        """Same as `WrittenItems.fields`."""
        commands = [["HGETALL", self._layout.item(i)] for i in item_ids]
        return [_fields(r) for r in self._store.run(commands)] if commands else []

    def drop(self, item_ids: Sequence[str]) -> None:
        """Delete the written fields of items that releases now contain."""
        for item_id in item_ids:
            self._store.run([["ZREM", self._layout.items, item_id], ["UNLINK", self._layout.item(item_id)]])

    def claim(self, worker: str, count: int, wait_s: float, orphaned_ms: int) -> list[tuple[str, str, str]]:
        """Claim changes for an embedding worker: (entry ID, item ID, put or vector) of each.

        wait_s: maximum wait for a change if there is none. orphaned_ms: age after which changes that another worker
        claimed but did not acknowledge are taken over.
        """
        changes = self._layout.changes
        try:
            self._store.client.xgroup_create(changes, GROUP, id="0", mkstream=True)
        except ResponseError as e:
            if "BUSYGROUP" not in str(e):
                raise
        orphans = self._store.client.xautoclaim(changes, GROUP, worker, orphaned_ms, count=count)[1]
        block = None if orphans or not wait_s else max(1, int(wait_s * 1000))
        new = self._store.client.xreadgroup(GROUP, worker, {changes: ">"}, count=count, block=block)
        streams = new.items() if isinstance(new, dict) else new or ()
        entries = [*orphans, *(entry for _, claimed in streams for entry in claimed)]
        return [(i.decode(), fields[b"i"].decode(), fields[b"w"].decode()) for i, fields in entries if fields]

    def acknowledge(self, entries: Sequence[str]) -> None:
        """Acknowledge changes that have been processed."""
        if entries:
            self._store.run([["XACK", self._layout.changes, GROUP, *entries]])

    def announce_vectors(self, item_ids: Sequence[str]) -> None:
        """Notify every worker of the service that these items have a new vector."""
        if item_ids:
            self._store.run([_change(self._layout, i, "vector") for i in item_ids])


class ItemFields(NamedTuple):
    """The written fields of an item. at: Unix seconds of the last write. fields: decoded values by name."""

    at: float
    fields: dict[str, Any]

    @property
    def available(self) -> bool:
        """Whether the item may be recommended."""
        return self.fields.get("available") is not False

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that are not standard columns."""
        return {k.removeprefix("a:"): v for k, v in self.fields.items() if k.startswith("a:")}


def decode_fields(values: dict[bytes, bytes]) -> ItemFields:
    """Decode the hash of a written item. Raises the errors of msgspec if a field is not valid JSON."""
    fields = {name.decode(): msgspec.json.decode(value) for name, value in values.items()}
    at = fields.pop("at", math.nan)
    return ItemFields(float(at), fields)


def to_years(value: object) -> float:
    """A date attribute (ISO 8601 or Unix seconds) in years since 1970; NaN if it is not a date."""
    if isinstance(value, str):
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            return math.nan
        value = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return float(value) / (365.25 * 86400) if isinstance(value, int | float) else math.nan
