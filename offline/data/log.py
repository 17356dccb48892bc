"""The log of a data set: its files read by span of time, erased users left out, and made into arrays.

Ids become numbers in the order in which they appear in time, and equal times have one order, so the arrays are the same
however the log is cut into files, and in whatever order these were written.
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
from features.history import EventsByUser, Histories
from features.kernels.strings import Places, Strings, hashes
from features.log import KINDS, PART_ROWS, Events, Kind
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
from offline.data.schema import EVENTS, EVENTS_FILE, EVENTS_FORM, EVENTS_SCHEMA, SERVED, SERVED_FORM, SERVED_SCHEMA
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
_LIST_COLUMNS = ("request_id", "at", "user_id", "device", "query", "item_ids")


@dataclass(frozen=True)
class LogFiles:
    """The files of a data set's log. directory: of the data set. storage: where its day partitions are. begin, end: the
    time that is read of it, from the one up to, not including, the other, Unix microseconds."""

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
        """storage: as `Storage.of` takes it; None is the data set's own directory. since, until: Unix seconds."""
        begin, end = (
            otherwise if moment is None else round(moment * 1e6)
            for moment, otherwise in ((since, EARLIEST), (until, LATEST))
        )
        return cls(directory, Storage.of(directory if storage is None else storage), begin, end)

    @cached_property
    def events(self) -> Partitions:
        """`events.parquet`, day partitions, or both. Raises FileNotFoundError where there is neither."""
        home = Storage.of(self.directory)
        single = [(home, EVENTS_FILE)] if home.exists(EVENTS_FILE) else []
        parts = [(self.storage, name) for name in self.storage.parts(EVENTS)]
        if not single and not parts:
            path = self.directory / EVENTS_FILE
            raise FileNotFoundError(f"{path}: no such file; make it with `shelfwise import` or `shelfwise simulate`")
        return Partitions([*single, *parts], EVENTS_FORM)

    @cached_property
    def served(self) -> Partitions:
        """What was collected of answered lists; of no file where nothing was."""
        return Partitions([(self.storage, name) for name in self.storage.parts(SERVED)], SERVED_FORM)

    @property
    def collected(self) -> bool:
        """Whether any of it came from a service."""
        return bool(self.storage.parts(EVENTS) or self.storage.parts(SERVED))

    @cached_property
    def gone(self) -> erasures.Erasures:
        """Who was erased."""
        return erasures.read_erasures(self.directory)

    @property
    def event_columns(self) -> list[str]:
        """The columns that a file of events has; none where there is no file."""
        try:
            return self.events.columns
        except FileNotFoundError:
            return []

    def checksums(self) -> dict[str, str]:
        """SHA-256 by name of the files that may hold a row of the time that is read. Of a log with a file that cannot
        be read, of all of them; of no log, none."""
        try:
            files = self.events.files(self.begin, self.end) + self.served.files(self.begin, self.end)
        except FileNotFoundError:
            files = []
        except DataError:
            home = Storage.of(self.directory)
            files = [(home, EVENTS_FILE)] if home.exists(EVENTS_FILE) else []
            files += [(self.storage, name) for folder in (EVENTS, SERVED) for name in self.storage.parts(folder)]
        return {name: storage.checksum(name) for storage, name in files}

    def event_spans(self) -> Iterator[Span]:
        """The events by span, equal times by id, each once, erased users left out.

        Raises DataError where there are some, but none of the time that is read.
        """
        once, bounds = Deduplicator(), self.events.bounds
        if bounds is not None and (bounds[0] >= self.end or bounds[1] < self.begin):
            first, last = (datetime.fromtimestamp(at / 1e6, UTC).isoformat() for at in bounds)
            raise DataError(f"no event lies in the time asked for; the log is from {first} to {last}")
        for table in self.events.spans(EVENTS_SCHEMA.names, self.begin, self.end):
            span = _span(
                _complete(erasures.without_erased(table, self.gone, "timestamp"), EVENTS_SCHEMA),
                "timestamp",
                "event_id",
            )
            # The same id for another event is another event, and a check says so.
            said = [span.key, *(hashes(to_strings(span.table[c])) for c in ("user_id", "item_id", "event"))]
            mixed = np.zeros(len(span.key), np.uint64)
            for part in said:
                mixed = (mixed ^ part) * np.uint64(0x9E3779B97F4A7C15)  # odd, so nothing is lost
            span = span.only(once.first(mixed, span.at))
            if len(span.at):
                yield span

    def served_spans(
        self,
        columns: Sequence[str] = SERVED_SCHEMA.names,
        begin: int = EARLIEST,
        end: int = LATEST,
        once: Deduplicator | None = None,
    ) -> Iterator[pa.Table]:
        """The answered lists by span, each once, in order of time, erased users left out.

        begin, end: Unix microseconds. once: what was read of them before, where this goes on.
        """
        once = once or Deduplicator()
        needed = list(dict.fromkeys(("request_id", "at", "user_id", *columns)))
        schema = pa.schema([SERVED_SCHEMA.field(name) for name in needed])
        for table in self.served.spans(needed, max(begin, self.begin), min(end, self.end)):
            span = _span(_complete(erasures.without_erased(table, self.gone, "at"), schema), "at", "request_id")
            yield span.only(once.first(span.key, span.at)).table.select(list(columns))

    def read_served(self, columns: Sequence[str] = SERVED_SCHEMA.names) -> pa.Table:
        """All answered lists; no rows where there are none."""
        schema = pa.schema([SERVED_SCHEMA.field(name) for name in columns])
        return pa.concat_tables([schema.empty_table(), *self.served_spans(columns)])


class Span(NamedTuple):
    """Rows of a log in order of time, equal times by the hash of their id (key). at: int64, Unix microseconds."""

    table: pa.Table
    at: I64
    key: U64

    def only(self, rows: Bool) -> Span:
        """The rows of a mask."""
        return Span(self.table.filter(pa.array(rows)), self.at[rows], self.key[rows]) if not rows.all() else self


def _span(table: pa.Table, moment: str, id_column: str) -> Span:
    at, key = to_microseconds(table[moment]), hashes(to_strings(table[id_column]))
    order = np.lexsort((key, at))
    return Span(table.take(pa.array(order)), at[order], key[order])


def _complete(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """All columns of a schema in its types, so that tables of different origin stand together."""
    columns = [
        table[f.name].cast(f.type, safe=False) if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


class MappedEvents(Events):
    """Events in mapped files: what was read of them leaves memory as they are gone through."""

    def parts(self, rows: int = PART_ROWS) -> Iterator[Events]:
        for part in super().parts(rows):
            yield part
            if len(part) > _RELEASE_EVERY:
                release_pages(self)

    def take(self, rows: Bool | I64 | slice) -> Events:
        out = super().take(rows)
        # Rows from all over the log touch every page of it, and are copies.
        if not isinstance(rows, slice) and len(self) > _RELEASE_EVERY:
            release_pages(self)
        return out


class Log(NamedTuple):
    """A log as arrays. events, event_id, event_key, shown: as in `offline.data.dataset.Dataset`."""

    events: Events
    event_id: Strings
    event_key: U64
    shown: Events


def load_log(files: LogFiles, catalogue: Catalogue, scratch: Path | None = None) -> Log:
    """The log as arrays in files of this process's own.

    scratch: a directory on the disk that is to hold them; the system's if None. Raises DataError and FileNotFoundError
    as the files have it.
    """
    where = Path(tempfile.gettempdir()) if scratch is None else scratch
    coder, answered = _EventEncoder(catalogue), _ServedLists.of(files)
    with ExitStack() as stack:
        events, unsent = (stack.enter_context(AppendOnlyArrays(where, _TYPES)) for _ in range(2))
        ids, requests = (stack.enter_context(AppendOnlyStrings(where)) for _ in range(2))
        keys = stack.enter_context(AppendOnlyArrays(where, {"key": np.uint64}))

        def list_until(end: int) -> None:
            for span in answered.unsent(end):
                _, columns, fresh = coder.coded(span)
                unsent.append(**columns)
                requests.append(fresh)

        for span in files.event_spans():
            list_until(int(span.at[-1]) + 1)
            order, columns, fresh = coder.coded(span)
            events.append(**columns)
            requests.append(fresh)
            ids.append(to_strings(span.table["event_id"].take(pa.array(order))))
            keys.append(key=span.key[order])
        list_until(LATEST)
        users, told = list(coder.users), requests.mapped()
        sent, more = events.mapped(), unsent.mapped()
        queries = coder.queries
        held = MappedEvents(**sent, user_ids=users, request_ids=told, queries=queries)
        shown = held
        if len(more["at"]):
            shown = MappedEvents(**_merge_logs(sent, more, where), user_ids=users, request_ids=told, queries=queries)
        return Log(held, ids.mapped(), keys.mapped()["key"], shown)


class _EventEncoder:
    """Turns spans into arrays, giving out numbers. queries: as in `Events`, of what was turned so far."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._items = Places.of(Strings.of(list(catalogue.item_ids)))
        self.users: dict[str, int] = {}
        self.queries: dict[int, str] = {}
        self._requests, self._sessions = IdEncoder(), IdEncoder()

    def coded(self, span: Span) -> tuple[I64, dict[str, np.ndarray], Strings]:
        """The order of the rows by time, kind and item; the arrays in that order; the new requests."""
        table, at = span.table, span.at
        item = self._item(table)
        kind = pc.index_in(table["event"], pa.array(KINDS)).to_numpy().astype(np.int8)
        order = np.lexsort((span.key, item, kind, at))
        table = table.take(pa.array(order))
        begin = int(at[0]) if len(at) else 0
        request, fresh = self._requests.of(table["request_id"].combine_chunks(), begin)
        self._searched(table, request)
        session, _ = self._sessions.of(table["session_id"].combine_chunks(), begin)
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
            fresh,
        )

    def _searched(self, table: pa.Table, request: I32) -> None:
        """Keep what was typed for each request: of its impressions, the first that says."""
        shown = pc.equal(table["event"], KINDS[Kind.IMPRESSION]).to_numpy()
        rows = np.flatnonzero(shown & pc.is_valid(table["query"]).to_numpy() & (request >= 0))
        for number, text in zip(request[rows].tolist(), table["query"].take(pa.array(rows)).to_pylist(), strict=True):
            if text.strip():
                self.queries.setdefault(number, text)

    def _item(self, table: pa.Table) -> I32:
        coded = table["item_id"].combine_chunks().dictionary_encode()
        out: I32 = self._items.find(coded.dictionary.to_pylist())[coded.indices.to_numpy()]
        return out

    def _user(self, table: pa.Table) -> I32:
        coded = table["user_id"].combine_chunks().dictionary_encode()
        number = [self.users.setdefault(user, len(self.users)) for user in coded.dictionary.to_pylist()]
        out: I32 = np.array(number, np.int32)[coded.indices.to_numpy()]
        return out


def _devices(table: pa.Table) -> I8:
    said = table["device"].combine_chunks().dictionary_encode()
    code = np.array([*(device_code(name) for name in said.dictionary.to_pylist()), NO_DEVICE], np.int8)
    out: I8 = code[pc.fill_null(said.indices, -1).to_numpy(zero_copy_only=False)]
    return out


class _ServedLists:
    """Lists that were answered to somebody, and those of them of which no impression was ever sent."""

    def __init__(self, files: LogFiles, unsent: U64) -> None:
        """unsent: hashes of the ids of those lists, ascending."""
        self._files, self._unsent = files, unsent
        self._until, self._once = EARLIEST, Deduplicator()

    @classmethod
    def of(cls, files: LogFiles) -> _ServedLists:
        found = [
            hashes(to_strings(t.filter(pc.is_valid(t["user_id"]))["request_id"]))
            for t in files.served_spans(("request_id", "user_id"))
        ]
        key = np.unique(np.concatenate([np.empty(0, np.uint64), *found]))
        sent = np.zeros(len(key), np.bool_)
        told_of = ("timestamp", "event", "request_id")
        for table in files.events.spans(told_of, files.begin, files.end) if len(key) else ():
            shown = table.filter(pc.equal(table["event"].cast(pa.string()), KINDS[Kind.IMPRESSION]))["request_id"]
            told = hashes(to_strings(shown.filter(pc.is_valid(shown)).unique()))
            place = np.minimum(np.searchsorted(key, told), len(key) - 1)
            sent[place[key[place] == told]] = True
        return cls(files, key[~sent])

    def unsent(self, end: int) -> Iterator[Span]:
        """An impression for each place of the lists of which none was sent, from where the last call ended up to, not
        including, `end` (Unix microseconds)."""
        if len(self._unsent):
            for table in self._files.served_spans(_LIST_COLUMNS, self._until, end, self._once):
                yield self._shown(table)
            self._until = end

    def _shown(self, served: pa.Table) -> Span:
        served = served.filter(pc.is_valid(served["user_id"]))
        served = served.filter(pa.array(np.isin(hashes(to_strings(served["request_id"])), self._unsent)))
        lists = served.combine_chunks()["item_ids"].combine_chunks()
        parent = pc.list_parent_indices(lists)
        place = np.arange(len(parent)) - np.searchsorted(parent.to_numpy(), parent.to_numpy())
        row = served.select(["request_id", "at", "user_id", "device", "query"]).take(parent)
        number = pa.array(place).cast(pa.string())
        given = {
            "event_id": pc.binary_join_element_wise(row["request_id"], number, "#"),
            "event": pa.array([KINDS[Kind.IMPRESSION]] * len(parent), pa.string()),
            "user_id": row["user_id"],
            "item_id": pc.list_flatten(lists),
            "timestamp": row["at"],
            "request_id": row["request_id"],
            "position": pa.array(place, pa.int16()),
            "device": row["device"],
            "query": row["query"],
        }
        return _span(_complete(pa.table(given), EVENTS_SCHEMA), "timestamp", "event_id")


def _merge_logs(one: Arrays, other: Arrays, scratch: Path) -> Arrays:
    """The rows of two sets of arrays in one, by time, kind and item."""
    i = j = 0
    with AppendOnlyArrays(scratch, _TYPES) as out:
        while i < len(one["at"]) or j < len(other["at"]):
            # Up to a moment of the first, or to the end: rows of one moment come together.
            until = one["at"][i + SPAN_ROWS] if i + SPAN_ROWS < len(one["at"]) else np.inf
            k, m = (int(np.searchsorted(held["at"], until, "left")) for held in (one, other))
            if (k, m) == (i, j):
                k, m = (int(np.searchsorted(held["at"], until, "right")) for held in (one, other))
            rows = {c: np.concatenate((one[c][i:k], other[c][j:m])) for c in _TYPES}
            order = np.lexsort((rows["item"], rows["kind"], rows["at"]))
            out.append(**{c: column[order] for c, column in rows.items()})
            i, j = k, m
        return out.mapped()


_SEGMENT = {"row": np.int64, "item": np.int32, "kind": np.int8, "at": np.float64}


def user_histories(events: Events, scratch: Path) -> Histories:
    """Every user's lists at any moment, sorted by user in files of this process's own; scratch: as in `load`."""
    count = np.zeros((2, events.n_users), np.int64)
    for part in events.parts():
        shown = part.kind == Kind.IMPRESSION
        for k, rows in enumerate((~shown, shown)):
            count[k] += np.bincount(part.user[rows], minlength=events.n_users)
    start = np.concatenate((np.zeros((2, 1), np.int64), np.cumsum(count, axis=1)), axis=1)
    with ExitStack() as stack:
        held = [
            {
                n: _create_column(stack.enter_context(tempfile.TemporaryFile(dir=scratch)), t, int(s[-1]))
                for n, t in _SEGMENT.items()
            }
            for s in start
        ]
        following, first = start[:, :-1].copy(), 0
        for part in events.parts():
            shown = part.kind == Kind.IMPRESSION
            for k, rows in enumerate((np.flatnonzero(~shown), np.flatnonzero(shown))):
                _scatter(part, rows, first, following[k], held[k])
                release_pages(*held[k].values())
            first += len(part)
    return Histories(*(EventsByUser(s, **columns) for s, columns in zip(start, held, strict=True)))


def _create_column(file: IO[bytes], kind: type, rows: int) -> NDArray[Any]:
    if not rows:
        return np.empty(0, kind)
    # A mapping that finds no room later would kill the process without a word.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, rows * np.dtype(kind).itemsize)
    return np.memmap(file, kind, "r+", shape=(rows,)).view(np.ndarray)


def _scatter(part: Events, rows: I64, first: int, following: I64, held: Arrays) -> None:
    """Put rows of a part of the log, whose own first is row `first`, behind those that their users have already."""
    rows = rows[np.argsort(part.user[rows], kind="stable")]
    user = part.user[rows]
    place = following[user] + np.arange(len(user)) - np.searchsorted(user, user)
    columns = {"row": first + rows, "item": part.item[rows], "kind": part.kind[rows], "at": part.at[rows]}
    for name, column in columns.items():
        held[name][place] = column
    following += np.bincount(user, minlength=len(following))
