"""A data set in the layout, read from disk into the arrays everything else speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.catalogue import Catalogue
from features.context import NO_DEVICE, device_code
from features.log import F64, I8, I32, I64, KINDS, Events
from offline import erasures, written_items
from offline.attributes import read_as
from offline.layout import EVENTS_SCHEMA, SERVED_SCHEMA
from offline.quarantine import DataError
from offline.sources import ITEM_COLUMNS, AttributeKind

_ITEMS, _EVENTS, _TRUTH, _PROPENSITIES = "items.parquet", "events.parquet", "truth.parquet", "propensities.parquet"
_PARTS, _SERVED = "events", "served"
"""Folders of what `shelfwise collect` brought."""
_NEEDED = {
    _ITEMS: ("item_id", "title"),
    _EVENTS: ("event_id", "event", "user_id", "item_id", "timestamp", "request_id", "position", "value"),
    _TRUTH: ("request_id", "item_id", "utility"),
    _PROPENSITIES: ("request_id", "item_id", "position", "propensity"),
}
_NEVER_NULL = {
    _ITEMS: ("item_id",),
    _EVENTS: ("event_id", "event", "user_id", "item_id", "timestamp"),
    _TRUTH: ("request_id", "item_id", "utility"),
    _PROPENSITIES: ("request_id", "item_id", "position", "propensity"),
}
_AGAIN = "make the data set again with `shelfwise import` or `shelfwise simulate`"


@dataclass(frozen=True)
class Dataset:
    """A catalogue and its event log.

    items: the table of `items.parquet`, rows in the catalogue's order. event_id: of each row of `events`. shown:
    `events`, and an impression for each place of an answered list of which no impression was ever sent: for query
    groups alone, as what the service knows of users and items has none of them either. truth: the simulator's hidden
    utility by (request_id, item_id), None for real data and once there are collected lists. propensities: (position,
    chance in (0, 1]) by (request_id, item_id): where the item stood in a list that was shown in a partly random order,
    and with what chance it came to stand there; None where lists were not logged with it.
    """

    items: pa.Table
    catalogue: Catalogue
    events: Events
    event_id: pa.Array
    shown: Events
    truth: Mapping[tuple[str, str], float] | None
    propensities: Mapping[tuple[str, str], tuple[int, float]] | None = None

    def between(self, begin: float, end: float) -> Dataset:
        """The same with the events from `begin` up to, not including, `end` (Unix seconds); users keep their numbers.

        Raises DataError where there are none.
        """
        at = self.events.at
        kept = slice(*(int(np.searchsorted(at, moment, side="left")) for moment in (begin, end)))
        listed = (self.shown.at >= begin) & (self.shown.at < end)
        if kept == slice(0, len(at)) and len(at) and listed.all():
            return self
        if kept.start >= kept.stop:
            first, last = (datetime.fromtimestamp(t, UTC).isoformat() for t in (at[0], at[-1])) if len(at) else ("", "")
            raise DataError(f"no event lies in the time asked for; the log is from {first} to {last}")
        return replace(
            self, events=self.events.take(kept), event_id=self.event_id[kept], shown=self.shown.take(listed)
        )  # fmt: skip


def load(directory: Path, attributes: Mapping[str, AttributeKind] | None = None) -> Dataset:
    """The data set in a directory.

    Raises FileNotFoundError naming the file that is missing, and DataError naming file, column and row of what is not
    as the layout says; both say how to make it.
    """
    if not (directory / _ITEMS).is_file():
        raise _missing(directory / _ITEMS)
    items = written_items.merged(_table(directory / _ITEMS), written_items.read(directory))
    items = items.sort_by("item_id").combine_chunks()
    items = read_as(items, attributes or {}, str(directory / _ITEMS))
    found = catalogue(items, str(directory / _ITEMS))
    events, event_id, shown = read_events(directory, found)
    propensities = _propensities(directory / _PROPENSITIES) or _explored(directory)
    # The simulator knows nothing of lists that were answered since.
    truth = None if _parts(directory, _PARTS) or _parts(directory, _SERVED) else _truth(directory / _TRUTH)
    return Dataset(items, found, events, event_id, shown, truth, propensities)


def beside(path: Path) -> pa.Table:
    """The table of a file of `BESIDE`, its columns alone: ids are text, positions int16, the others float64.

    Raises DataError naming file, row and column of what is missing, not a number, or beyond what it may be: a utility
    is finite, a propensity in (0, 1], a position from 0.
    """
    table = _table(path).select(_NEEDED[path.name])
    types = {"position": pa.int16(), "propensity": pa.float64(), "utility": pa.float64()}
    try:
        table = pa.table({n: table[n].cast(types.get(n, pa.string())) for n in table.column_names})
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        raise DataError(f"{path}: {' '.join(str(e).split())[:200]}; {', '.join(types)} are numbers, ids texts") from e
    value = table.column_names[-1]
    numbers = table[value].to_numpy()
    good = np.isfinite(numbers) if value == "utility" else (numbers > 0) & (numbers <= 1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        allowed = "a finite number" if value == "utility" else "above 0 and at most 1"
        raise DataError(f"{path}, row {row}, column {value!r}: is {numbers[row]}, expected {allowed}")
    return table


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{path}: no such file; make it with `shelfwise import` or `shelfwise simulate`")


def _parts(directory: Path, folder: str) -> list[Path]:
    """The files of a collected log, in order of arrival."""
    return sorted((directory / folder).glob("date=*/part-*.parquet"))


def read_events(directory: Path, catalogue: Catalogue) -> tuple[Events, pa.Array, Events]:
    """`events`, `event_id` and `shown` of a `Dataset`, with items as a catalogue numbers them.

    From `events.parquet`, what was collected, or both, an event that is in both once; erased users are left out.
    """
    gone, path = erasures.read(directory), directory / _EVENTS
    parts = _parts(directory, _PARTS)
    if not path.is_file() and not parts:
        raise _missing(path)
    table = _table(path) if path.is_file() else None
    if parts:
        tables = [_whole(t) for t in (table, *(_table(p, _EVENTS) for p in parts)) if t is not None]
        table = _once(pa.concat_tables(tables), "event_id")
    assert table is not None
    table = erasures.kept(table, gone, "timestamp")
    unsent = _unsent(directory, table, gone)
    if unsent is None:
        events, event_id = _events(table, path, catalogue)
        return events, event_id, events
    events, event_id = _events(pa.concat_tables([_whole(table), unsent]), path, catalogue)
    # Of the same users and requests by number: one is part of the other.
    sent = ~pc.is_in(event_id, unsent["event_id"].combine_chunks()).to_numpy(zero_copy_only=False)
    return events.take(sent), event_id.filter(pa.array(sent)), events


def read_served(directory: Path) -> pa.Table:
    """What was collected of answered lists, each request once, erased users left out; no rows where there is none."""
    parts = _parts(directory, _SERVED)
    if not parts:
        return SERVED_SCHEMA.empty_table()
    tables = []
    for part in parts:
        try:
            tables.append(pq.read_table(part, schema=SERVED_SCHEMA, partitioning=None))
        except (pa.ArrowException, OSError) as e:
            raise DataError(f"{part}: cannot be read ({' '.join(str(e).split())[:200]}); restore it from a copy") from e
    return erasures.kept(_once(pa.concat_tables(tables), "request_id"), erasures.read(directory), "at")


def _unsent(directory: Path, events: pa.Table, gone: erasures.Erasures) -> pa.Table | None:
    """An impression for each place of a served list of which the log holds none; None where there is no such list."""
    served = read_served(directory)
    if not len(served):
        return None
    shown = events.filter(pc.equal(events["event"].cast(pa.string()), "impression"))["request_id"].cast(pa.string())
    served = served.filter(
        pc.and_(pc.invert(pc.is_in(served["request_id"], pc.unique(shown))), pc.is_valid(served["user_id"]))
    ).combine_chunks()
    if not len(served):
        return None
    lists = served["item_ids"].combine_chunks()
    of = pc.list_parent_indices(lists)
    place = np.arange(len(of)) - np.searchsorted(of.to_numpy(), of.to_numpy())
    row = served.select(["request_id", "at", "user_id", "device"]).take(of)
    given = {
        "event_id": pc.binary_join_element_wise(
            row["request_id"], pa.array(place).cast(pa.string()), "#"
        ), "event": pa.array(["impression"] * len(of)), "user_id": row["user_id"], "item_id": pc.list_flatten(lists),
        "timestamp": row["at"], "request_id": row["request_id"], "position": pa.array(place, pa.int16()),
        "device": row["device"],
    }  # fmt: skip
    return _whole(pa.table(given))


def _whole(events: pa.Table) -> pa.Table:
    """Events with all columns of the layout, in one form, so that tables of different origin stand together."""
    columns = [
        events[f.name].cast(f.type, safe=False) if f.name in events.column_names else pa.nulls(len(events), f.type)
        for f in EVENTS_SCHEMA
    ]
    return pa.Table.from_arrays([c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in columns],
                                schema=EVENTS_SCHEMA)  # fmt: skip


def _once(table: pa.Table, column: str) -> pa.Table:
    """The first row of each value."""
    first = table.append_column("#row", pa.array(np.arange(len(table)))).group_by(column).aggregate([("#row", "min")])
    return table.take(pa.array(np.sort(first["#row_min"].to_numpy())))


def _table(path: Path, kind: str = "") -> pa.Table:
    """A file of the layout, checked to have the columns that are needed and no gap where none may be.

    kind: the file it is a part of.
    """
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: cannot be read as Parquet ({' '.join(str(e).split())[:200]}); {_AGAIN}") from e
    for name in _NEEDED[kind or path.name]:
        if name not in table.column_names:
            raise DataError(f"{path}: has no column {name!r}; {_AGAIN}")
    for name in _NEVER_NULL[kind or path.name]:
        if table[name].null_count:
            row = int(np.flatnonzero(table[name].is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(f"{path}, row {row}, column {name!r}: is null, which it may not be; {_AGAIN}")
    return table


def catalogue(items: pa.Table, file: str = _ITEMS) -> Catalogue:
    """The catalogue as arrays, from a table of items sorted by `item_id`.

    Attributes: integers, floats and booleans (0 and 1) are numbers, timestamps are numbers of years since 1970, texts
    and lists of texts are tags. Raises DataError, naming `file` and the column, for any other type, and for an id that
    stands twice.
    """
    ids = items["item_id"].to_pylist()
    if twice := next((a for a, b in pairwise(ids) if a == b), None):
        raise DataError(f"{file}, column 'item_id': {twice!r} stands twice; {_AGAIN}")
    category, category_names = _codes(items, "category")
    brand, brand_names = _codes(items, "brand")
    kinds = {f.name: _kind(f, file) for f in items.schema if f.name not in ITEM_COLUMNS}
    number_names, date_names, list_names, text_names = (
        [name for name, found in kinds.items() if found == kind] for kind in ("number", "date", "list", "text")
    )
    numbers = [_numbers(items, n) for n in number_names] + [_seconds(items, n) / (365.25 * 86400) for n in date_names]
    tag_start, tag, tag_names = _tags(items, list_names, text_names)
    titles = [t or i for t, i in zip(items["title"].to_pylist(), ids, strict=True)]
    return Catalogue(
        ids, titles, _numbers(items, "price"), category, category_names, brand, brand_names,
        _seconds(items, "available_from"),
        np.column_stack(numbers) if numbers else np.empty((len(ids) + 1, 0)),
        number_names + date_names, tag_start, tag, tag_names, date_names,
    )  # fmt: skip


def _kind(field: pa.Field, file: str) -> str:
    """What an attribute is: number, date, list, text, or, where no item has it, nothing."""
    kind = field.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "number"
    if pa.types.is_timestamp(kind):
        return "date"
    if is_text or (is_list and (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type))):
        return "text" if is_text else "list"
    if pa.types.is_null(kind):
        return "nothing"
    raise DataError(
        f"{file}, column {field.name!r}: is {kind}; an attribute is a number, a text, a list of texts or a timestamp: "
        "bring the file in with `shelfwise import`, or leave the column out"
    )


def _column(items: pa.Table, name: str) -> pa.ChunkedArray | None:
    return items[name] if name in items.column_names else None


def _numbers(items: pa.Table, name: str) -> F64:
    column = _column(items, name)
    if column is None:
        return np.full(len(items) + 1, np.nan)
    # Not safely: an integer beyond 2^53 is rounded, as every number of a feature is.
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.append(np.where(np.isfinite(values), values, np.nan), np.nan)


def _seconds(items: pa.Table, name: str) -> F64:
    column = _column(items, name)
    if column is None:
        return np.full(len(items) + 1, np.nan)
    micros = column.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64()).cast(pa.float64())
    return np.append(micros.to_numpy(zero_copy_only=False) / 1e6, np.nan)


def _codes(items: pa.Table, name: str) -> tuple[I32, Sequence[str]]:
    """Codes in the order of the sorted names; missing, and the unknown item, have the names' count."""
    column = _column(items, name)
    if column is None:
        return np.zeros(len(items) + 1, np.int32), []
    column = column.cast(pa.string())
    names = sorted(v for v in pc.unique(column).to_pylist() if v)
    code = pc.fill_null(pc.index_in(column, pa.array(names, pa.string())), len(names))
    return np.append(code.to_numpy(zero_copy_only=False), len(names)).astype(np.int32), names


def _tags(items: pa.Table, list_names: Sequence[str], text_names: Sequence[str]) -> tuple[I64, I32, Sequence[str]]:
    """All values of list and string attributes as `attribute=value`, in one ragged array."""
    owner, value = [np.empty(0, np.int64)], [pa.array([], pa.string())]
    for name in (*list_names, *text_names):
        column = items[name].combine_chunks()
        if name in list_names:
            parents, values = pc.list_parent_indices(column), pc.list_flatten(column)
        else:
            parents, values = pa.array(np.arange(len(column))), column
        known = pc.and_(pc.is_valid(values), pc.not_equal(pc.fill_null(values, ""), ""))
        values = pc.filter(values, known).cast(pa.string())
        owner.append(pc.filter(parents, known).to_numpy(zero_copy_only=False).astype(np.int64))
        value.append(pc.binary_join_element_wise(name, values, "="))
    owners = np.concatenate(owner)
    encoded = pa.concat_arrays([pa.array(v, pa.string()) for v in value]).dictionary_encode()
    code = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    # A value that stands twice in an item's list is one value.
    distinct = np.unique(owners << 32 | code)
    start = np.searchsorted(distinct >> 32, np.arange(len(items) + 1))
    return np.append(start, start[-1]), (distinct & 0xFFFFFFFF).astype(np.int32), encoded.dictionary.to_pylist()


def _events(table: pa.Table, path: Path, catalogue: Catalogue) -> tuple[Events, pa.Array]:
    user = table["user_id"].combine_chunks().dictionary_encode()
    request = table["request_id"].combine_chunks().dictionary_encode()
    item = pc.fill_null(pc.index_in(table["item_id"], pa.array(catalogue.item_ids, table["item_id"].type)), -1)
    kind = pc.index_in(table["event"].cast(pa.string()), pa.array(KINDS))
    if kind.null_count:
        row = int(np.flatnonzero(kind.is_null().to_numpy(zero_copy_only=False))[0])
        held = table["event"][row].as_py()
        raise DataError(f"{path}, row {row}, column 'event': {held!r} is not one of {', '.join(KINDS)}; {_AGAIN}")
    at = table["timestamp"].cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64()).to_numpy() / 1e6
    item_code = item.to_numpy().astype(np.int32)
    kind_code = kind.to_numpy().astype(np.int8)
    order = np.lexsort((item_code, kind_code, at))
    events = Events(
        at[order], user.indices.to_numpy().astype(np.int32)[order], item_code[order], kind_code[order],
        pc.fill_null(request.indices, -1).to_numpy().astype(np.int32)[order],
        pc.fill_null(table["position"].cast(pa.int16()), -1).to_numpy().astype(np.int16)[order],
        table["value"].cast(pa.float64()).to_numpy()[order],
        user.dictionary.to_pylist(), request.dictionary.to_pylist(),
        _sessions(table)[order], _devices(table)[order],
    )  # fmt: skip
    return events, table["event_id"].combine_chunks().take(pa.array(order))


def _sessions(events: pa.Table) -> I32:
    """A number for each session, `-1` where an event was logged with none."""
    column = _column(events, "session_id")
    if column is None:
        return np.full(len(events), -1, np.int32)
    codes = pc.fill_null(column.cast(pa.string()).combine_chunks().dictionary_encode().indices, -1)
    return np.asarray(codes.to_numpy(zero_copy_only=False), np.int32)


def _devices(events: pa.Table) -> I8:
    column = _column(events, "device")
    if column is None:
        return np.full(len(events), NO_DEVICE, np.int8)
    said = column.cast(pa.string()).combine_chunks().dictionary_encode()
    code = np.array([*(device_code(name) for name in said.dictionary.to_pylist()), NO_DEVICE], np.int8)
    out: I8 = code[pc.fill_null(said.indices, -1).to_numpy(zero_copy_only=False)]
    return out


def _truth(path: Path) -> Mapping[tuple[str, str], float] | None:
    if not path.is_file():
        return None
    t = beside(path)
    return dict(zip(_listed(t), t["utility"].to_pylist(), strict=True))


def _propensities(path: Path) -> Mapping[tuple[str, str], tuple[int, float]] | None:
    if not path.is_file():
        return None
    t = beside(path)
    values = zip(t["position"].to_pylist(), t["propensity"].to_pylist(), strict=True)
    return dict(zip(_listed(t), values, strict=True))


def _explored(directory: Path) -> Mapping[tuple[str, str], tuple[int, float]] | None:
    """The same of answered lists, where some were shown with exploration on."""
    served = read_served(directory).select(["request_id", "item_ids", "propensity"])
    lists = served.filter(pc.is_valid(served["propensity"])).to_pylist()
    return {
        (row["request_id"], item): (place, chance)
        for row in lists
        for place, (item, chance) in enumerate(zip(row["item_ids"], row["propensity"], strict=True))
    } or None


def _listed(table: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(table["request_id"].to_pylist(), table["item_id"].to_pylist(), strict=True)
