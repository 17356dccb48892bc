"""Written items in Redis: items written through the API since a release, kept until every release contains them.

    sw:i:<item id>             hash: the written fields of an item, JSON each, and `at`
    sw:items                   sorted set of the IDs of written items, by the time of their last write
    sw:item-changes            stream of writes and new vectors, fields `i` (item ID) and `w` (put or vector)

In a cluster all three are on one node (for their names see `store.layout`), so that workers read a change only after it
was made. Vectors are stored as in `store.vectors`. Each field is written separately, so two writes of one item merge in
any order. The merged item has a maximum size (`ItemSize`). Of a larger one, written by an earlier version, only `at`
and `available` are read, so that one item cannot stop the updates of all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from redis.exceptions import ResponseError

from features.arrays import F32
from features.bounds import ATTRIBUTES, ITEM_BYTES
from serving.store.bulk import BulkStore
from serving.store.layout import GROUP, Layout
from serving.store.online import Store
from serving.store.stream import START
from serving.store.users import script_commands
from serving.store.vectors import decode_vectors

_CHANGES_MOST = 200_000
"""Maximum length of the stream of changes, which workers poll several times per second."""
_BATCH = 1000
_READ_BYTES = 4_000_000
"""Bytes of items read from Redis at once, which a connection transfers well within the timeout of the service."""
_LUA = {name: Path(__file__).with_name(f"{name}.lua").read_text("utf-8") for name in ("item", "put")}
_PUT, _MEASURE = _LUA["item"] + _LUA["put"], _LUA["item"] + "return {measure(KEYS[1])}"

_ALWAYS = ("at", "available")
"""The fields that are read of an item of any size."""


class ItemSize(NamedTuple):
    """Size of the written fields of an item. bytes: of names and JSON values, -1 if there are too many to add up."""

    bytes: int
    attributes: int

    @property
    def allowed(self) -> bool:
        """True if the item is small enough to be used."""
        return self.bytes <= ITEM_BYTES and self.attributes <= ATTRIBUTES

    def __str__(self) -> str:
        size = f"{self.attributes} attributes" + (f" and {self.bytes:,} bytes" if self.bytes >= 0 else "")
        return f"{size}; the maximum is {ATTRIBUTES} attributes and {ITEM_BYTES:,} bytes"


class StoredItems(NamedTuple):
    """Written items as stored. fields: JSON bytes by name for each item; empty for one that was not written.

    oversized: size of each item that is too large, of which `fields` has `at` and `available` only.
    """

    fields: list[dict[bytes, bytes]]
    oversized: dict[str, ItemSize]


class Refused(NamedTuple):
    """The part of a write that was not stored. full: nothing was written, as there would be too many written items.
    oversized: the size that each of these items would have; the others were written."""

    full: bool
    oversized: dict[str, ItemSize]


def _change(layout: Layout, item_id: str, what: str) -> list[Any]:
    """The command that adds a change to the stream."""
    return ["XADD", layout.changes, "MAXLEN", "~", _CHANGES_MOST, "*", "i", item_id, "w", what]


def _scan(layout: Layout, cursor: int) -> list[Any]:
    """The command that reads the next written items and their times. One ZRANGE would hold Redis for all of them."""
    return ["ZSCAN", layout.items, cursor, "COUNT", _BATCH]


def _by_time(at: Mapping[bytes, float]) -> list[str]:
    """IDs by time, and at equal times by ID."""
    return [i.decode() for i in sorted(at, key=lambda i: (at[i], i))]


def _measure_commands(layout: Layout, item_ids: Sequence[str]) -> list[list[Any]]:
    return script_commands(_MEASURE, [[1, layout.item(i)] for i in item_ids], [0] * len(item_ids))


def _read_commands(layout: Layout, sizes: Mapping[str, ItemSize]) -> Iterator[list[list[Any]]]:
    """Commands that read items, in groups of about `_READ_BYTES`."""
    group, size = list[list[Any]](), 0
    for item_id, of_item in sizes.items():
        key = layout.item(item_id)
        group.append(["HGETALL", key] if of_item.allowed else ["HMGET", key, *_ALWAYS])
        size += of_item.bytes if of_item.allowed else 0
        if size > _READ_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _stored(sizes: Mapping[str, ItemSize], replies: Sequence[Any]) -> StoredItems:
    oversized = {i: size for i, size in sizes.items() if not size.allowed}
    fields = [_fields(reply, i in oversized) for i, reply in zip(sizes, replies, strict=True)]
    return StoredItems(fields, oversized)


def _fields(reply: Any, oversized: bool) -> dict[bytes, bytes]:
    """The fields of a hash, from a reply in either protocol version of Redis, or those of `_ALWAYS`."""
    if oversized:
        return {name.encode(): value for name, value in zip(_ALWAYS, reply, strict=True) if value is not None}
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


class WrittenItems:
    """Access to written items for the service; every failure raises `StoreAway`."""

    def __init__(self, store: Store) -> None:
        self._store, self._layout = store, store.layout

    async def write(self, fields: Mapping[str, Mapping[str, bytes]], at: float, most: int) -> Refused:
        """Set these fields of each item, keep its other fields, and notify every worker.

        at: Unix seconds. most: maximum number of written items.
        """
        if not fields:
            return Refused(False, {})
        count, *known = await self._store.run(
            [["ZCARD", self._layout.items], *(["ZSCORE", self._layout.items, i] for i in fields)]
        )
        if count + sum(k is None for k in known) > most:
            return Refused(True, {})
        limits = [repr(at), ITEM_BYTES, ATTRIBUTES, _CHANGES_MOST]
        calls: list[list[Any]] = [
            [3, self._layout.item(item_id), self._layout.items, self._layout.changes, item_id, *limits]
            + [x for pair in of_item.items() for x in pair]
            for item_id, of_item in fields.items()
        ]
        replies = await self._store.run(script_commands(_PUT, calls, [0] * len(calls)))
        return Refused(False, {i: ItemSize(*size) for i, size in zip(fields, replies, strict=True) if size})

    async def ids(self) -> list[str]:
        """IDs of the written items, in order of their last write."""
        at, cursor = dict[bytes, float](), 0
        while True:
            cursor, found = (await self._store.run([_scan(self._layout, cursor)]))[0]
            at.update(found)
            if not cursor:
                return _by_time(at)

    async def fields(self, item_ids: Sequence[str]) -> StoredItems:
        """The written fields of items. item_ids: distinct."""
        if not item_ids:
            return StoredItems([], {})
        found = await self._store.run(_measure_commands(self._layout, item_ids))
        sizes = {i: ItemSize(*size) for i, size in zip(item_ids, found, strict=True)}
        replies = [r for commands in _read_commands(self._layout, sizes) for r in await self._store.run(commands)]
        return _stored(sizes, replies)

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

    def fields(self, item_ids: Sequence[str]) -> StoredItems:
        """Same as `WrittenItems.fields`."""
        found = self._store.run(_measure_commands(self._layout, item_ids)) if item_ids else []
        sizes = {i: ItemSize(*size) for i, size in zip(item_ids, found, strict=True)}
        replies = [r for commands in _read_commands(self._layout, sizes) for r in self._store.run(commands)]
        return _stored(sizes, replies)

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
        """True if the item may be recommended."""
        return self.fields.get("available") is not False

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that are not standard columns."""
        return {k.removeprefix("a:"): v for k, v in self.fields.items() if k.startswith("a:")}


def size_of(fields: Mapping[str, Any]) -> ItemSize:
    """Size of the decoded fields of an item, as it would be in Redis."""
    counted = {name: value for name, value in fields.items() if name not in _ALWAYS}
    size = sum(len(name.encode()) + len(msgspec.json.encode(value)) for name, value in counted.items())
    return ItemSize(size, sum(name.startswith("a:") for name in counted))


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
