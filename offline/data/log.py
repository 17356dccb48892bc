"""The log of a data set: reads its files in spans of time, without erased users, and converts them to arrays.

IDs are numbered by their first appearance in time, and rows with equal times have a fixed order. The arrays therefore
do not depend on how the log is split into files or in which order the files were written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.arrays import I8, I32, I64, U64, Bool
from features.catalogue import Catalogue
from features.context import NO_DEVICE, device_code
from features.history import NO_MERGES, EventsByUser, Histories, Merges
from features.kernels.strings import StringIndex, Strings, hashes
from features.log import CHUNK_ROWS, KINDS, Events, Kind
from features.retention import Retention
from offline.data import erasures
from offline.data.append_only import (
    AppendOnlyArrays,
    AppendOnlyStrings,
    Deduplicator,
    IdEncoder,
    release_pages,
    to_strings,
)
from offline.data.partitions import EARLIEST, LATEST, SPAN_ROWS, Partitions, Storage, to_microseconds
from offline.data.schema import (
    ATTRIBUTES,
    ATTRIBUTES_FORM,
    EVENTS,
    EVENTS_FILE,
    EVENTS_FORM,
    EVENTS_SCHEMA,
    EXPERIMENT_FIELDS,
    MERGES,
    MERGES_FORM,
    PLACEMENT,
    SEEDS,
    SERVED,
    SERVED_FILE,
    SERVED_FORM,
    SERVED_SCHEMA,
)
from offline.runtime import DataError

_TYPES: dict[str, type] = {
    "at": np.float64,
    "user": np.int32,
    "item": np.int32,
    "kind": np.int8,
    "request": np.int32,
    "position": np.int16,
    "value": np.float64,
    "session": np.int32,
    "device": np.int8,
}
_RELEASE_EVERY = 4096
Arrays = Mapping[str, NDArray[Any]]
_EVENT_COLUMNS = pa.schema([f for f in EVENTS_SCHEMA if f.name != "columns"])
"""The columns of events that arrays are made of."""
_SERVED_FIELDS = pa.schema([*SERVED_SCHEMA, PLACEMENT, SEEDS, *EXPERIMENT_FIELDS])
_LIST_COLUMNS = ("request_id", "at", "user_id", "device", "query", "item_ids")


@dataclass(frozen=True)
class LogFiles:
    """The files of a log, restricted to a time range.

    directory: of the data set. storage: location of the day partitions. begin, end: time range to read, Unix
    microseconds, end exclusive.
    """

    directory: Path
    storage: Storage
    begin: int = EARLIEST
    end: int = LATEST

    @classmethod
    def of(
        cls,
        directory: Path,
        storage: Storage | Path | str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> LogFiles:
        """storage: an argument of `Storage.of`, by default `directory`. since, until: time range, Unix seconds."""
        begin, end = (
            default if time is None else round(time * 1e6) for time, default in ((since, EARLIEST), (until, LATEST))
        )
        return cls(directory, Storage.of(directory if storage is None else storage), begin, end)

    @cached_property
    def events(self) -> Partitions:
        """The event files: `events.parquet`, day partitions, or both. Raises FileNotFoundError if there are none."""
        home = Storage.of(self.directory)
        single = [(home, EVENTS_FILE)] if home.exists(EVENTS_FILE) else []
        parts = [(self.storage, name) for name in self.storage.parts(EVENTS)]
        if not single and not parts:
            path = self.directory / EVENTS_FILE
            raise FileNotFoundError(f"{path}: no such file; create it with `shelfwise import` or `shelfwise simulate`")
        return Partitions([*single, *parts], EVENTS_FORM)

    @cached_property
    def served(self) -> Partitions:
        """The files of served lists, imported and collected; possibly none."""
        home = Storage.of(self.directory)
        single = [(home, SERVED_FILE)] if home.exists(SERVED_FILE) else []
        return Partitions([*single, *((self.storage, name) for name in self.storage.parts(SERVED))], SERVED_FORM)

    @cached_property
    def attributes(self) -> Partitions:
        """The files of writes of users' attributes; possibly none."""
        return Partitions([(self.storage, name) for name in self.storage.parts(ATTRIBUTES)], ATTRIBUTES_FORM)

    @cached_property
    def merges(self) -> Partitions:
        """The files of merges of users; possibly none."""
        return Partitions([(self.storage, name) for name in self.storage.parts(MERGES)], MERGES_FORM)

    @property
    def collected(self) -> bool:
        """True if the log has data collected from a service."""
        return bool(self.storage.parts(EVENTS) or self.storage.parts(SERVED))

    @cached_property
    def erased(self) -> erasures.Erasures:
        """The erasures recorded in the data set."""
        return erasures.read_erasures(self.directory)

    @property
    def event_columns(self) -> list[str]:
        """Columns that exist in any event file; none without a file."""
        try:
            return self.events.columns
        except FileNotFoundError:
            return []

    def checksums(self) -> dict[str, str]:
        """SHA-256, by name, of the files that may have rows in the time range.

        If a file cannot be read, those of all files; without files, none.
        """
        try:
            files = self.events.files(self.begin, self.end) + self.served.files(self.begin, self.end)
        except FileNotFoundError:
            files = []
        except DataError:
            home = Storage.of(self.directory)
            files = [(home, name) for name in (EVENTS_FILE, SERVED_FILE) if home.exists(name)]
            files += [(self.storage, name) for folder in (EVENTS, SERVED) for name in self.storage.parts(folder)]
        return {name: storage.checksum(name) for storage, name in files}

    def event_spans(self, further: Sequence[pa.Field] = ()) -> Iterator[Span]:
        """Read the events span by span, sorted by time and ID, without duplicates and erased users.

        further: columns to read besides those that arrays are made of; null in files without them. Raises DataError if
        the log has events but none in the time range.
        """
        schema = pa.schema([*_EVENT_COLUMNS, *further])
        deduplicator, bounds = Deduplicator(), self.events.bounds
        if bounds is not None and (bounds[0] >= self.end or bounds[1] < self.begin):
            first, last = (datetime.fromtimestamp(at / 1e6, UTC).isoformat() for at in bounds)
            raise DataError(f"no event is in the requested time range; the log is from {first} to {last}")
        for table in self.events.spans(schema.names, self.begin, self.end):
            table = _complete(erasures.without_erased(table, self.erased, "timestamp"), schema)
            span = _span(table, "timestamp", "event_id")
            # Different events with the same ID are both kept; a data check reports them.
            parts = [span.key, *(hashes(to_strings(span.table[c])) for c in ("user_id", "item_id", "event"))]
            mixed = np.zeros(len(span.key), np.uint64)
            for part in parts:
                mixed = (mixed ^ part) * np.uint64(0x9E3779B97F4A7C15)  # odd, so the product is invertible
            span = span.filter(deduplicator.is_first(mixed, span.at))
            if len(span.at):
                yield span

    def served_spans(
        self,
        columns: Sequence[str] = _SERVED_FIELDS.names,
        begin: int = EARLIEST,
        end: int = LATEST,
        deduplicator: Deduplicator | None = None,
    ) -> Iterator[pa.Table]:
        """Read the served lists span by span, sorted by time, without duplicates and erased users.

        begin, end: time range, Unix microseconds. deduplicator: pass the same one to continue an earlier read.
        """
        deduplicator = deduplicator or Deduplicator()
        required = list(dict.fromkeys(("request_id", "at", "user_id", *columns)))
        schema = pa.schema([_SERVED_FIELDS.field(name) for name in required])
        for table in self.served.spans(required, max(begin, self.begin), min(end, self.end)):
            span = _span(_complete(erasures.without_erased(table, self.erased, "at"), schema), "at", "request_id")
            yield span.filter(deduplicator.is_first(span.key, span.at)).table.select(list(columns))

    def read_served(self, columns: Sequence[str] = _SERVED_FIELDS.names) -> pa.Table:
        """All served lists as one table, possibly empty."""
        schema = pa.schema([_SERVED_FIELDS.field(name) for name in columns])
        return pa.concat_tables([schema.empty_table(), *self.served_spans(columns)])


class Span(NamedTuple):
    """Rows of a log, sorted by time and key. at: int64[n], Unix microseconds. key: uint64[n], hash of the row's ID."""

    table: pa.Table
    at: I64
    key: U64

    def filter(self, rows: Bool) -> Span:
        """The rows where a mask is True."""
        return Span(self.table.filter(pa.array(rows)), self.at[rows], self.key[rows]) if not rows.all() else self


def _span(table: pa.Table, time_column: str, id_column: str) -> Span:
    at, key = to_microseconds(table[time_column]), hashes(to_strings(table[id_column]))
    order = np.lexsort((key, at))
    return Span(table.take(pa.array(order)), at[order], key[order])


def _complete(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with all columns of a schema, in its types, so that tables from different sources can be combined."""
    columns = [
        table[f.name].cast(f.type, safe=False) if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


class MappedEvents(Events):
    """Events in memory-mapped files. Pages are released from memory while they are read part by part."""

    def parts(self, rows: int = CHUNK_ROWS) -> Iterator[Events]:
        for part in super().parts(rows):
            yield part
            if len(part) > _RELEASE_EVERY:
                release_pages(self)

    def take(self, rows: Bool | I64 | slice) -> Events:
        out = super().take(rows)
        # Rows selected from all over the log are copies, but reading them loads every page.
        if not isinstance(rows, slice) and len(self) > _RELEASE_EVERY:
            release_pages(self)
        return out


class Log(NamedTuple):
    """A log as arrays. The fields are those of `offline.data.dataset.Dataset`."""

    events: Events
    event_id: Strings
    event_key: U64
    shown: Events
    merges: Merges = NO_MERGES


def load_log(files: LogFiles, catalogue: Catalogue, scratch: Path | None = None) -> Log:
    """Load a log as arrays in temporary files.

    scratch: directory for the files, by default the system's. Raises DataError for invalid files and FileNotFoundError
    if there are none.
    """
    directory = Path(tempfile.gettempdir()) if scratch is None else scratch
    encoder, served = _EventEncoder(catalogue), _ServedLists.of(files)
    with ExitStack() as stack:
        events, unsent = (stack.enter_context(AppendOnlyArrays(directory, _TYPES)) for _ in range(2))
        ids, requests = (stack.enter_context(AppendOnlyStrings(directory)) for _ in range(2))
        keys = stack.enter_context(AppendOnlyArrays(directory, {"key": np.uint64}))

        def append_unsent(end: int) -> None:
            for span in served.unsent(end):
                _, columns, new_requests = encoder.encode(span)
                unsent.append(**columns)
                requests.append(new_requests)

        for span in files.event_spans():
            append_unsent(int(span.at[-1]) + 1)
            order, columns, new_requests = encoder.encode(span)
            events.append(**columns)
            requests.append(new_requests)
            ids.append(to_strings(span.table["event_id"].take(pa.array(order))))
            keys.append(key=span.key[order])
        append_unsent(LATEST)
        merges = _merges(files, encoder.users)
        user_ids, request_ids, queries = list(encoder.users), requests.mapped(), encoder.queries
        sent, added = events.mapped(), unsent.mapped()
        log = MappedEvents(**sent, user_ids=user_ids, request_ids=request_ids, queries=queries)
        shown = log
        if len(added["at"]):
            merged = _merge_logs(sent, added, directory)
            shown = MappedEvents(**merged, user_ids=user_ids, request_ids=request_ids, queries=queries)
        return Log(log, ids.mapped(), keys.mapped()["key"], shown, merges)


def _merges(files: LogFiles, users: dict[str, int]) -> Merges:
    """The merges before the end of the time range of users who are in the log; adds the users they were merged into.

    users: number by ID.
    """
    source, into, at = list[int](), list[int](), list[float]()
    for table in files.merges.spans(("user_id", "from_id", "at"), EARLIEST, files.end):
        rows = erasures.without_erased(table, files.erased, MERGES_FORM.moment)
        rows = rows.sort_by([(name, "ascending") for name in ("at", "from_id", "user_id")])
        times = to_microseconds(rows["at"]) / 1e6
        pairs = zip(rows["from_id"].to_pylist(), rows["user_id"].to_pylist(), times.tolist(), strict=True)
        for from_id, user_id, time in pairs:
            if from_id in users:
                source.append(users[from_id])
                into.append(users.setdefault(user_id, len(users)))
                at.append(time)
    return Merges(np.array(source, np.int32), np.array(into, np.int32), np.array(at, np.float64))


class _EventEncoder:
    """Encodes spans as arrays. users, queries: numbers of users and queries of requests, as in `Events`, so far."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._items = StringIndex.of(list(catalogue.item_ids))
        self.users: dict[str, int] = {}
        self.queries: dict[int, str] = {}
        self._requests, self._sessions = IdEncoder(), IdEncoder()

    def encode(self, span: Span) -> tuple[I64, dict[str, np.ndarray], Strings]:
        """The order of the rows by time, kind and item, the arrays in that order, and the IDs of new requests."""
        table, at = span.table, span.at
        item = self._item(table)
        kind = pc.index_in(table["event"], pa.array(KINDS)).to_numpy().astype(np.int8)
        order = np.lexsort((span.key, item, kind, at))
        table = table.take(pa.array(order))
        begin = int(at[0]) if len(at) else 0
        request, new_requests = self._requests.encode(table["request_id"].combine_chunks(), begin)
        self._add_queries(table, request)
        session, _ = self._sessions.encode(table["session_id"].combine_chunks(), begin)
        return (
            order,
            {
                "at": at[order] / 1e6,
                "user": self._user(table),
                "item": item[order],
                "kind": kind[order],
                "request": request,
                "position": pc.fill_null(table["position"], -1).to_numpy(),
                "value": table["value"].to_numpy(),
                "session": session,
                "device": _devices(table),
            },
            new_requests,
        )

    def _add_queries(self, table: pa.Table, request: I32) -> None:
        """Store the query of each request: that of its first impression with a query."""
        shown = pc.equal(table["event"], KINDS[Kind.IMPRESSION]).to_numpy()
        rows = np.flatnonzero(shown & pc.is_valid(table["query"]).to_numpy() & (request >= 0))
        for number, text in zip(request[rows].tolist(), table["query"].take(pa.array(rows)).to_pylist(), strict=True):
            if text.strip():
                self.queries.setdefault(number, text)

    def _item(self, table: pa.Table) -> I32:
        encoded = table["item_id"].combine_chunks().dictionary_encode()
        out: I32 = self._items.find(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]
        return out

    def _user(self, table: pa.Table) -> I32:
        encoded = table["user_id"].combine_chunks().dictionary_encode()
        number = [self.users.setdefault(user, len(self.users)) for user in encoded.dictionary.to_pylist()]
        out: I32 = np.array(number, np.int32)[encoded.indices.to_numpy()]
        return out


def _devices(table: pa.Table) -> I8:
    encoded = table["device"].combine_chunks().dictionary_encode()
    code = np.array([*(device_code(name) for name in encoded.dictionary.to_pylist()), NO_DEVICE], np.int8)
    out: I8 = code[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)]
    return out


class _ServedLists:
    """Served lists with a user but without any logged impression."""

    def __init__(self, files: LogFiles, unsent: U64) -> None:
        """unsent: uint64, hashes of the IDs of these lists, ascending."""
        self._files, self._unsent = files, unsent
        self._until, self._deduplicator = EARLIEST, Deduplicator()

    @classmethod
    def of(cls, files: LogFiles) -> _ServedLists:
        parts = [
            hashes(to_strings(t.filter(pc.is_valid(t["user_id"]))["request_id"]))
            for t in files.served_spans(("request_id", "user_id"))
        ]
        key = np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))
        sent = np.zeros(len(key), np.bool_)
        columns = ("timestamp", "event", "request_id")
        for table in files.events.spans(columns, files.begin, files.end) if len(key) else ():
            shown = table.filter(pc.equal(table["event"].cast(pa.string()), KINDS[Kind.IMPRESSION]))["request_id"]
            logged = hashes(to_strings(shown.filter(pc.is_valid(shown)).unique()))
            index = np.minimum(np.searchsorted(key, logged), len(key) - 1)
            sent[index[key[index] == logged]] = True
        return cls(files, key[~sent])

    def unsent(self, end: int) -> Iterator[Span]:
        """One impression per position of these lists, from the `end` of the last call to `end` (exclusive, Unix
        microseconds)."""
        if len(self._unsent):
            for table in self._files.served_spans(_LIST_COLUMNS, self._until, end, self._deduplicator):
                yield self._impressions(table)
            self._until = end

    def _impressions(self, served: pa.Table) -> Span:
        served = served.filter(pc.is_valid(served["user_id"]))
        served = served.filter(pa.array(np.isin(hashes(to_strings(served["request_id"])), self._unsent)))
        lists = served.combine_chunks()["item_ids"].combine_chunks()
        parent = pc.list_parent_indices(lists)
        position = np.arange(len(parent)) - np.searchsorted(parent.to_numpy(), parent.to_numpy())
        row = served.select(["request_id", "at", "user_id", "device", "query"]).take(parent)
        number = pa.array(position).cast(pa.string())
        columns = {
            "event_id": pc.binary_join_element_wise(row["request_id"], number, "#"),
            "event": pa.array([KINDS[Kind.IMPRESSION]] * len(parent), pa.string()),
            "user_id": row["user_id"],
            "item_id": pc.list_flatten(lists),
            "timestamp": row["at"],
            "request_id": row["request_id"],
            "position": pa.array(position, pa.int16()),
            "device": row["device"],
            "query": row["query"],
        }
        return _span(_complete(pa.table(columns), _EVENT_COLUMNS), "timestamp", "event_id")


def _merge_logs(one: Arrays, other: Arrays, scratch: Path) -> Arrays:
    """Merge the rows of two logs, sorted by time, kind and item."""
    i = j = 0
    with AppendOnlyArrays(scratch, _TYPES) as out:
        while i < len(one["at"]) or j < len(other["at"]):
            # Merge up to a time in the first log, or to the end. Rows with equal times are merged in the same step.
            until = one["at"][i + SPAN_ROWS] if i + SPAN_ROWS < len(one["at"]) else np.inf
            k, m = (int(np.searchsorted(log["at"], until, "left")) for log in (one, other))
            if (k, m) == (i, j):
                k, m = (int(np.searchsorted(log["at"], until, "right")) for log in (one, other))
            rows = {c: np.concatenate((one[c][i:k], other[c][j:m])) for c in _TYPES}
            order = np.lexsort((rows["item"], rows["kind"], rows["at"]))
            out.append(**{c: column[order] for c, column in rows.items()})
            i, j = k, m
        return out.mapped()


_HISTORY_TYPES = {"row": np.int64, "item": np.int32, "kind": np.int8, "at": np.float64}


def user_histories(
    events: Events, scratch: Path, retention: Retention, merges: Merges = NO_MERGES, event_key: U64 | None = None
) -> Histories:
    """Sort the events by user, into temporary files. scratch: as in `load_log`. event_key: as in `Histories`."""
    count = np.zeros((2, events.n_users), np.int64)
    for part in events.parts():
        shown = part.kind == Kind.IMPRESSION
        for k, rows in enumerate((~shown, shown)):
            count[k] += np.bincount(part.user[rows], minlength=events.n_users)
    start = np.concatenate((np.zeros((2, 1), np.int64), np.cumsum(count, axis=1)), axis=1)
    with ExitStack() as stack:
        columns = [
            {
                n: _create_column(stack.enter_context(tempfile.TemporaryFile(dir=scratch)), t, int(s[-1]))
                for n, t in _HISTORY_TYPES.items()
            }
            for s in start
        ]
        next_free, first = start[:, :-1].copy(), 0
        for part in events.parts():
            shown = part.kind == Kind.IMPRESSION
            for k, rows in enumerate((np.flatnonzero(~shown), np.flatnonzero(shown))):
                _scatter(part, rows, first, next_free[k], columns[k])
                release_pages(*columns[k].values())
            first += len(part)
    engaged, impressions = (EventsByUser(s, **by_name) for s, by_name in zip(start, columns, strict=True))
    return Histories(engaged, impressions, retention.of_all(events.user_ids), merges, event_key)


def _create_column(file: IO[bytes], dtype: type, rows: int) -> NDArray[Any]:
    if not rows:
        return np.empty(0, dtype)
    # Allocate the disk space now: writing to a mapping on a full disk would kill the process without a message.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, rows * np.dtype(dtype).itemsize)
    return np.memmap(file, dtype, "r+", shape=(rows,)).view(np.ndarray)


def _scatter(part: Events, rows: I64, first: int, next_free: I64, columns: Arrays) -> None:
    """Write rows of a part of the log to the next free positions of their users. first: row number of the part."""
    rows = rows[np.argsort(part.user[rows], kind="stable")]
    user = part.user[rows]
    position = next_free[user] + np.arange(len(user)) - np.searchsorted(user, user)
    values = {"row": first + rows, "item": part.item[rows], "kind": part.kind[rows], "at": part.at[rows]}
    for name, value in values.items():
        columns[name][position] = value
    next_free += np.bincount(user, minlength=len(next_free))
