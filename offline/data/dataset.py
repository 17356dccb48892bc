"""Reading a data set from disk into arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import F32, F64, I32, I64, U64
from features.catalogue import STANDARD_COLUMNS, Catalogue
from features.columns import Column, Scalar, encode_usable, is_placement, with_placement
from features.columns import table as encoded_table
from features.history import NO_MERGES, Merges
from features.kernels.strings import Strings
from features.log import KINDS, Events, Kind, Lists
from offline.config import AttributeKind
from offline.data import imported, written_items
from offline.data.attributes import convert_attributes, is_value
from offline.data.log import LogFiles
from offline.data.log import load_log as load_log
from offline.data.partitions import Storage
from offline.data.schema import RECREATE
from offline.runtime import DataError

_ITEMS, _TRUTH, _PROPENSITIES = "items.parquet", "truth.parquet", "propensities.parquet"
_REQUIRED = {
    _ITEMS: ("item_id", "title"),
    _TRUTH: ("request_id", "item_id", "utility"),
    _PROPENSITIES: ("request_id", "item_id", "position", "propensity"),
}
_NEVER_NULL = {
    _ITEMS: ("item_id",),
    _TRUTH: ("request_id", "item_id", "utility"),
    _PROPENSITIES: ("request_id", "item_id", "position", "propensity"),
}


_DECODE_COLUMNS = msgspec.json.Decoder(dict[str, bool | float | str | list[bool | float | str | None] | None])


T = TypeVar("T")


class ListAnnotations(Generic[T]):
    """Values of the items of lists, by (request_id, item_id). The files are read at each lookup."""

    def __init__(self, parts: Callable[[], Iterator[pa.Table]], values: Callable[[pa.Table], Iterator[T]]) -> None:
        """parts: yields tables with `request_id` and `item_id`. values: the value of each row of a table."""
        self._parts, self._values = parts, values

    def of(self, request_ids: Sequence[str]) -> dict[tuple[str, str], T]:
        """The values of the items of these lists."""
        wanted = pa.array(request_ids, pa.string())
        out: dict[tuple[str, str], T] = {}
        for part in self._parts():
            rows = part.filter(pc.is_in(part["request_id"], wanted))
            pairs = zip(rows["request_id"].to_pylist(), rows["item_id"].to_pylist(), strict=True)
            out |= dict(zip(pairs, self._values(rows), strict=True))
        return out


@dataclass(frozen=True)
class Dataset:
    """A catalogue and its event log.

    items: the table of `items.parquet`, rows in the order of the catalogue. event_id, event_key (uint64): the ID of
    each row of `events`, and its hash. shown: `events`, plus one impression per position of every served list that has
    no logged impression. Use it for query groups only: the state of users and items in the service does not include
    these impressions either. truth: the hidden utility of the simulator; None for real data and if there are collected
    lists. propensities: (position, propensity) of the items of lists shown in partly random order, where propensity in
    (0, 1] is the probability of the item to be at that position; None if propensities were not logged. merges: of users
    of the log.
    """

    items: pa.Table
    catalogue: Catalogue
    events: Events
    event_id: Strings
    event_key: U64
    shown: Events
    truth: ListAnnotations[float] | None
    propensities: ListAnnotations[tuple[int, float]] | None = None
    merges: Merges = NO_MERGES


def load_dataset(
    directory: Path,
    attributes: Mapping[str, AttributeKind] | None = None,
    log: LogFiles | Storage | Path | str | None = None,
    scratch: Path | None = None,
) -> Dataset:
    """Load the data set in a directory, with its log as arrays in temporary files.

    attributes: types of item attributes, as in `convert_attributes`. log: the log files, or the location of the day
    partitions; by default `directory`. scratch: as in `load_log`. Raises FileNotFoundError for a missing file, and
    DataError, with file, column and row, for invalid content. Both messages say how to fix it.
    """
    items = load_items(directory, attributes)
    catalogue = read_catalogue(items, str(directory / _ITEMS))
    files = log if isinstance(log, LogFiles) else LogFiles.of(directory, log)
    arrays = load_log(files, catalogue, scratch)
    propensities = _propensities(directory / _PROPENSITIES) or _read_propensities(files)
    # The simulator has no utility for lists that a service served later.
    truth = None if files.collected else _truth(directory / _TRUTH)
    return Dataset(
        items,
        catalogue,
        arrays.events,
        arrays.event_id,
        arrays.event_key,
        arrays.shown,
        truth,
        propensities,
        arrays.merges,
    )


def load_items(directory: Path, attributes: Mapping[str, AttributeKind] | None = None) -> pa.Table:
    """The table of items, sorted by ID, with those written through the service.

    Arguments and errors are those of `load_dataset`.
    """
    if not (directory / _ITEMS).is_file():
        raise _missing(directory / _ITEMS)
    items = convert_attributes(_table(directory / _ITEMS), attributes or {}, str(directory / _ITEMS))
    items = written_items.overlay_written(items, written_items.read_written_items(directory))
    return items.sort_by("item_id").combine_chunks()


def annotation_table(path: Path) -> pa.Table:
    """Read one of `ANNOTATION_FILES` as a table. See `iter_annotations`."""
    return pa.concat_tables(iter_annotations(path))


def iter_annotations(path: Path) -> Iterator[pa.Table]:
    """Read the required columns of one of `ANNOTATION_FILES` as tables, at least one.

    IDs are strings, positions int16, other columns float64. Raises DataError, naming file, row and column, for missing
    values and for values of the wrong type or range: a utility must be finite, a propensity in (0, 1].
    """
    types = {"position": pa.int16(), "propensity": pa.float64(), "utility": pa.float64()}
    row = 0
    for table in _tables(path, _REQUIRED[path.name]):
        try:
            part = pa.table({n: table[n].cast(types.get(n, pa.string())) for n in table.column_names})
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
            reason = " ".join(str(e).split())[:200]
            raise DataError(f"{path}: {reason}; {', '.join(types)} must be numbers, and IDs strings") from e
        value = part.column_names[-1]
        numbers = part[value].to_numpy()
        valid = np.isfinite(numbers) if value == "utility" else (numbers > 0) & (numbers <= 1)
        if not valid.all():
            wrong = int(np.flatnonzero(~valid)[0])
            allowed = "a finite number" if value == "utility" else "above 0 and at most 1"
            raise DataError(f"{path}, row {row + wrong}, column {value!r}: is {numbers[wrong]}, expected {allowed}")
        yield part
        row += len(part)


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{path}: no such file; create it with `shelfwise import` or `shelfwise simulate`")


def _table(path: Path) -> pa.Table:
    """Read a file and check that it has the required columns, without nulls in columns that must not have any."""
    return pa.concat_tables(_tables(path))


def _tables(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Like `_table`, but batch by batch. The first table is empty. columns: to read, by default all."""
    row = 0
    with Storage.of(path.parent).parquet(path.name) as file:
        for name in _REQUIRED[path.name]:
            if name not in file.schema_arrow.names:
                raise DataError(f"{path}: has no column {name!r}; {RECREATE}")
        yield file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)
        for batch in file.iter_batches(columns=columns):
            table = pa.Table.from_batches([batch])
            for name in _NEVER_NULL[path.name]:
                if table[name].null_count:
                    wrong = row + int(np.flatnonzero(table[name].is_null().to_numpy(zero_copy_only=False))[0])
                    raise DataError(
                        f"{path}, row {wrong}, column {name!r}: is null, but a value is required; {RECREATE}"
                    )
            yield table
            row += len(table)


def read_catalogue(items: pa.Table, file: str = _ITEMS) -> Catalogue:
    """Convert a table of items, sorted by `item_id`, to arrays.

    Integer, float and boolean attributes become numbers, timestamps numbers of years since 1970, and strings and lists
    of strings tags. Raises DataError, naming `file` and the column, for other types and for duplicate IDs.
    """
    ids = items["item_id"].to_pylist()
    if duplicate := next((a for a, b in pairwise(ids) if a == b), None):
        raise DataError(f"{file}, column 'item_id': {duplicate!r} is not unique; {RECREATE}")
    category, category_names = _codes(items, "category")
    brand, brand_names = _codes(items, "brand")
    kinds = {f.name: _kind(f, file) for f in items.schema if f.name not in STANDARD_COLUMNS}
    number_names, date_names, list_names, text_names = (
        [name for name, k in kinds.items() if k == kind] for kind in ("number", "date", "list", "text")
    )
    value_names = [name for name, k in kinds.items() if k == "value"]
    numbers = [_numbers(items, n) for n in number_names] + [_seconds(items, n) / (365.25 * 86400) for n in date_names]
    tag_start, tag, tag_names = _tags(items, list_names, text_names)
    titles = [t or i for t, i in zip(items["title"].to_pylist(), ids, strict=True)]
    group, group_names = _groups(items, file)
    return Catalogue(
        ids,
        titles,
        _numbers(items, "price"),
        category,
        category_names,
        brand,
        brand_names,
        _seconds(items, "available_from"),
        np.column_stack(numbers) if numbers else np.empty((len(ids) + 1, 0)),
        number_names + date_names,
        tag_start,
        tag,
        tag_names,
        date_names,
        group,
        group_names,
        np.column_stack([_numbers(items, n) for n in value_names]) if value_names else np.empty((0, 0)),
        value_names,
        _withdrawn(items, file),
    )


def _withdrawn(items: pa.Table, file: str) -> I32:
    """Rows of the items that are not available, ascending."""
    column = _column(items, "available")
    if column is None:
        return np.empty(0, np.int32)
    if not pa.types.is_boolean(column.type) and not pa.types.is_null(column.type):
        raise DataError(f"{file}, column 'available': has type {column.type}, expected true or false; {RECREATE}")
    is_available = pc.fill_null(column.cast(pa.bool_()), True).to_numpy(zero_copy_only=False)
    return np.flatnonzero(~is_available).astype(np.int32)


def _groups(items: pa.Table, file: str) -> tuple[I32 | None, Sequence[str]]:
    """The groups of variants: (codes, names), the codes None if no item has a group."""
    column = _column(items, "group_id")
    if column is not None and pa.types.is_nested(column.type):
        raise DataError(f"{file}, column 'group_id': has type {column.type}; an item has one group, as a text")
    code, names = _codes(items, "group_id")
    return (code, names) if names else (None, ())


def _kind(field: pa.Field, file: str) -> str:
    """The kind of an attribute: "number", "value", "date", "list", "text", or "nothing" for a column without values."""
    kind = field.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_value(field):
        return "value"
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "number"
    if pa.types.is_timestamp(kind):
        return "date"
    if is_text or (is_list and (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type))):
        return "text" if is_text else "list"
    if pa.types.is_null(kind):
        return "nothing"
    raise DataError(
        f"{file}, column {field.name!r}: has type {kind}; an attribute must be a number, a string, a list of strings "
        "or a timestamp: load the file with `shelfwise import`, or remove the column"
    )


def _column(items: pa.Table, name: str) -> pa.ChunkedArray | None:
    return items[name] if name in items.column_names else None


def _numbers(items: pa.Table, name: str) -> F64:
    column = _column(items, name)
    if column is None:
        return np.full(len(items) + 1, np.nan)
    # safe=False rounds integers above 2^53, as features do anyway.
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.append(np.where(np.isfinite(values), values, np.nan), np.nan)


def _seconds(items: pa.Table, name: str) -> F64:
    column = _column(items, name)
    if column is None:
        return np.full(len(items) + 1, np.nan)
    micros = column.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64()).cast(pa.float64())
    return np.append(micros.to_numpy(zero_copy_only=False) / 1e6, np.nan)


def _codes(items: pa.Table, name: str) -> tuple[I32, Sequence[str]]:
    """Codes in the order of the sorted names. Missing values and the unknown item get the number of names."""
    column = _column(items, name)
    if column is None:
        return np.zeros(len(items) + 1, np.int32), []
    column = column.cast(pa.string())
    names = sorted(v for v in pc.unique(column).to_pylist() if v)
    code = pc.fill_null(pc.index_in(column, pa.array(names, pa.string())), len(names))
    return np.append(code.to_numpy(zero_copy_only=False), len(names)).astype(np.int32), names


def _tags(items: pa.Table, list_names: Sequence[str], text_names: Sequence[str]) -> tuple[I64, I32, Sequence[str]]:
    """All values of list and string attributes as `attribute=value`: offsets, codes and names of a ragged array."""
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
    # Count duplicate values in the list of an item once.
    distinct = np.unique(owners << 32 | code)
    start = np.searchsorted(distinct >> 32, np.arange(len(items) + 1))
    return np.append(start, start[-1]), (distinct & 0xFFFFFFFF).astype(np.int32), encoded.dictionary.to_pylist()


def _truth(path: Path) -> ListAnnotations[float] | None:
    return ListAnnotations(_checked(path), lambda t: iter(t["utility"].to_pylist())) if path.is_file() else None


def _propensities(path: Path) -> ListAnnotations[tuple[int, float]] | None:
    return ListAnnotations(_checked(path), _positions_and_propensities) if path.is_file() else None


def _checked(path: Path) -> Callable[[], Iterator[pa.Table]]:
    """The tables of one of `ANNOTATION_FILES`. The file is read once now, so that errors are raised early."""
    for _ in iter_annotations(path):
        pass
    return lambda: iter_annotations(path)


def _positions_and_propensities(table: pa.Table) -> Iterator[tuple[int, float]]:
    return zip(table["position"].to_pylist(), table["propensity"].to_pylist(), strict=True)


def _read_propensities(files: LogFiles) -> ListAnnotations[tuple[int, float]] | None:
    """Propensities of collected lists; None if no list has any."""
    if not any(t["propensity"].null_count < len(t) for t in files.served_spans(("propensity",))):
        return None

    def parts() -> Iterator[pa.Table]:
        for table in files.served_spans(("request_id", "item_ids", "propensity")):
            explored = table.filter(pc.is_valid(table["propensity"])).combine_chunks()
            lists = explored["item_ids"].combine_chunks()
            parent = pc.list_parent_indices(lists)
            yield pa.table(
                {
                    "request_id": explored["request_id"].take(parent),
                    "item_id": pc.list_flatten(lists),
                    "position": np.arange(len(parent)) - np.searchsorted(parent.to_numpy(), parent.to_numpy()),
                    "propensity": pc.list_flatten(explored["propensity"].combine_chunks()),
                }
            )

    return ListAnnotations(parts, _positions_and_propensities)


_ListRows = Mapping[str, Mapping[str, int]]
"""The row of each item of each list."""


def list_columns(
    files: LogFiles, lists: Lists, item_ids: Sequence[str], columns: Sequence[Column], user_ids: Sequence[str] = ()
) -> F32:
    """float32[columns, rows]: the values of declared columns for every row of these lists; NaN if none was logged.

    A served list keeps the columns of its request. An impression may have columns of its own, of an import or sent with
    the event; they count only if the request of the list had none, because the service ranked with those of the
    request. The placement of a list is its column `placement`, if that is declared as a category of the request and
    was not logged. The attributes of users are also those that the service ranked with; for a list that it did not
    rank, or ranked without attributes, those as of the time of the list. Values that cannot be used, such as a text in
    a column of numbers, are missing.

    item_ids, user_ids: of the catalogue and of the log.
    """
    out = np.full((len(columns), lists.rows), np.nan, np.float32)
    if columns and lists.rows:
        rows = {
            request: {item_ids[lists.item[row]]: row for row in range(*bounds)}
            for request, bounds in zip(lists.request_ids, pairwise(lists.start.tolist()), strict=True)
        }
        placed = [k for k, column in enumerate(columns) if is_placement(column)]
        if placed:
            _fill_placements(out, columns, placed, lists, _shown_placements(files, lists))
        _fill(out, columns, *_of_impressions(files, rows, int(lists.at.min() * 1e6)))
        of_user = [k for k, column in enumerate(columns) if column.per == "user"]
        served = _of_served(files, rows, bool(of_user))
        out[:, served.row] = np.nan
        if placed:
            _fill_placements(out, columns, placed, lists, _served_placements(files, lists))
        _fill(out, columns, served.row, served.values)
        if of_user:
            _fill_attributes(out, columns, of_user, served.attributes, files, lists, user_ids)
    return out


def list_placements(files: LogFiles, lists: Lists) -> dict[str, str]:
    """The placement of each of these lists that has one, by request ID.

    It is that of the request, if the service ranked the list and the request named one. Otherwise it is that of the
    first impression with a placement, and never of a click: that would reveal which lists were clicked.
    """
    return _shown_placements(files, lists) | _served_placements(files, lists) if len(lists) else {}


def list_seeds(files: LogFiles, lists: Lists, catalogue: Catalogue) -> I32:
    """int32[g, m], as in `Lists`: the items that the requests of these lists named; empty if none did.

    They are in the log of served lists. A list that the service did not rank, or that was rebuilt, has none.
    """
    row_of = {request: g for g, request in enumerate(lists.request_ids)}
    wanted, found = pa.array(list(row_of), pa.string()), dict[int, I32]()
    for table in files.served_spans(("request_id", "items")):
        part = table.filter(pc.and_(pc.is_valid(table["items"]), pc.is_in(table["request_id"], wanted)))
        for request, items in zip(part["request_id"].to_pylist(), part["items"].to_pylist(), strict=True):
            rows = catalogue.rows(items)
            found[row_of[request]] = rows[rows >= 0]
    width = max(map(len, found.values()), default=0)
    out = np.full((len(lists) if width else 0, width), -1, np.int32)
    for g, rows in found.items() if width else ():
        out[g, : len(rows)] = rows
    return out


def _served_placements(files: LogFiles, lists: Lists) -> dict[str, str]:
    wanted, out = pa.array(list(lists.request_ids), pa.string()), dict[str, str]()
    for table in files.served_spans(("request_id", "placement")):
        part = table.filter(pc.and_(pc.is_valid(table["placement"]), pc.is_in(table["request_id"], wanted)))
        out |= dict(zip(part["request_id"].to_pylist(), part["placement"].to_pylist(), strict=True))
    return out


def _shown_placements(files: LogFiles, lists: Lists) -> dict[str, str]:
    out = dict[str, str]()
    if "placement" not in files.event_columns:
        return out
    wanted, begin = pa.array(list(lists.request_ids), pa.string()), max(int(lists.at.min() * 1e6), files.begin)
    for table in files.events.spans(("timestamp", "event", "request_id", "placement"), begin, files.end):
        if "placement" not in table.column_names:
            continue
        shown = pc.equal(table["event"].cast(pa.string()), KINDS[Kind.IMPRESSION])
        has = pc.and_(pc.is_valid(table["placement"]), pc.is_in(table["request_id"].cast(pa.string()), wanted))
        part = table.filter(pc.and_(shown, has)).sort_by([("timestamp", "ascending"), ("placement", "ascending")])
        for request, name in zip(part["request_id"].to_pylist(), part["placement"].to_pylist(), strict=True):
            out.setdefault(request, name)
    return out


def _fill_placements(
    out: F32, columns: Sequence[Column], placed: Sequence[int], lists: Lists, placements: Mapping[str, str]
) -> None:
    """Write the placements of lists. placed: numbers of the columns that have them."""
    for g, request in enumerate(lists.request_ids):
        if request in placements:
            for k in placed:
                out[k, lists.start[g] : lists.start[g + 1]] = columns[k].code(placements[request])


def _fill_attributes(
    out: F32,
    columns: Sequence[Column],
    of_user: Sequence[int],
    ranked_with: Mapping[str, Mapping[str, Any]],
    files: LogFiles,
    lists: Lists,
    user_ids: Sequence[str],
) -> None:
    """Write the attributes of users. of_user: indices of their columns. ranked_with: see `_ServedColumns`."""
    users = [user_ids[u] for u in lists.user.tolist()]
    written = imported.UserAttributes(files, set(users))
    for g in np.argsort(lists.at, kind="stable").tolist():
        as_of = written.at(users[g], float(lists.at[g]))
        known = ranked_with.get(lists.request_ids[g], as_of)
        for k in of_user:
            (code,) = encode_usable(columns[k], [known.get(columns[k].name)])
            out[k, lists.start[g] : lists.start[g + 1]] = code


def _fill(out: F32, columns: Sequence[Column], row: list[int], values: Mapping[str, list[Scalar]]) -> None:
    """Write the values that are not missing. values: by column, one for each of the rows."""
    for k, column in enumerate(columns):
        if column.per != "user" and column.name in values:
            code = encode_usable(column, values[column.name])
            known = ~np.isnan(code)
            out[k, np.array(row, np.int64)[known]] = code[known]


def _of_impressions(files: LogFiles, rows: _ListRows, begin: int) -> tuple[list[int], dict[str, list[Scalar]]]:
    """The rows of impressions that have columns, and their values. begin: time of the first list, Unix microseconds."""
    place, values = list[int](), dict[str, list[Scalar]]()
    if "columns" not in files.event_columns:
        return place, values
    wanted = pa.array(list(rows), pa.string())
    names = ("timestamp", "event", "request_id", "item_id", "columns")
    for table in files.events.spans(names, max(begin, files.begin), files.end):
        if "columns" not in table.column_names:
            continue
        shown = pc.equal(table["event"].cast(pa.string()), KINDS[Kind.IMPRESSION])
        has = pc.and_(pc.is_valid(table["columns"]), pc.is_in(table["request_id"].cast(pa.string()), wanted))
        part = table.filter(pc.and_(shown, has))
        texts = part["columns"].cast(pa.string()).combine_chunks().dictionary_encode()
        decoded = [_decode_columns(text) for text in texts.dictionary.to_pylist()]
        ids = zip(part["request_id"].to_pylist(), part["item_id"].to_pylist(), texts.indices.to_pylist(), strict=True)
        for request, item, text in ids:
            if (row := rows[request].get(item)) is not None:
                _append(values, len(place), decoded[text])
                place.append(row)
    return place, _padded(values, len(place))


class _ServedColumns(NamedTuple):
    """The columns and attributes of lists that the service ranked.

    row: rows of the lists whose request had columns. values: of the request's columns by name, one for each of these
    rows. attributes: of the user, by request ID; only of lists that were ranked with attributes.
    """

    row: list[int]
    values: dict[str, list[Scalar]]
    attributes: dict[str, Mapping[str, Any]]


def _of_served(files: LogFiles, rows: _ListRows, with_attributes: bool) -> _ServedColumns:
    """Read the log of served lists once. with_attributes: also read those of users."""
    out = _ServedColumns([], {}, {})
    wanted = pa.array(list(rows), pa.string())
    for table in files.served_spans(("request_id", "item_ids", "columns", *["user_attributes"] * with_attributes)):
        has = pc.is_valid(table["columns"])
        if with_attributes:
            has = pc.or_(has, pc.is_valid(table["user_attributes"]))
        for served in table.filter(pc.and_(has, pc.is_in(table["request_id"], wanted))).to_pylist():
            request = served["request_id"]
            if (user := served.get("user_attributes")) is not None:
                out.attributes[request] = _decode_columns(user)
            if served["columns"] is None:
                continue
            sent = _decode_columns(served["columns"])
            for k, item in enumerate(served["item_ids"]):
                if (row := rows[request].get(item)) is not None:
                    _append(out.values, len(out.row), {n: v[k] if isinstance(v, list) else v for n, v in sent.items()})
                    out.row.append(row)
    return out._replace(values=_padded(out.values, len(out.row)))


def _append(values: dict[str, list[Scalar]], count: int, one: Mapping[str, Any]) -> None:
    """Add the values of one row. count: number of rows before it."""
    for name, value in one.items():
        of_name = values.setdefault(name, [])
        of_name.extend([None] * (count - len(of_name)))
        of_name.append(None if isinstance(value, list) else value)


def _padded(values: dict[str, list[Scalar]], count: int) -> dict[str, list[Scalar]]:
    return {name: of_name + [None] * (count - len(of_name)) for name, of_name in values.items()}


def logged_table(columns: Sequence[Column], sent: str | None, user: str | None, placement: str | None) -> F32:
    """`features.columns.table` of a log record; values that cannot be used are missing.

    sent: columns of the request, user: attributes of its user, as JSON objects; None if there were none. placement: of
    the request.
    """
    with_all = with_placement(columns, _decode_columns(sent or "{}"), placement)
    return encoded_table(columns, with_all, _decode_columns(user or "{}"), strict=False)


def _decode_columns(text: str) -> Mapping[str, Any]:
    """The columns in a log, as they were sent; empty for a text that is not of this form."""
    try:
        return _DECODE_COLUMNS.decode(text)
    except msgspec.MsgspecError:
        return {}
