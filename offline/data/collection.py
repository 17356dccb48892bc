"""Collect: what the services took in and answered moves from Redis to Parquet, exactly once; tomorrow's training data.

    <log>/events/date=2026-01-31/part-<entry>.parquet    accepted events, as in events.parquet
    <log>/served/date=2026-01-31/part-<entry>.parquet    answered lists
    <log>/events/_mark, <log>/served/_mark               the last stream entry that is in the files
    <data>/written_items.parquet                         items written through the service
    <data>/erasures.parquet                              who asked to be forgotten

The day is that of the event, so what comes late goes into a day that is there already. The entries that were taken at a
time may be of several days: their files are named after the last entry, and then the mark moves on to it. Files beyond
the mark are those of a run that was killed; the next one removes them and takes the same entries again. In a cluster a
stream is in parts, and each has files and a mark of its own: `part-s<shard>-<entry>.parquet`, `_mark-s<shard>`.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.log import KINDS
from offline.data import erasures, written_items
from offline.data.erasures import Erasures
from offline.data.partitions import DAY_US, Storage, day_name, day_of, split_by_day
from offline.data.schema import EVENTS, EVENTS_FILE, EVENTS_FORM, EVENTS_SCHEMA, SERVED_FORM, SERVED_SCHEMA, UTC_US
from offline.data.schema import SERVED as SERVED_FOLDER
from offline.runtime import OnProgress
from serving.records import Served, decode_served
from serving.release import Listed, list_releases
from serving.store import (
    ERASED,
    SERVED,
    START,
    STREAM,
    BulkStore,
    BulkWrittenItems,
    Event,
    ItemFields,
    decode_event,
    decoded_fields,
)

_ROWS = 200_000
_BYTES = 256_000_000
_MARK = "_mark"
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
    directory: Path,
    store: BulkStore,
    releases: Path | None = None,
    on_progress: OnProgress | None = None,
    log: Storage | Path | str | None = None,
    keep_days: int | None = None,
) -> Collected:
    """Bring everything that waits in Redis into a data set, and forget whom we were asked to forget.

    releases: where releases are; events that each of them has in its own item state leave the stream, once collected.
    on_progress: called with (entries done, entries there were). log: where the day partitions are, if not in the
    directory. keep_days: days of them that stay before the cut-off of the oldest release that is there; all if None,
    and without a release. Raises what redis-py raises, and StoreCorrupt.
    """
    directory.mkdir(parents=True, exist_ok=True)
    home, storage = Storage.of(directory), Storage.of(directory if log is None else log)
    with _single_collector(directory):
        last_erased, since = store.erased()
        before, gone = erasures.read_erasures(directory), erasures.merge_erasures(directory, since)
        fresh = {user: at for user, at in gone.items() if before.get(user) != at}
        if fresh:
            home.write_table(erasures.FILE, erasures.to_table(gone))
        total, done, counts = sum(store.length(log.stream) for log in _LOGS), 0, []
        for log_ in _LOGS:
            count = 0
            for shard in _shards(store):
                for taken, written in _move(log_, shard, storage, store, gone):
                    done, count = done + taken, count + written
                    if on_progress:
                        on_progress(min(done, total), total)
            counts.append(count)
        if fresh:
            _erase_users(home, storage, store, fresh)
        store.trim_to(ERASED, last_erased)
        items = _items(directory, store)
        kept = [r for r in list_releases(releases) if r.manifest][:_RELEASES] if releases else []
        _prune(store, kept)
        trimmed = _trim(storage, store, kept)
        if keep_days is not None:
            _drop_old_days(storage, keep_days, releases)
        return Collected(counts[0], counts[1], len(fresh), trimmed, items)


@contextmanager
def _single_collector(directory: Path) -> Iterator[None]:
    """One run at a time: a second one waits."""
    with (directory / ".collect.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _shards(store: BulkStore) -> Sequence[int | None]:
    """The parts of a stream in a cluster; the one that is all of it elsewhere."""
    return range(store.layout.shards) if store.layout.cluster else [None]


def mark(storage: Storage, folder: str, shard: int | None = None) -> str:
    """The id of the last stream entry that is in a folder of day partitions; the start of the stream where none is."""
    said = storage.read(_mark_name(folder, shard))
    if said is not None:
        return said.decode("ascii")
    # A log of before there was a mark: its newest name is one.
    last = max((entry for _, entry in _collected(storage, folder, shard)), default=None)
    return "{}-{}".format(*last) if last else START


def _mark_name(folder: str, shard: int | None) -> str:
    return f"{folder}/{_MARK}" + ("" if shard is None else f"-s{shard:02d}")


def _collected(storage: Storage, folder: str, shard: int | None) -> list[tuple[str, tuple[int, int]]]:
    """The files of a part of a stream, and the last entry in each."""
    found = [(name, _NAME.fullmatch(name.rpartition("/")[2])) for name in storage.parts(folder)]
    own = None if shard is None else f"{shard:02d}"
    return [(name, (int(n[2]), int(n[3]))) for name, n in found if n and n[1] == own]


def _move(
    log: _Log, shard: int | None, storage: Storage, store: BulkStore, gone: Erasures
) -> Iterator[tuple[int, int]]:
    """Write what waits, about `_ROWS` at a time; (entries taken, rows written) after each time."""
    last, stream = mark(storage, log.folder, shard), store.layout.part(log.stream, shard or 0)
    milliseconds, number = map(int, last.split("-"))
    for name, entry in _collected(storage, log.folder, shard):
        if entry > (milliseconds, number):
            storage.remove(name)
    storage.write(_mark_name(log.folder, shard), last.encode())
    part = "part" if shard is None else f"part-s{shard:02d}"
    while entries := _next(log, stream, store, last):
        last = entries[-1][0]
        table = erasures.without_erased(log.table([entry for _, entry in entries]), gone, log.moment)
        milliseconds, number = map(int, last.split("-"))
        for day, rows in split_by_day(table, log.moment):
            storage.write_table(day_name(log.folder, day, f"{part}-{milliseconds:013d}-{number:06d}.parquet"), rows)
        storage.write(_mark_name(log.folder, shard), last.encode())
        yield len(entries), len(table)


def _next(log: _Log, stream: str, store: BulkStore, last: str) -> list[tuple[str, bytes]]:
    """The next entries, not too many."""
    out: list[tuple[str, bytes]] = []
    size = 0
    while len(out) < _ROWS and size < _BYTES:
        found = store.entries(stream, log.field, out[-1][0] if out else last, log.batch)
        if not found:
            break
        out += found
        size += sum(len(entry) for _, entry in found)
    return out


def _events_table(entries: Sequence[bytes]) -> pa.Table:
    events: list[Event] = [decode_event(entry) for entry in entries]
    columns: dict[str, list[Any]] = {name: [getattr(e, name, None) for e in events] for name in EVENTS_SCHEMA.names}
    columns["event"] = [KINDS[e.kind] for e in events]
    columns["timestamp"] = [round(e.at * 1e6) for e in events]
    return _cast(columns, EVENTS_SCHEMA)


def _served_table(entries: Sequence[bytes]) -> pa.Table:
    # A list that was written twice, after an answer of Redis that was lost, stands once.
    lists: list[Served] = list({found.request_id: found for found in map(decode_served, entries)}.values())
    columns: dict[str, list[Any]] = {name: [getattr(s, name, None) for s in lists] for name in SERVED_SCHEMA.names}
    columns["at"] = [round(s.at * 1e6) for s in lists]
    columns["score"] = [s.scores for s in lists]
    columns["propensity"] = [s.propensities for s in lists]
    columns["shadow"] = [s.shadow and s.shadow.release for s in lists]
    columns["shadow_score"] = [s.shadow and np.frombuffer(s.shadow.score, "<f8") for s in lists]
    for name in ("correlation", "overlap", "ms"):
        columns[f"shadow_{name}"] = [s.shadow and getattr(s.shadow, name) for s in lists]
    columns["live_ms"] = [s.shadow and s.shadow.live_ms for s in lists]
    return _cast(columns, SERVED_SCHEMA)


def _cast(columns: dict[str, list[Any]], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(columns[f.name], pa.int64() if f.type == UTC_US else f.type).cast(f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


_LOGS = (
    _Log(STREAM, b"e", EVENTS, EVENTS_FORM.moment, 10_000, _events_table),
    _Log(SERVED, b"l", SERVED_FOLDER, SERVED_FORM.moment, 200, _served_table),
)


def _erase_users(home: Storage, storage: Storage, store: BulkStore, gone: Erasures) -> None:
    """Take users out of every file of the log, and out of the stream."""
    if home.exists(EVENTS_FILE):
        _rewrite(home, EVENTS_FILE, gone, EVENTS_FORM.moment)
    for log in _LOGS:
        for name in storage.parts(log.folder):
            _rewrite(storage, name, gone, log.moment)
    store.drop_events(gone)


def _rewrite(storage: Storage, name: str, gone: Erasures, moment: str) -> None:
    """A file without the rows of users up to their erasure, a row group at a time; left alone where it has none."""
    with storage.parquet(name) as file:
        columns = ["user_id", moment]
        groups = range(file.num_row_groups)
        found = (file.read_row_group(k, columns) for k in groups)
        if all(len(erasures.without_erased(table, gone, moment)) == len(table) for table in found):
            return
        # As plain columns: a dictionary keeps the values of rows that went.
        plain = pa.schema(
            [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in file.schema_arrow]
        )
        kept = (erasures.without_erased(file.read_row_group(k).cast(plain), gone, moment) for k in groups)
        storage.write_tables(name, plain, kept)


def _drop_old_days(storage: Storage, keep_days: int, releases: Path | None) -> None:
    """Remove days that no release that is there still needs: those so many days before the oldest cut-off."""
    cut_offs = [r.manifest.cut_off for r in list_releases(releases) if r.manifest] if releases else []
    if not cut_offs:
        return
    oldest = int(min(cut_offs) * 1e6 // DAY_US) - keep_days
    for log in _LOGS:
        for name in storage.parts(log.folder):
            if day_of(name) < oldest:
                storage.remove(name)


def _items(directory: Path, store: BulkStore) -> int:
    """Bring what was written of items into the data set, over what was brought before; how many those are."""
    before = written_items.read_written_items(directory)
    now = {i: decoded_fields(held) for i, held in _written(store) if held}
    together = before | {
        i: ItemFields(new.at, (before[i].fields if i in before else {}) | new.fields) for i, new in now.items()
    }
    if together != before:
        Storage.of(directory).write_table(written_items.FILE, written_items.to_table(together))
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


def _trim(storage: Storage, store: BulkStore, kept: Sequence[Listed]) -> int:
    """Take out of Redis what is on disk, and no release that may be served again needs from there."""
    cut_offs = [r.manifest.cut_off for r in kept if r.manifest]
    trimmed = 0
    for shard in _shards(store):
        store.trim_to(store.layout.part(SERVED, shard or 0), mark(storage, SERVED_FOLDER, shard))
        collected = int(mark(storage, EVENTS, shard).partition("-")[0]) / 1e3
        # An hour covers clocks that disagree, as in `serving.ranking.live`.
        trimmed += store.trim(min(collected, min(cut_offs) - 3600), shard or 0) if cut_offs else 0
    return trimmed
