"""A data set in the layout, read from disk into the arrays everything else speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import F64, I32, I64, U64
from features.catalogue import Catalogue
from features.kernels.strings import Strings
from features.log import Events
from offline.config import ITEM_COLUMNS, AttributeKind
from offline.data import written_items
from offline.data.attributes import convert_attributes
from offline.data.log import LogFiles
from offline.data.log import load_log as load_log
from offline.data.partitions import Storage
from offline.data.schema import AGAIN
from offline.runtime import DataError

_ITEMS, _TRUTH, _PROPENSITIES = "items.parquet", "truth.parquet", "propensities.parquet"
_NEEDED = {
    _ITEMS: ("item_id", "title"),
    _TRUTH: ("request_id", "item_id", "utility"),
    _PROPENSITIES: ("request_id", "item_id", "position", "propensity"),
}
_NEVER_NULL = {
    _ITEMS: ("item_id",),
    _TRUTH: ("request_id", "item_id", "utility"),
    _PROPENSITIES: ("request_id", "item_id", "position", "propensity"),
}


T = TypeVar("T")


class ListAnnotations(Generic[T]):
    """What is told of items of lists, a value by (request_id, item_id); looked up for lists that are asked about."""

    def __init__(self, parts: Callable[[], Iterator[pa.Table]], read: Callable[[pa.Table], Iterator[T]]) -> None:
        """parts: tables with `request_id` and `item_id`. read: the value of each row of one."""
        self._parts, self._read = parts, read

    def of(self, request_ids: Sequence[str]) -> dict[tuple[str, str], T]:
        """What is told of the items of these lists."""
        wanted = pa.array(request_ids, pa.string())
        out: dict[tuple[str, str], T] = {}
        for part in self._parts():
            some = part.filter(pc.is_in(part["request_id"], wanted))
            pairs = zip(some["request_id"].to_pylist(), some["item_id"].to_pylist(), strict=True)
            out |= dict(zip(pairs, self._read(some), strict=True))
        return out


@dataclass(frozen=True)
class Dataset:
    """A catalogue and its event log.

    items: the table of `items.parquet`, rows in the catalogue's order. event_id, event_key (uint64): of each row of
    `events`, and a hash of it. shown: `events`, and an impression for each place of an answered list of which no
    impression was ever sent: for query groups alone, as what the service knows of users and items has none of them
    either. truth: the simulator's hidden utility, None for real data and once there are collected lists. propensities:
    (position, chance in (0, 1]): where the item stood in a list that was shown in a partly random order, and with what
    chance it came to stand there; None where lists were not logged with it.
    """

    items: pa.Table
    catalogue: Catalogue
    events: Events
    event_id: Strings
    event_key: U64
    shown: Events
    truth: ListAnnotations[float] | None
    propensities: ListAnnotations[tuple[int, float]] | None = None


def load_dataset(
    directory: Path,
    attributes: Mapping[str, AttributeKind] | None = None,
    log: LogFiles | Storage | Path | str | None = None,
    scratch: Path | None = None,
) -> Dataset:
    """The data set in a directory, its log as arrays in files of this process's own.

    log: its files, or where its day partitions are, if not in the directory. scratch: as in `offline.data.log.load`.
    Raises FileNotFoundError naming the file that is missing, and DataError naming file, column and row of what is not
    as the layout says; both say how to make it.
    """
    if not (directory / _ITEMS).is_file():
        raise _missing(directory / _ITEMS)
    items = written_items.overlay_written(_table(directory / _ITEMS), written_items.read_written_items(directory))
    items = items.sort_by("item_id").combine_chunks()
    items = convert_attributes(items, attributes or {}, str(directory / _ITEMS))
    found = read_catalogue(items, str(directory / _ITEMS))
    files = log if isinstance(log, LogFiles) else LogFiles.of(directory, log)
    held = load_log(files, found, scratch)
    propensities = _propensities(directory / _PROPENSITIES) or _read_propensities(files)
    # The simulator knows nothing of lists that were answered since.
    truth = None if files.collected else _truth(directory / _TRUTH)
    return Dataset(items, found, held.events, held.event_id, held.event_key, held.shown, truth, propensities)


def annotation_table(path: Path) -> pa.Table:
    """The table of a file of `BESIDE`: see `beside_parts`."""
    return pa.concat_tables(iter_annotations(path))


def iter_annotations(path: Path) -> Iterator[pa.Table]:
    """A file of `BESIDE` in parts, one at least, its columns alone: ids are text, positions int16, the others float64.

    Raises DataError naming file, row and column of what is missing, not a number, or beyond what it may be: a utility
    is finite, a propensity in (0, 1], a position from 0.
    """
    types = {"position": pa.int16(), "propensity": pa.float64(), "utility": pa.float64()}
    row = 0
    for table in _tables(path, _NEEDED[path.name]):
        try:
            part = pa.table({n: table[n].cast(types.get(n, pa.string())) for n in table.column_names})
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
            said = " ".join(str(e).split())[:200]
            raise DataError(f"{path}: {said}; {', '.join(types)} are numbers, ids texts") from e
        value = part.column_names[-1]
        numbers = part[value].to_numpy()
        good = np.isfinite(numbers) if value == "utility" else (numbers > 0) & (numbers <= 1)
        if not good.all():
            wrong = int(np.flatnonzero(~good)[0])
            allowed = "a finite number" if value == "utility" else "above 0 and at most 1"
            raise DataError(f"{path}, row {row + wrong}, column {value!r}: is {numbers[wrong]}, expected {allowed}")
        yield part
        row += len(part)


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{path}: no such file; make it with `shelfwise import` or `shelfwise simulate`")


def _table(path: Path) -> pa.Table:
    """A file of the layout, checked to have the columns that are needed and no gap where none may be."""
    return pa.concat_tables(_tables(path))


def _tables(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The same in parts, one at least."""
    row = 0
    with Storage.of(path.parent).parquet(path.name) as file:
        for name in _NEEDED[path.name]:
            if name not in file.schema_arrow.names:
                raise DataError(f"{path}: has no column {name!r}; {AGAIN}")
        yield file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)
        for batch in file.iter_batches(columns=columns):
            table = pa.Table.from_batches([batch])
            for name in _NEVER_NULL[path.name]:
                if table[name].null_count:
                    wrong = row + int(np.flatnonzero(table[name].is_null().to_numpy(zero_copy_only=False))[0])
                    raise DataError(f"{path}, row {wrong}, column {name!r}: is null, which it may not be; {AGAIN}")
            yield table
            row += len(table)


def read_catalogue(items: pa.Table, file: str = _ITEMS) -> Catalogue:
    """The catalogue as arrays, from a table of items sorted by `item_id`.

    Attributes: integers, floats and booleans (0 and 1) are numbers, timestamps are numbers of years since 1970, texts
    and lists of texts are tags. Raises DataError, naming `file` and the column, for any other type, and for an id that
    stands twice.
    """
    ids = items["item_id"].to_pylist()
    if twice := next((a for a, b in pairwise(ids) if a == b), None):
        raise DataError(f"{file}, column 'item_id': {twice!r} stands twice; {AGAIN}")
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
    )


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


def _truth(path: Path) -> ListAnnotations[float] | None:
    return ListAnnotations(_checked(path), lambda t: iter(t["utility"].to_pylist())) if path.is_file() else None


def _propensities(path: Path) -> ListAnnotations[tuple[int, float]] | None:
    return ListAnnotations(_checked(path), _placed) if path.is_file() else None


def _checked(path: Path) -> Callable[[], Iterator[pa.Table]]:
    """The parts of a file of `BESIDE`, looked through once now, so that what is wrong is said at the door."""
    for _ in iter_annotations(path):
        pass
    return lambda: iter_annotations(path)


def _placed(table: pa.Table) -> Iterator[tuple[int, float]]:
    return zip(table["position"].to_pylist(), table["propensity"].to_pylist(), strict=True)


def _read_propensities(files: LogFiles) -> ListAnnotations[tuple[int, float]] | None:
    """The same of answered lists, where some were shown with exploration on."""
    if not any(t["propensity"].null_count < len(t) for t in files.served_spans(("propensity",))):
        return None

    def parts() -> Iterator[pa.Table]:
        for table in files.served_spans(("request_id", "item_ids", "propensity")):
            some = table.filter(pc.is_valid(table["propensity"])).combine_chunks()
            lists = some["item_ids"].combine_chunks()
            of = pc.list_parent_indices(lists)
            yield pa.table(
                {
                    "request_id": some["request_id"].take(of),
                    "item_id": pc.list_flatten(lists),
                    "position": np.arange(len(of)) - np.searchsorted(of.to_numpy(), of.to_numpy()),
                    "propensity": pc.list_flatten(some["propensity"].combine_chunks()),
                }
            )

    return ListAnnotations(parts, _placed)
