"""Collection: moves accepted events and served lists from Redis to Parquet, exactly once.

    <log>/events/date=2026-01-31/part-<entry>.parquet    accepted events, as in events.parquet
    <log>/served/date=2026-01-31/part-<entry>.parquet    served lists
    <log>/attributes/date=.../part-<entry>.parquet       writes of users' attributes
    <log>/merges/date=.../part-<entry>.parquet           merges of users
    <log>/events/_mark, and of the other folders         last stream entry that is in the files
    <data>/written_items.parquet                         items written through the service
    <data>/erasures.parquet, <data>/erasures.key         tombstones of erased users, and their secrets
    <data>/origin.json                                   the Redis that was collected last

Rows are partitioned by the day of the event or list, so late events are added to an existing day.

Entries are read in batches. The files of a batch, one per day, are named after its last entry; once they are written,
the mark moves to that entry. Files with entries after the mark were left by a killed run: the next run deletes them and
reads the entries again. In a cluster a stream has several shards, each with files and a mark of its own:
`part-s<shard>-<entry>.parquet` and `_mark-s<shard>`.

A Redis that was replaced by an empty or older one is noticed by its origin, or by a mark after the end of its stream.
After a repair, its streams are read from the start into files and marks of their own, with `r<number of repairs>-`
before the shard. Events and lists that were collected before are in the files twice, and are read once.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.log import KINDS
from offline.data import erasures, imported, written_items
from offline.data.erasures import Erasures
from offline.data.partitions import DAY_US, Storage, day_name, day_of, split_by_day
from offline.data.schema import (
    ATTRIBUTES,
    ATTRIBUTES_FORM,
    ATTRIBUTES_SCHEMA,
    EVENTS,
    EVENTS_FILE,
    EVENTS_FORM,
    EVENTS_SCHEMA,
    EXPERIMENT_FIELDS,
    MERGES_FORM,
    MERGES_SCHEMA,
    PLACEMENT,
    SEEDS,
    SERVED_FILE,
    SERVED_FORM,
    SERVED_SCHEMA,
    UTC_US,
)
from offline.data.schema import MERGES as MERGES_FOLDER
from offline.data.schema import SERVED as SERVED_FOLDER
from offline.runtime import DataError, OnProgress
from serving.lock import locked
from serving.records import Served, decode_served
from serving.release import ListedRelease, list_releases
from serving.store import (
    ERASED,
    MERGES,
    SERVED,
    START,
    STREAM,
    WRITES,
    BulkStore,
    BulkWrittenItems,
    Event,
    ItemFields,
    ItemSize,
    Merge,
    Origin,
    decode_attribute_write,
    decode_event,
    decode_fields,
    decode_merge,
    entry_number,
    origin_loss,
    size_of,
    tombstone,
    user_hash,
)

_logger = logging.getLogger(__name__)

_ROWS = 200_000
_BYTES = 256_000_000
_MARK = "_mark"
_ORIGIN = "origin.json"
_NAME = re.compile(r"part((?:-r\d+)?(?:-s\d+)?)-(\d+)-(\d+)\.parquet")
_RELEASES = 5
"""Number of newest releases that may be served again. Data in Redis that they need is kept."""


class Collected(NamedTuple):
    """Counts of a collection: events and served lists written to files, new erasures, entries trimmed from the event
    stream, and written items in the data set.

    log_kept: why Redis did not start to rewrite its append-only file after erasures; None if it did, or has none.
    """

    events: int
    served: int
    erased: int
    trimmed: int
    items: int
    log_kept: str | None = None


class _Log(NamedTuple):
    """A Redis stream and its folder on disk. table: decodes entries. time_column: the column with the time of a row."""

    stream: str
    field: bytes
    folder: str
    time_column: str
    batch: int
    table: Callable[[Sequence[bytes]], pa.Table]


def collect(
    directory: Path,
    store: BulkStore,
    releases: Path | None = None,
    on_progress: OnProgress | None = None,
    log: Storage | Path | str | None = None,
    keep_days: int | None = None,
    saved_erasures: Path | None = None,
    repair: bool = False,
) -> Collected:
    """Move all waiting records from Redis to a data set, and apply erasures.

    releases: directory of the releases. Collected events that are part of the item state of every release are removed
    from the stream. on_progress: called with (entries done, total entries). log: location of the day partitions, by
    default `directory`. keep_days: days to keep before the cut-off of the oldest release; all if None or without a
    release. saved_erasures: erasures newer than a restored backup; these users are also erased from the lists in
    Redis, while no service is running. After new erasures, Redis rewrites its append-only file. repair: accept a Redis
    that was replaced, and collect all of it. Raises the exceptions of redis-py, StoreCorrupt, and DataError, also if
    Redis was replaced and `repair` is false.
    """
    directory.mkdir(parents=True, exist_ok=True)
    home, storage = Storage.of(directory), Storage.of(directory if log is None else log)
    with locked(directory / ".collect.lock", wait=True):
        origin = _continue(home, storage, store, repair)
        before = erasures.read_erasures(directory)
        last_erased, waiting = erasures.waiting_erasures(store, before.secrets)
        erased = before.merged(waiting)
        known = before.merged(Erasures({}, erased.secrets)).at
        if saved_erasures:
            # A restored log contains the users again, whether or not their tombstones were restored with it.
            saved = Erasures({}, erased.secrets).merged(erasures.read_file(saved_erasures))
            known = {name: at for name, at in known.items() if name not in saved.at}
            erased = erased.merged(saved)
            store.erase(erased.until)
            store.refuse_events(waiting.secrets[0], erased.at)
        erased = _with_merged(erased, storage, store, known, origin.repairs)
        new = {name: at for name, at in erased.at.items() if known.get(name) != at}
        if erased != before:
            erasures.write_erasures(directory, erased)
        total, done, counts = sum(store.length(log.stream) for log in _LOGS), 0, []
        for log_ in _LOGS:
            count = 0
            for shard in _shards(store):
                for read, written in _move(log_, shard, origin.repairs, storage, store, erased):
                    done, count = done + read, count + written
                    if on_progress:
                        on_progress(min(done, total), total)
            counts.append(count)
        if new:
            _erase_users(home, storage, store, Erasures(new, erased.secrets))
            imported.remove_erased(directory, erased)
        store.trim_through(store.layout.key(ERASED), last_erased)
        store.drop_old_erasures(time.time())
        items = _collect_items(directory, store)
        kept = [r for r in list_releases(releases) if r.manifest][:_RELEASES] if releases else []
        _drop_written_items(store, kept)
        trimmed = _trim(storage, store, kept, origin.repairs)
        origin = origin._replace(collections=origin.collections + 1)
        store.set_origin(origin)  # first, so that a run that is killed here does not look like a loss
        _write_origin(home, origin)
        if keep_days is not None:
            _drop_old_days(storage, keep_days, releases)
        log_kept = store.rewrite_log() if new else None
        return Collected(counts[0], counts[1], len(new), trimmed, items, log_kept)


def _shards(store: BulkStore) -> Sequence[int | None]:
    """The shards of a stream in a cluster; a single None without a cluster."""
    return range(store.layout.shards) if store.layout.cluster else [None]


def _continue(home: Storage, storage: Storage, store: BulkStore, repair: bool) -> Origin:
    """The origin to collect from. Raises DataError if Redis was replaced since the last collection, unless `repair`."""
    before, now = _read_origin(home), store.origin()
    origin = max((o for o in (before, now) if o), key=lambda o: (o.repairs, o.collections), default=_new_origin())
    if repair:
        origin = Origin((before or origin).id, origin.repairs + 1, 0)
        _write_origin(home, origin)
        store.set_origin(origin)
        return origin
    lost = origin_loss(before, now)
    for log in _LOGS:
        for shard in _shards(store):
            stream = store.layout.part(log.stream, shard or 0)
            mark = read_mark(storage, log.folder, shard, origin.repairs)
            if not lost and entry_number(mark) > store.end(stream):
                lost = f"{stream} in Redis ends before {mark}, the last entry that was collected"
    if lost:
        raise DataError(
            f"{lost}. What was accepted since the last collection is lost, unless you restore a newer copy of Redis: "
            "do that now and run `shelfwise collect` again, or go on with what this Redis has: run "
            "`shelfwise collect --repair`"
        )
    return origin


def _new_origin() -> Origin:
    return Origin(secrets.token_hex(8), 0, 0)


def _read_origin(home: Storage) -> Origin | None:
    content = home.read(_ORIGIN)
    return Origin(**json.loads(content)) if content is not None else None


def _write_origin(home: Storage, origin: Origin) -> None:
    home.write(_ORIGIN, json.dumps(origin._asdict()).encode())


def read_mark(storage: Storage, folder: str, shard: int | None = None, repairs: int = 0) -> str:
    """The ID of the last stream entry in the files of a folder; the start of the stream without files."""
    suffix = _suffix(shard, repairs)
    content = storage.read(_mark_name(folder, suffix))
    if content is not None:
        return content.decode("ascii")
    # Logs written before marks existed: the newest file name has the last entry.
    last = max((entry for _, entry in _collected(storage, folder, suffix)), default=None)
    return "{}-{}".format(*last) if last else START


def _suffix(shard: int | None, repairs: int) -> str:
    """Suffix that the names of the files and the mark of a shard share."""
    return (f"-r{repairs}" if repairs else "") + ("" if shard is None else f"-s{shard:02d}")


def _mark_name(folder: str, suffix: str) -> str:
    return f"{folder}/{_MARK}{suffix}"


def _collected(storage: Storage, folder: str, suffix: str) -> list[tuple[str, tuple[int, int]]]:
    """The files of a shard of a stream, with the last entry of each."""
    matches = [(name, _NAME.fullmatch(name.rpartition("/")[2])) for name in storage.parts(folder)]
    return [(name, (int(m[2]), int(m[3]))) for name, m in matches if m and m[1] == suffix]


def _move(
    log: _Log, shard: int | None, repairs: int, storage: Storage, store: BulkStore, erased: Erasures
) -> Iterator[tuple[int, int]]:
    """Write waiting entries to files in batches of about `_ROWS`. Yields (entries read, rows written) per batch."""
    suffix, stream = _suffix(shard, repairs), store.layout.part(log.stream, shard or 0)
    last = read_mark(storage, log.folder, shard, repairs)
    milliseconds, number = map(int, last.split("-"))
    for name, entry in _collected(storage, log.folder, suffix):
        if entry > (milliseconds, number):
            storage.remove(name)
    storage.write(_mark_name(log.folder, suffix), last.encode())
    while entries := _read_batch(log, stream, store, last):
        last = entries[-1][0]
        table = erasures.without_erased(log.table([entry for _, entry in entries]), erased, log.time_column)
        milliseconds, number = map(int, last.split("-"))
        name = f"part{suffix}-{milliseconds:013d}-{number:06d}.parquet"
        for day, rows in split_by_day(table, log.time_column):
            storage.write_table(day_name(log.folder, day, name), rows)
        storage.write(_mark_name(log.folder, suffix), last.encode())
        yield len(entries), len(table)


def _read_batch(log: _Log, stream: str, store: BulkStore, last: str) -> list[tuple[str, bytes]]:
    """The entries after `last`, up to about `_ROWS` entries or `_BYTES` bytes."""
    out: list[tuple[str, bytes]] = []
    size = 0
    while len(out) < _ROWS and size < _BYTES:
        entries = store.entries(stream, log.field, out[-1][0] if out else last, log.batch)
        if not entries:
            break
        out += entries
        size += sum(len(entry) for _, entry in entries)
    return out


def _events_table(entries: Sequence[bytes]) -> pa.Table:
    events: list[Event] = [decode_event(entry) for entry in entries]
    columns: dict[str, list[Any]] = {name: [getattr(e, name, None) for e in events] for name in EVENTS_SCHEMA.names}
    columns["event"] = [KINDS[e.kind] for e in events]
    columns["timestamp"] = [round(e.at * 1e6) for e in events]
    return _with_used(_cast(columns, EVENTS_SCHEMA), {PLACEMENT: [e.placement for e in events]})


def _served_table(entries: Sequence[bytes]) -> pa.Table:
    # A list may be in the stream twice, if the first reply of Redis was lost and the service wrote it again.
    lists: list[Served] = list({served.request_id: served for served in map(decode_served, entries)}.values())
    columns: dict[str, list[Any]] = {name: [getattr(s, name, None) for s in lists] for name in SERVED_SCHEMA.names}
    columns["at"] = [round(s.at * 1e6) for s in lists]
    columns["score"] = [s.scores for s in lists]
    columns["propensity"] = [s.propensities for s in lists]
    columns["shadow"] = [s.shadow and s.shadow.release for s in lists]
    columns["shadow_score"] = [s.shadow and np.frombuffer(s.shadow.score, "<f8") for s in lists]
    for name in ("correlation", "overlap", "ms"):
        columns[f"shadow_{name}"] = [s.shadow and getattr(s.shadow, name) for s in lists]
    columns["live_ms"] = [s.shadow and s.shadow.live_ms for s in lists]
    used: dict[pa.Field, Sequence[Any]] = {
        PLACEMENT: [s.placement for s in lists],
        SEEDS: [s.items or None for s in lists],
    }
    arms, *others = EXPERIMENT_FIELDS
    used[arms] = [list(s.experiments.items()) or None for s in lists]
    used |= {field: [getattr(s, field.name) or None for s in lists] for field in others}
    return _with_used(_cast(columns, SERVED_SCHEMA), used)


def _with_used(table: pa.Table, columns: Mapping[pa.Field, Sequence[Any]]) -> pa.Table:
    """The table with those columns of which any row has a value."""
    for field, values in columns.items():
        if any(values):
            table = table.append_column(field, pa.array(values, field.type))
    return table


def _cast(columns: dict[str, list[Any]], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(columns[f.name], pa.int64() if f.type == UTC_US else f.type).cast(f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _attributes_table(entries: Sequence[bytes]) -> pa.Table:
    writes = [decode_attribute_write(entry) for entry in entries]
    columns: dict[str, list[Any]] = {
        "user_id": [w.user_id for w in writes],
        "at": [round(w.at * 1e6) for w in writes],
        "attributes": [msgspec.json.encode(w.attributes).decode() for w in writes],
    }
    return _cast(columns, ATTRIBUTES_SCHEMA)


def _merges_table(entries: Sequence[bytes]) -> pa.Table:
    merges = [decode_merge(entry) for entry in entries]
    columns: dict[str, list[Any]] = {name: [getattr(m, name) for m in merges] for name in MERGES_SCHEMA.names}
    return _cast(columns | {"at": [round(m.at * 1e6) for m in merges]}, MERGES_SCHEMA)


_MERGES = _Log(MERGES, b"m", MERGES_FOLDER, MERGES_FORM.moment, 1000, _merges_table)
_LOGS = (
    _Log(STREAM, b"e", EVENTS, EVENTS_FORM.moment, 1000, _events_table),
    _Log(SERVED, b"l", SERVED_FOLDER, SERVED_FORM.moment, 200, _served_table),
    _Log(WRITES, b"a", ATTRIBUTES, ATTRIBUTES_FORM.moment, 1000, _attributes_table),
    _MERGES,
)


def _erase_users(home: Storage, storage: Storage, store: BulkStore, erased: Erasures) -> None:
    """Remove erased users from every file of the log and from the event stream."""
    for name, form in ((EVENTS_FILE, EVENTS_FORM), (SERVED_FILE, SERVED_FORM)):
        if home.exists(name):
            _rewrite(home, name, erased, form.moment)
    for log in _LOGS:
        for name in storage.parts(log.folder):
            _rewrite(storage, name, erased, log.time_column)
    store.drop_events(erased.until)


def _with_merged(
    erased: Erasures, storage: Storage, store: BulkStore, known: Mapping[str, float], repairs: int
) -> Erasures:
    """The erasures, and those of what was merged into erased users. known: those of earlier runs, by tombstone.

    Redis forgets what it knows of new ones: late events are refused, and the marks of merges are deleted.
    """
    if not erased.at:
        return erased
    merges = list(_merges(storage, store, repairs))
    by_merges = erasures.erased_by_merges(erased, merges)
    names = {user: tombstone(erased.secrets[0], user_hash(user)) for user in by_merges}
    out = erased.merged(Erasures({names[user]: at for user, at in by_merges.items()}))
    new = [user for user, name in names.items() if out.at[name] != known.get(name)]
    secret = store.erasure_secret(erased.secrets[0])
    store.refuse_events(secret, {tombstone(secret, user_hash(user)): out.at[names[user]] for user in new})
    store.forget_merges({m.from_id for m in merges if m.from_id in new and m.at <= out.until(m.user_id)})
    return out


def _merges(storage: Storage, store: BulkStore, repairs: int) -> Iterator[Merge]:
    """All merges, of the log and those that are not collected yet."""
    for name in storage.parts(MERGES_FOLDER):
        with storage.parquet(name) as file:
            for row in file.read().to_pylist():
                yield Merge(row["user_id"], row["from_id"], row["at"].timestamp())
    for shard in _shards(store):
        last, stream = read_mark(storage, MERGES_FOLDER, shard, repairs), store.layout.part(MERGES, shard or 0)
        while entries := store.entries(stream, _MERGES.field, last, _MERGES.batch):
            last = entries[-1][0]
            yield from (decode_merge(entry) for _, entry in entries)


def _rewrite(storage: Storage, name: str, erased: Erasures, time_column: str) -> None:
    """Rewrite a file without the rows of erased users, one row group at a time. Does nothing if it has none."""
    with storage.parquet(name) as file:
        columns = [c for c in (*erasures.USER_COLUMNS, time_column) if c in file.schema_arrow.names]
        groups = range(file.num_row_groups)
        tables = (file.read_row_group(k, columns) for k in groups)
        if all(len(erasures.without_erased(table, erased, time_column)) == len(table) for table in tables):
            return
        # Write plain columns, because a dictionary would keep the values of deleted rows.
        plain = pa.schema(
            [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in file.schema_arrow]
        )
        kept = (erasures.without_erased(file.read_row_group(k).cast(plain), erased, time_column) for k in groups)
        storage.write_tables(name, plain, kept)


def _drop_old_days(storage: Storage, keep_days: int, releases: Path | None) -> None:
    """Delete the days more than `keep_days` before the cut-off of the oldest release."""
    cut_offs = [r.manifest.cut_off for r in list_releases(releases) if r.manifest] if releases else []
    if not cut_offs:
        return
    oldest = int(min(cut_offs) * 1e6 // DAY_US) - keep_days
    # Attributes hold until they are written again, however long ago that was. An erasure needs every merge.
    for log in (log for log in _LOGS if log.folder not in {ATTRIBUTES, MERGES_FOLDER}):
        for name in storage.parts(log.folder):
            if day_of(name) < oldest:
                storage.remove(name)


def _collect_items(directory: Path, store: BulkStore) -> int:
    """Merge the written items in Redis into those of the data set. Returns the number of items in Redis."""
    before = written_items.read_written_items(directory)
    stored, oversized = _written_items(store)
    for item_id, size in oversized.items():
        _logger.warning("written item %r is not used: it has %s; import it with the catalogue", item_id, size)
    now = {i: decode_fields(fields) for i, fields in stored if fields}
    now = {i: item for i, item in now.items() if i not in oversized or not item.available}
    merged = before | {i: _merge_writes(i, before.get(i), new) for i, new in now.items()}
    if merged != before:
        Storage.of(directory).write_table(written_items.FILE, written_items.to_table(merged))
    return len(now)


def _merge_writes(item_id: str, before: ItemFields | None, new: ItemFields) -> ItemFields:
    """The fields of an item with those written since. If these are too many together, only the latter are kept."""
    merged = ItemFields(new.at, (before.fields if before else {}) | new.fields)
    if (size := size_of(merged.fields)).allowed:
        return merged
    _logger.warning("item %r would have %s: the fields written before the last release are dropped", item_id, size)
    return new


def _written_items(store: BulkStore) -> tuple[list[tuple[str, dict[bytes, bytes]]], dict[str, ItemSize]]:
    """The fields of all written items, and the sizes of those that are too large."""
    written = BulkWrittenItems(store)
    ids = written.ids()
    parts = [ids[k : k + 1000] for k in range(0, len(ids), 1000)]
    out, oversized = list[tuple[str, dict[bytes, bytes]]](), dict[str, ItemSize]()
    for part in parts:
        fields, too_large = written.fields(part)
        out += zip(part, fields, strict=True)
        oversized |= too_large
    return out, oversized


def _drop_written_items(store: BulkStore, kept: Sequence[ListedRelease]) -> None:
    """Delete written items from Redis that no kept release needs: the oldest one has the item and is newer than the
    write."""
    if not kept:
        return
    oldest = min(kept, key=lambda r: r.manifest.cut_off if r.manifest else 0)
    assert oldest.manifest is not None
    known = set(pq.read_table(oldest.path / "items.parquet", columns=["item_id"])["item_id"].to_pylist())
    obsolete = []
    for item_id, fields in _written_items(store)[0]:
        written = decode_fields(fields) if fields else None
        if written is None or _is_in_releases(item_id in known, written, oldest.manifest.cut_off):
            obsolete.append(item_id)
    BulkWrittenItems(store).drop(obsolete)


def _is_in_releases(is_known: bool, written: ItemFields, cut_off: float) -> bool:
    """True if every kept release includes a write, or does not need it because the item is withdrawn and in none."""
    if not is_known:
        return not written.available
    return written.available and written.at < cut_off


def _trim(storage: Storage, store: BulkStore, kept: Sequence[ListedRelease], repairs: int) -> int:
    """Trim collected entries from the streams in Redis, except events that a kept release still needs."""
    cut_offs = [r.manifest.cut_off for r in kept if r.manifest]
    trimmed = 0
    for shard in _shards(store):
        for stream, folder in ((SERVED, SERVED_FOLDER), (WRITES, ATTRIBUTES), (MERGES, MERGES_FOLDER)):
            store.trim_through(store.layout.part(stream, shard or 0), read_mark(storage, folder, shard, repairs))
        collected = int(read_mark(storage, EVENTS, shard, repairs).partition("-")[0]) / 1e3
        # The margin of one hour covers clock differences, as in `serving.ranking.live`.
        trimmed += store.trim(min(collected, min(cut_offs) - 3600), shard or 0) if cut_offs else 0
    return trimmed
