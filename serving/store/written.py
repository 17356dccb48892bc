"""The bytes in Redis of items written since a release: kept until releases have them, and told of to every worker.

    sw:i:<item id>             hash: fields of an item written since some release, JSON each, and `at`
    sw:items                   sorted set of the ids of those, by the time of their last write
    sw:item-changes            stream of writes and of vectors made, fields `i` (item id) and `w` (put or vector)

In a cluster all three are on one node, by the names in `store.layout`, so that a change is told of after it was made.
Vectors stand where `store` says. A field is written by itself, so that two writes of one item merge, whoever is first.
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
from serving.store.layout import Layout
from serving.store.online import Store
from serving.store.stream import START
from serving.store.vectors import decode_vectors, vector_key

_READERS = "embed"
_CHANGES_MOST = 200_000
"""Entries of the stream of changes; workers look at it several times a second."""
_BATCH = 1000


def _change(layout: Layout, item_id: str, what: str) -> list[Any]:
    """The command that tells of a change."""
    return ["XADD", layout.changes, "MAXLEN", "~", _CHANGES_MOST, "*", "i", item_id, "w", what]


def _fields(reply: Any) -> dict[bytes, bytes]:
    """A hash, as either protocol of Redis gives it."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


class WrittenItems:
    """The service's side; every failure is a `StoreAway`."""

    def __init__(self, store: Store) -> None:
        self._store, self._layout = store, store.layout

    async def write(self, fields: Mapping[str, Mapping[str, bytes]], at: float, most: int) -> bool:
        """Set these fields of each item, leaving others as they are, and tell every worker; False without room.

        at: Unix seconds. most: items written since a release that are kept at a time.
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
        """Items that were written since some release and are still kept, in order of their last write."""
        return [i.decode() for i in (await self._store.run([["ZRANGE", self._layout.items, 0, -1]]))[0]]

    async def fields(self, item_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        """The fields of each, as they were written; none of an item that was not."""
        return (
            [_fields(r) for r in await self._store.run([["HGETALL", self._layout.item(i)] for i in item_ids])]
            if item_ids
            else []
        )

    async def vectors(self, fingerprint: str, item_ids: Sequence[str], dimension: int) -> F32:
        """As `BulkStore.read_vectors`."""
        if not item_ids:
            return np.empty((0, dimension), np.float32)
        # Key by key, as in a cluster they are on many nodes.
        held = await self._store.run([["GET", vector_key(fingerprint, i)] for i in item_ids])
        return decode_vectors(fingerprint, held, dimension)

    async def changed(self, last: str, count: int = _BATCH) -> tuple[str, list[str]]:
        """(id of the last entry, items): what was written or read by the encoder after entry `last`, each once."""
        entries = (
            await self._store.run([["XRANGE", self._layout.changes, f"({last}", "+", "COUNT", count]], look=True)
        )[0]
        ids = dict.fromkeys(fields[b"i"].decode() for _, fields in entries)
        return (entries[-1][0].decode() if entries else last), list(ids)

    async def end(self) -> str:
        """The id of the last change."""
        found = (await self._store.run([["XREVRANGE", self._layout.changes, "+", "-", "COUNT", 1]]))[0]
        return found[0][0].decode() if found else START


class BulkWrittenItems:
    """The offline side. Raises what redis-py raises."""

    def __init__(self, store: BulkStore) -> None:
        self._store, self._layout = store, store.layout

    def ids(self) -> list[str]:
        """As `WrittenItems.ids`."""
        return [i.decode() for i in self._store.run([["ZRANGE", self._layout.items, 0, -1]])[0]]

    def fields(self, item_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        """As `WrittenItems.fields`."""
        commands = [["HGETALL", self._layout.item(i)] for i in item_ids]
        return [_fields(r) for r in self._store.run(commands)] if commands else []

    def drop(self, item_ids: Sequence[str]) -> None:
        """Forget what was written of items; the release is what holds."""
        for item_id in item_ids:
            self._store.run([["ZREM", self._layout.items, item_id], ["UNLINK", self._layout.item(item_id)]])

    def take(self, worker: str, count: int, wait_s: float, orphaned_ms: int) -> list[tuple[str, str, str]]:
        """(entry, item id, put or vector) of changes that are now this worker's, of the group that reads texts.

        wait_s: how long to wait where there is none. orphaned_ms: those that another worker took so long ago and never
        finished are ours.
        """
        changes = self._layout.changes
        try:
            self._store.client.xgroup_create(changes, _READERS, id="0", mkstream=True)
        except ResponseError as e:
            if "BUSYGROUP" not in str(e):
                raise
        orphans = self._store.client.xautoclaim(changes, _READERS, worker, orphaned_ms, count=count)[1]
        block = None if orphans or not wait_s else max(1, int(wait_s * 1000))
        new = self._store.client.xreadgroup(_READERS, worker, {changes: ">"}, count=count, block=block)
        streams = new.items() if isinstance(new, dict) else new or ()
        entries = [*orphans, *(entry for _, found in streams for entry in found)]
        return [(i.decode(), fields[b"i"].decode(), fields[b"w"].decode()) for i, fields in entries if fields]

    def took(self, entries: Sequence[str]) -> None:
        """These changes are done with."""
        if entries:
            self._store.run([["XACK", self._layout.changes, _READERS, *entries]])

    def tell_vectors(self, item_ids: Sequence[str]) -> None:
        """Tell every worker of the service that these items have a vector."""
        if item_ids:
            self._store.run([_change(self._layout, i, "vector") for i in item_ids])


class ItemFields(NamedTuple):
    """What was written of an item since some release. at: Unix seconds of the last write; fields: by name, decoded."""

    at: float
    fields: dict[str, Any]

    @property
    def available(self) -> bool:
        """Whether it may be in an answer."""
        return self.fields.get("available") is not False

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes beyond the standard columns."""
        return {k.removeprefix("a:"): v for k, v in self.fields.items() if k.startswith("a:")}


def decoded_fields(held: dict[bytes, bytes]) -> ItemFields:
    """What Redis holds of an item. Raises what msgspec raises where it is none of ours."""
    fields = {name.decode(): msgspec.json.decode(value) for name, value in held.items()}
    at = fields.pop("at", math.nan)
    return ItemFields(float(at), fields)


def to_years(moment: object) -> float:
    """A moment of an attribute in years since 1970, NaN where it is none."""
    if isinstance(moment, str):
        try:
            when = datetime.fromisoformat(moment)
        except ValueError:
            return math.nan
        moment = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return float(moment) / (365.25 * 86400) if isinstance(moment, int | float) else math.nan
