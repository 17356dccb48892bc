"""Reads source files in batches: Parquet, CSV, JSON lines, Metarank and GA4 events, each optionally with gzip.

Readers only parse formats; `validation` checks the values. A file that cannot be read raises `DataError`. A row that
cannot be read is added to the rejected rows of its batch.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from features.arrays import I64
from offline.runtime import DataError

ROWS = 65536
LINES = 16384
MAX_LINE = 16 * 2**20


class RefusedCell(NamedTuple):
    """A row that could not be parsed. row: as in `Batch.row`."""

    row: int
    column: str | None
    value: object
    reason: str


@dataclass(frozen=True)
class Batch:
    """A batch of rows of a file.

    columns: arrow arrays of equal length, by the file's column names (for Metarank and GA4, by canonical names). row:
    int64, the position of each row in the file, from 1. For CSV it is the record, with the header as 1; blank lines do
    not count, and a cell with line breaks is one record. For Parquet it is the row, for JSONL the line, which may hold
    several rows. read: bytes of the file read so far. refused: rows that could not be parsed. items: True if the rows
    are items, False if they are events. lines: number of parsed lines, for formats with several rows per line.
    """

    columns: dict[str, pa.Array]
    row: I64
    read: int
    refused: Sequence[RefusedCell] = field(default=())
    items: bool = False
    lines: int = 0


@contextmanager
def open_binary(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file's bytes, decompressed if it is gzip, and the raw file, whose `tell` gives the progress."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw) if packed else raw), raw
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file. Check `path` of this source.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory. Set `path` of this source to a file.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path.name}: the gzip data is truncated or corrupt ({error})."
            " Nothing was imported; download the file again."
        ) from None


def file_format(path: Path) -> str:
    """`parquet`, `csv`, `jsonl`, `metarank` or `ga4`, from the file name and, for JSON lines, the first line."""
    name = path.name.lower().removesuffix(".gz")
    for ending, known in ((".parquet", "parquet"), (".csv", "csv"), (".tsv", "csv"), (".jsonl", "jsonl")):
        if name.endswith(ending):
            return _json_dialect(path) if known == "jsonl" else known
    raise DataError(f"{path.name}: cannot detect the format from the file name. Set `format` of this source.")


def _json_dialect(path: Path) -> str:
    with open_binary(path) as (stream, _):
        try:
            first = msgspec.json.decode(stream.readline(MAX_LINE))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "jsonl"
    if not isinstance(first, dict):
        return "jsonl"
    if first.get("event") in ("item", "user", "ranking", "interaction") and "timestamp" in first:
        return "metarank"
    return "ga4" if "event_name" in first and "event_timestamp" in first else "jsonl"


# --- tables ---------------------------------------------------------------------------------------------------------


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file. Check `path` of this source.") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name}: cannot be read as Parquet ({error}). Export the file again.") from None


def _header(path: Path, encoding: str, delimiter: str) -> list[str]:
    with open_binary(path) as (stream, _):
        start = stream.readline(MAX_LINE)
        bom = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
        text = io.StringIO(start.decode(bom, "replace"), newline="")
        return next(csv.reader(text, delimiter=delimiter), [])


def column_names(path: Path, form: str, encoding: str = "utf-8", delimiter: str = ",") -> list[str] | None:
    """Column names of a Parquet or CSV file; None for JSON lines, whose keys may differ from line to line."""
    if form == "parquet":
        with _parquet(path) as file:
            return list(file.schema_arrow.names)
    if form == "csv":
        names = _header(path, encoding, delimiter)
        if not names:
            raise DataError(f"{path.name}: is empty. A CSV file must start with a header line.")
        return names
    return None


def read_parquet(path: Path, wanted: Sequence[str]) -> Iterator[Batch]:
    """Read the columns `wanted` of a Parquet file in batches."""
    with _parquet(path) as file:
        size, total, done = path.stat().st_size, max(1, file.metadata.num_rows), 0
        for part in file.iter_batches(ROWS, columns=list(wanted)):
            row = np.arange(done + 1, done + 1 + part.num_rows)
            done += part.num_rows
            yield Batch(dict(zip(part.schema.names, part.columns, strict=True)), row, size * done // total)


def read_csv(path: Path, wanted: Sequence[str], encoding: str = "utf-8", delimiter: str = ",") -> Iterator[Batch]:
    """Read the columns `wanted` of a CSV file as bytes, or text if `encoding` is not UTF-8. Empty cells stay empty."""
    bad: list[pa.csv.InvalidRow] = []

    def skip(row: pa.csv.InvalidRow) -> str:
        bad.append(row)
        return "skip"

    utf8 = encoding.lower() in ("utf-8", "utf8")
    with open_binary(path) as (stream, raw):
        try:
            reader = pa.csv.open_csv(
                stream,
                pa.csv.ReadOptions(use_threads=False, block_size=4 * 2**20, encoding="utf8" if utf8 else encoding),
                pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
                pa.csv.ConvertOptions(
                    column_types={c: pa.binary() if utf8 else pa.string() for c in wanted},
                    include_columns=list(wanted),
                    strings_can_be_null=False,
                    check_utf8=False,
                ),
            )
            yield from _csv_batches(reader, raw, bad)
        except (pa.ArrowException, UnicodeError, LookupError) as error:
            raise DataError(
                f"{path.name}: cannot be read as CSV ({error}). Check `encoding` and `delimiter` of this source, and"
                " look for an unclosed quote."
            ) from None


def _csv_batches(reader: Any, raw: IO[bytes], bad: list[Any]) -> Iterator[Batch]:
    at = 2  # the header is row 1
    for part in reader:
        skipped = {int(b.number) for b in bad}
        rows = np.arange(at, at + part.num_rows + len(skipped))
        at += len(rows)
        refused = [RefusedCell(int(b.number), None, b.text, "wrong_number_of_columns") for b in bad]
        bad.clear()
        good = rows[~np.isin(rows, list(skipped))]
        yield Batch(dict(zip(part.schema.names, part.columns, strict=True)), good, raw.tell(), refused)


# --- JSON lines -----------------------------------------------------------------------------------------------------


@dataclass
class _Chunk:
    objects: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    refused: list[RefusedCell] = field(default_factory=list)
    read: int = 0


def _decode(number: int, line: bytes, chunk: _Chunk) -> None:
    try:
        value = msgspec.json.decode(line)
    except UnicodeDecodeError:
        chunk.refused.append(RefusedCell(number, None, line, "bad_encoding"))
    except (msgspec.MsgspecError, RecursionError):
        chunk.refused.append(RefusedCell(number, None, line, "bad_json"))
    else:
        if isinstance(value, dict):
            chunk.objects.append((number, value))
        else:
            chunk.refused.append(RefusedCell(number, None, line, "not_an_object"))


def _chunks(path: Path) -> Iterator[_Chunk]:
    with open_binary(path) as (stream, raw):
        number, chunk = 0, _Chunk()
        while line := stream.readline(MAX_LINE):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                chunk.refused.append(RefusedCell(number, None, line[:1000], "line_too_long"))
                while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
            elif line.strip():
                _decode(number, line, chunk)
            if number % LINES == 0:
                chunk.read = raw.tell()
                yield chunk
                chunk = _Chunk()
        chunk.read = raw.tell()
        yield chunk


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _json_column(values: list[Any], lists: bool) -> tuple[pa.Array, list[int]]:
    """A column of JSON values, and the indices of values with an unsupported type. Mixed scalars become text."""
    kinds = {type(v) for v in values} - {type(None)}
    bad = [i for i, v in enumerate(values) if isinstance(v, dict) or (isinstance(v, list) and not lists)]
    if list in kinds and lists:
        bad += [i for i, v in enumerate(values) if isinstance(v, list) and any(isinstance(x, list | dict) for x in v)]
    if bad:
        wrong = set(bad)
        values = [None if i in wrong else v for i, v in enumerate(values)]
        kinds = {type(v) for v in values} - {type(None)}
    if list in kinds:
        tags = [v if v is None or isinstance(v, list) else [v] for v in values]
        return pa.array(
            [v if v is None else [_cell(x) for x in v if x is not None] for v in tags], pa.list_(pa.string())
        ), bad
    if kinds == {bool}:
        return pa.array(values, pa.bool_()), bad
    if kinds <= {int, float}:
        try:
            return pa.array(values, pa.float64() if float in kinds else pa.int64()), bad
        except (pa.ArrowException, OverflowError):
            pass  # a number beyond 64 bits: kept as text, so that a later check can reject it with a reason
    return pa.array([v if v is None else _cell(v) for v in values], pa.string()), bad


def _batch(
    row: list[int],
    columns: Mapping[str, list[Any]],
    chunk_read: int,
    refused: list[RefusedCell],
    scalars: frozenset[str],
    items: bool = False,
    lines: int = 0,
) -> Batch:
    out, wrong = {}, {}
    for name, values in columns.items():
        out[name], bad = _json_column(values, name not in scalars)
        wrong.update({i: RefusedCell(row[i], name, values[i], "wrong_type") for i in bad if i not in wrong})
    keep = np.array([i for i in range(len(row)) if i not in wrong], np.int64)
    at = np.array(row, np.int64)
    if wrong:
        out = {name: column.take(pa.array(keep)) for name, column in out.items()}
    return Batch(out, at[keep], chunk_read, [*refused, *wrong.values()], items, lines)


def read_jsonl(path: Path, wanted: Sequence[str] | None, scalars: frozenset[str]) -> Iterator[Batch]:
    """Read JSON lines with one object per line. wanted: keys to read, None for all. scalars: keys that reject lists."""
    for chunk in _chunks(path):
        names = wanted if wanted is not None else list(dict.fromkeys(k for _, o in chunk.objects for k in o))
        columns = {name: [o.get(name) for _, o in chunk.objects] for name in names}
        yield _batch([n for n, _ in chunk.objects], columns, chunk.read, chunk.refused, scalars)


# --- Metarank -------------------------------------------------------------------------------------------------------

EVENT_KEYS = (
    "event",
    "user_id",
    "item_id",
    "timestamp",
    "request_id",
    "position",
    "value",
    "session_id",
    "device",
    "query",
)
ITEM_KEYS = ("title", "description", "category", "brand", "price")


class _Records:
    """Rows collected from lines that hold several rows each."""

    def __init__(self, chunk: _Chunk) -> None:
        self.row: list[int] = []
        self.cells: list[dict[str, Any]] = []
        self.refused = chunk.refused

    def add(self, row: int, cells: dict[str, Any]) -> None:
        self.row.append(row)
        self.cells.append(cells)

    def batch(self, read: int, scalars: frozenset[str], *, items: bool = False, lines: int = 0) -> Batch:
        names = dict.fromkeys(k for cell in self.cells for k in cell)
        columns = {name: [c.get(name) for c in self.cells] for name in names}
        refused = [] if items else self.refused
        return _batch(self.row, columns, read, refused, scalars, items, lines)


def _fields(value: Any) -> dict[str, Any]:
    if not isinstance(value, list):
        return {}
    return {f["name"]: f.get("value") for f in value if isinstance(f, dict) and isinstance(f.get("name"), str)}


def _metarank_line(row: int, line: dict[str, Any], events: _Records, items: _Records) -> None:
    kind = line.get("event")
    fields = _fields(line.get("fields"))
    common = {
        "user_id": line.get("user"),
        "timestamp": line.get("timestamp"),
        "session_id": line.get("session"),
        "device": fields.get("device"),
        "query": fields.get("query"),
    }
    if kind == "item":
        item = {**fields, "item_id": line.get("item"), "#updated": line.get("timestamp")}
        items.add(row, item)
    elif kind == "interaction":
        value = fields.get("value", fields.get("quantity"))
        cells = {"event": line.get("type"), "item_id": line.get("item"), "request_id": line.get("ranking")}
        events.add(row, {**common, **cells, "position": None, "value": value})
    elif kind == "ranking":
        shown = line.get("items")
        if not isinstance(shown, list) or not shown:
            events.refused.append(RefusedCell(row, "items", shown, "empty_list"))
            return
        for position, item in enumerate(shown):
            item_id = item.get("id") if isinstance(item, dict) else item
            cells = {"event": "impression", "item_id": item_id, "request_id": line.get("id")}
            events.add(row, {**common, **cells, "position": position, "value": None})
    else:
        reason = "user_attributes" if kind == "user" else "missing_event" if kind is None else "unknown_event"
        events.refused.append(RefusedCell(row, "event", kind, reason))


def read_metarank(path: Path) -> Iterator[Batch]:
    """Read Metarank's format.

    An `item` line is an item, a `ranking` line is one impression per item, and an `interaction` line is an event. Their
    fields `device` and `query` apply to rankings and interactions; `value` or `quantity` is the amount of an
    interaction.
    """
    return _read_records(path, _metarank_line)


# --- GA4 ------------------------------------------------------------------------------------------------------------

_GA4_ITEM = {
    "title": "item_name",
    "brand": "item_brand",
    "category": "item_category",
    "price": "price",
    "value": "quantity",
}


def _parameter(line: dict[str, Any], name: str) -> Any:
    """A parameter of the event, from the top level or from BigQuery's `event_params`."""
    if name in line:
        return line[name]
    entries = line.get("event_params")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("key") == name and isinstance(entry.get("value"), dict):
            return next((v for v in entry["value"].values() if v is not None), None)
    return None


def _ga4_line(row: int, line: dict[str, Any], events: _Records, items: _Records) -> None:
    shown = line.get("items")
    if not isinstance(shown, list) or not shown:
        events.refused.append(RefusedCell(row, "items", shown, "empty_list"))
        return
    kind = line.get("event_name")
    user = line.get("user_id") or line.get("user_pseudo_id")
    impression, at = kind == "view_item_list", line.get("event_timestamp")
    device = line.get("device")
    for place, item in enumerate(shown):
        if not isinstance(item, dict):
            events.refused.append(RefusedCell(row, "items", item, "wrong_type"))
            continue
        listed = item.get("item_list_id") or _parameter(line, "item_list_id") or ""
        request = _parameter(line, "request_id") or (f"{user}:{at}:{listed}" if impression else None)
        position = item.get("index", place) if impression else None
        cells = {
            "event": kind,
            "user_id": user,
            "item_id": item.get("item_id"),
            "timestamp": at,
            "request_id": request,
            "position": position,
            "session_id": _parameter(line, "ga_session_id"),
            "device": device.get("category") if isinstance(device, dict) else device,
            "query": _parameter(line, "search_term"),
        }
        events.add(row, {**cells, **{ours: item.get(theirs) for ours, theirs in _GA4_ITEM.items()}})


def read_ga4(path: Path) -> Iterator[Batch]:
    """Read GA4 e-commerce events with their `items`, as exported to BigQuery: one row per item.

    An impression without `request_id` gets one built from user, time and list, so the items of an event form one list.
    value: the quantity. device: its `category` (mobile, tablet, desktop). query: `search_term`.
    """
    return _read_records(path, _ga4_line)


def _read_records(path: Path, line: Callable[[int, dict[str, Any], _Records, _Records], None]) -> Iterator[Batch]:
    for chunk in _chunks(path):
        events, items = _Records(chunk), _Records(chunk)
        for row, value in chunk.objects:
            line(row, value, events, items)
        if items.row:
            yield items.batch(chunk.read, frozenset(("item_id", "price", "#updated")), items=True, lines=len(items.row))
        lines = len(chunk.objects) - len(items.row)
        yield events.batch(chunk.read, frozenset((*EVENT_KEYS, *ITEM_KEYS)), lines=lines)
