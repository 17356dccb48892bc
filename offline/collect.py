"""Collect: what the services took in and answered moves from Redis to Parquet, exactly once; tomorrow's training data.

    <data>/events/date=2026-01-31/part-<entry>.parquet    accepted events, as in events.parquet
    <data>/served/date=2026-01-31/part-<entry>.parquet    answered lists
    <data>/written_items.parquet                          items written through the service
    <data>/erasures.parquet                               who asked to be forgotten

The day is that of arrival. A file is made whole aside and then named after the last stream entry in it, so that the
name is the high-water mark: killed at any moment, a run leaves the file or nothing, and the next one goes on after it.
In a cluster a stream is in parts, and each has files and a mark of its own: `part-s<shard>-<entry>.parquet`.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.log import KINDS
from offline import erasures, written_items
from offline.erasures import Erasures
from offline.items import UTC_US
from offline.layout import EVENTS_SCHEMA, SERVED_SCHEMA
from offline.progress import OnProgress
from serving.item import ItemFields, decoded_fields
from serving.release import Listed, list_releases
from serving.served import Served, decoded
from serving.store import ERASED, SERVED, START, STREAM, BulkStore, Event, decode_event
from serving.written import BulkWrittenItems

_ROWS = 200_000
_BYTES = 256_000_000
_DAY_MS = 86_400_000
_NAME = re.compile(r"part-(?:s(\d+)-)?(\d+)-(\d+)\.parquet")
_RELEASES = 5
"""The newest releases: one of them may be served again, so what they read of Redis stays there."""


class Collected(NamedTuple):
    """How many events and lists were written down, erasures were new, entries left the event stream, and items were
    written through the service and are now in the data set."""

    events: int
    served: int
    erased: int
    trimmed: int
    items: int


class _Log(NamedTuple):
    """One stream and its layout on disk. moment: the column of a row's time, for erasures."""

    stream: str
    field: bytes
    folder: str
    moment: str
    batch: int
    table: Callable[[Sequence[bytes]], pa.Table]


def collect(
    directory: Path, store: BulkStore, releases: Path | None = None, on_progress: OnProgress | None = None
) -> Collected:
    """Bring everything that waits in Redis into a data set, and forget whom we were asked to forget.

    releases: where releases are; events that each of them has in its own item state leave the stream, once collected.
    on_progress: called with (entries done, entries there were). Raises what redis-py raises, and StoreCorrupt.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        last_erased, since = store.erased()
        before, gone = erasures.read(directory), erasures.known(directory, since)
        fresh = {user: at for user, at in gone.items() if before.get(user) != at}
        if fresh:
            _write(directory / erasures.FILE, erasures.table(gone))
        total, done, counts = sum(store.length(log.stream) for log in _LOGS), 0, []
        for log in _LOGS:
            count = 0
            for shard in _shards(store):
                for taken, written in _moved(log, shard, directory, store, gone):
                    done, count = done + taken, count + written
                    if on_progress:
                        on_progress(min(done, total), total)
            counts.append(count)
        if fresh:
            _forget(directory, store, fresh)
        store.trim_to(ERASED, last_erased)
        items = _items(directory, store)
        kept = [r for r in list_releases(releases) if r.manifest][:_RELEASES] if releases else []
        _prune(store, kept)
        return Collected(counts[0], counts[1], len(fresh), _trim(directory, store, kept), items)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One run at a time: a second one waits."""
    with (directory / ".collect.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _shards(store: BulkStore) -> Sequence[int | None]:
    """The parts of a stream in a cluster; the one that is all of it elsewhere."""
    return range(store.layout.shards) if store.layout.cluster else [None]


def mark(folder: Path, shard: int | None = None) -> str:
    """The id of the last stream entry that is in a folder of parts; the start of the stream where there is none."""
    ids = [
        (int(found[2]), int(found[3]))
        for path in folder.glob("date=*/part-*.parquet")
        if (found := _NAME.fullmatch(path.name)) and (found[1] is None if shard is None else found[1] == f"{shard:02d}")
    ]
    return "{}-{}".format(*max(ids)) if ids else START


def _moved(
    log: _Log, shard: int | None, directory: Path, store: BulkStore, gone: Erasures
) -> Iterator[tuple[int, int]]:
    """Write what waits, a day or `_ROWS` at a time; (entries taken, rows written) after each file."""
    last, stream = mark(directory / log.folder, shard), store.layout.part(log.stream, shard or 0)
    while part := _next(log, stream, store, last):
        last = part[-1][0]
        table = erasures.kept(log.table([entry for _, entry in part]), gone, log.moment)
        _write(_path(directory / log.folder, last, shard), table)
        yield len(part), len(table)


def _next(log: _Log, stream: str, store: BulkStore, last: str) -> list[tuple[str, bytes]]:
    """The next entries that belong in one file: of one day, and not too many."""
    out: list[tuple[str, bytes]] = []
    size = 0
    while len(out) < _ROWS and size < _BYTES:
        found = store.entries(stream, log.field, out[-1][0] if out else last, log.batch)
        if not found:
            break
        day = _day((out or found)[0][0])
        same = [pair for pair in found if _day(pair[0]) == day]
        out += same
        size += sum(len(entry) for _, entry in same)
        if len(same) < len(found):
            break
    return out


def _day(entry_id: str) -> int:
    return int(entry_id.partition("-")[0]) // _DAY_MS


def _path(folder: Path, last: str, shard: int | None) -> Path:
    day = datetime.fromtimestamp(_day(last) * _DAY_MS / 1e3, UTC).date().isoformat()
    milliseconds, number = last.split("-")
    part = "part" if shard is None else f"part-s{shard:02d}"
    return folder / f"date={day}" / f"{part}-{int(milliseconds):013d}-{int(number):06d}.parquet"


def _write(path: Path, table: pa.Table) -> None:
    """The file whole and on disk, then its name: after a power cut it is there or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    pq.write_table(table, aside, compression="zstd")
    for name, target in ((aside, path), (path.parent, None)):
        handle = os.open(name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if target is not None:
            name.replace(target)


def _events_table(entries: Sequence[bytes]) -> pa.Table:
    events: list[Event] = [decode_event(entry) for entry in entries]
    columns: dict[str, list[Any]] = {name: [getattr(e, name, None) for e in events] for name in EVENTS_SCHEMA.names}
    columns["event"] = [KINDS[e.kind] for e in events]
    columns["timestamp"] = [round(e.at * 1e6) for e in events]
    return _typed(columns, EVENTS_SCHEMA)


def _served_table(entries: Sequence[bytes]) -> pa.Table:
    # A list that was written twice, after an answer of Redis that was lost, stands once.
    lists: list[Served] = list({found.request_id: found for found in map(decoded, entries)}.values())
    columns: dict[str, list[Any]] = {name: [getattr(s, name, None) for s in lists] for name in SERVED_SCHEMA.names}
    columns["at"] = [round(s.at * 1e6) for s in lists]
    columns["score"] = [s.scores for s in lists]
    columns["propensity"] = [s.propensities for s in lists]
    columns["shadow"] = [s.shadow and s.shadow.release for s in lists]
    columns["shadow_score"] = [s.shadow and np.frombuffer(s.shadow.score, "<f8") for s in lists]
    for name in ("correlation", "overlap", "ms"):
        columns[f"shadow_{name}"] = [s.shadow and getattr(s.shadow, name) for s in lists]
    columns["live_ms"] = [s.shadow and s.shadow.live_ms for s in lists]
    return _typed(columns, SERVED_SCHEMA)


def _typed(columns: dict[str, list[Any]], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(columns[f.name], pa.int64() if f.type == UTC_US else f.type).cast(f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


_LOGS = (
    _Log(STREAM, b"e", "events", "timestamp", 10_000, _events_table),
    _Log(SERVED, b"l", "served", "at", 200, _served_table),
)


def _forget(directory: Path, store: BulkStore, gone: Erasures) -> None:
    """Take users out of what was collected before, and out of the stream."""
    for log in _LOGS:
        for path in sorted((directory / log.folder).glob("date=*/part-*.parquet")):
            held = pq.read_table(path, partitioning=None)
            if len(left := erasures.kept(held, gone, log.moment)) < len(held):
                _write(path, left)
    store.drop_events(gone)


def _items(directory: Path, store: BulkStore) -> int:
    """Bring what was written of items into the data set, over what was brought before; how many those are."""
    before = written_items.read(directory)
    now = {i: decoded_fields(held) for i, held in _written(store) if held}
    together = before | {
        i: ItemFields(new.at, (before[i].fields if i in before else {}) | new.fields) for i, new in now.items()
    }
    if together != before:
        _write(directory / written_items.FILE, written_items.table(together))
    return len(now)


def _written(store: BulkStore) -> list[tuple[str, dict[bytes, bytes]]]:
    held = BulkWrittenItems(store)
    ids = held.ids()
    parts = [ids[k : k + 1000] for k in range(0, len(ids), 1000)]
    return [pair for part in parts for pair in zip(part, held.fields(part), strict=True)]


def _prune(store: BulkStore, kept: Sequence[Listed]) -> None:
    """Drop from Redis what no release reads there any more: it has the item, and is younger than the write."""
    if not kept:
        return
    oldest = min(kept, key=lambda r: r.manifest.cut_off if r.manifest else 0)
    assert oldest.manifest is not None
    known = set(pq.read_table(oldest.path / "items.parquet", columns=["item_id"])["item_id"].to_pylist())
    gone = []
    for item_id, held in _written(store):
        one = decoded_fields(held)
        read_by_none = one.at < oldest.manifest.cut_off and item_id in known and one.available
        if not held or read_by_none or (item_id not in known and not one.available):
            gone.append(item_id)
    BulkWrittenItems(store).drop(gone)


def _trim(directory: Path, store: BulkStore, kept: Sequence[Listed]) -> int:
    """Take out of Redis what is on disk, and no release that may be served again needs from there."""
    cut_offs = [r.manifest.cut_off for r in kept if r.manifest]
    trimmed = 0
    for shard in _shards(store):
        store.trim_to(store.layout.part(SERVED, shard or 0), mark(directory / "served", shard))
        collected = int(mark(directory / "events", shard).partition("-")[0]) / 1e3
        # An hour covers clocks that disagree, as in `serving.live`.
        trimmed += store.trim(min(collected, min(cut_offs) - 3600), shard or 0) if cut_offs else 0
    return trimmed
