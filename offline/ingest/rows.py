"""First pass of an import: reads each file in batches and checks each row on its own.

Each file is a part for the engine (see `offline/runtime/engine.py`), so a log with one file per day is checked by many
machines in parallel. Checks across rows follow in `offline/ingest/importer.py`, once all files are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.catalogue import STANDARD_COLUMNS, TEXT_COLUMNS
from offline.config import EVENT_COLUMNS, EventSource, ImportConfig, ItemSource
from offline.ingest.catalogue import item_columns
from offline.ingest.cells import Limits, Moments, as_flag, as_text
from offline.ingest.detection import resolve_columns, source_format
from offline.ingest.quarantine import Quarantine, Rows
from offline.ingest.readers import Batch, RefusedCell, read_csv, read_ga4, read_jsonl, read_metarank, read_parquet
from offline.ingest.validation import EventRules, event_columns
from offline.runtime import DataError


@dataclass
class SourceFile:
    """A source while it is read.

    names: mapping from canonical columns to the file's columns. accepted: number of rows that pass all checks.
    """

    source: ItemSource | EventSource
    name: str
    form: str
    names: Mapping[str, str]
    read: int = 0
    lines: int = 0
    accepted: int = 0
    notes: list[str] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)
    not_products: set[str] = field(default_factory=set)
    items: list[pa.Table] = field(default_factory=list)
    events: list[pa.Table] = field(default_factory=list)

    @property
    def moments(self) -> Moments:
        """Timestamp format of the source."""
        s = self.source
        return Moments(s.timestamp_unit, s.timestamp_format, ZoneInfo(s.timezone))

    @property
    def item_names(self) -> Mapping[str, str]:
        """Mapping from the file's item columns to canonical columns."""
        return {self.source.columns.get(name, name): name for name in STANDARD_COLUMNS}

    def take(self, found: CheckedBatch) -> None:
        """Add a checked batch."""
        self.read += found.rows
        self.lines += found.lines
        self.ignored |= found.ignored
        self.not_products |= found.not_products
        if found.table is not None:
            (self.items if found.items else self.events).append(found.table)

    def batches(self) -> Iterator[Batch]:
        """The rows of the file in batches. Raises DataError if the file cannot be read."""
        s, form = self.source, self.form
        if form in ("metarank", "ga4"):
            return read_metarank(s.path) if form == "metarank" else read_ga4(s.path)
        events = isinstance(s, EventSource)
        if form == "jsonl":
            scalars = frozenset(theirs for ours, theirs in self.names.items() if events or ours not in TEXT_COLUMNS)
            return read_jsonl(s.path, list(dict.fromkeys(self.names.values())) if events else None, scalars)
        wanted = list(dict.fromkeys(self.names.values()))
        return read_csv(s.path, wanted, s.encoding, s.delimiter) if form == "csv" else read_parquet(s.path, wanted)


def open_source(source: ItemSource | EventSource, name: str) -> SourceFile:
    """A source that has not been read yet. Raises DataError if the file or a column is missing."""
    if not source.path.is_file():
        raise DataError(f"{source.path}: there is no such file. Check `path` of this source.")
    form = source_format(source)
    if isinstance(source, ItemSource):
        if form in ("metarank", "ga4"):
            raise DataError(
                f"{name}: a {form} file contains events too. List it under `events`; its items are read from there."
            )
        required = ["item_id", *([source.product_column] if source.product_column else [])]
        return SourceFile(source, name, form, resolve_columns(source, form, STANDARD_COLUMNS, required, others=True))
    if form in ("metarank", "ga4"):
        return SourceFile(source, name, form, {**{c: c for c in EVENT_COLUMNS}, "#updated": "timestamp"})
    required = ["user_id", "item_id", source.order_column or "timestamp", *([] if source.event else ["event"])]
    columns = [c for c in EVENT_COLUMNS if c != "timestamp" or not source.order_column]
    names = dict(resolve_columns(source, form, [*columns, *required[2:3]], required))
    if source.order_column:
        names["order_column"] = names.pop(source.order_column)
    return SourceFile(source, name, form, names)


def _event_rules(file: SourceFile, source: EventSource) -> EventRules:
    ordered = source.order_column is not None
    return EventRules(source.event, source.event_values, file.moments, ordered, source.position_base, source.float_ids)


class CheckJob(NamedTuple):
    """Input shared by the parts. limits: as in `Limits`. files: one part each."""

    config: ImportConfig
    limits: Limits
    files: tuple[SourceFile, ...]


class CheckedBatch(NamedTuple):
    """A batch of file number `file` after the row-by-row checks.

    read: bytes of the file read so far. rows, lines: number read in this batch. table: accepted rows as canonical
    columns with their `#source`, None for an empty batch. items: True if the rows are items, False if they are events.
    ignored: columns of an unsupported type. not_products: IDs that the file marks as not being products.
    """

    file: int
    read: int
    rows: int
    lines: int
    table: pa.Table | None
    items: bool
    quarantine: Quarantine
    ignored: frozenset[str]
    not_products: frozenset[str]


def check_file(job: CheckJob, number: int) -> Iterator[CheckedBatch]:
    """The checked batches of file `number`. Raises DataError if the file cannot be read."""
    file = job.files[number]
    for batch in file.batches():
        yield _check_batch(job, number, file, batch)


def _check_batch(job: CheckJob, number: int, file: SourceFile, batch: Batch) -> CheckedBatch:
    quarantine, ignored, not_products = Quarantine(), set[str](), set[str]()
    for (column, reason), same in groupby(batch.refused, key=lambda r: (r.column, r.reason)):
        refused: list[RefusedCell] = list(same)
        row = np.array([r.row for r in refused], np.int64)
        quarantine.add(file.name, row, column, [r.value for r in refused], reason)
    items, table = batch.items or isinstance(file.source, ItemSource), None
    if len(batch.row):
        rows = Rows(file.name, batch.row, file.names, quarantine)
        if items or not isinstance(file.source, EventSource):
            table = _item_rows(job, file, batch, rows, ignored, not_products)
        else:
            columns = {ours: batch.columns[theirs] for ours, theirs in file.names.items() if theirs in batch.columns}
            table = event_columns(rows, columns, _event_rules(file, file.source), job.limits)
        table = table.append_column("#source", pa.array(np.full(len(table), number, np.int32)))
    return CheckedBatch(
        number,
        batch.read,
        len(batch.row) + len(batch.refused),
        batch.lines,
        table,
        items,
        quarantine,
        frozenset(ignored),
        frozenset(not_products),
    )


def _item_rows(
    job: CheckJob, file: SourceFile, batch: Batch, rows: Rows, ignored: set[str], not_products: set[str]
) -> pa.Table:
    flag = file.source.product_column if isinstance(file.source, ItemSource) else None
    ours = file.item_names
    columns = {ours.get(n, n): v for n, v in batch.columns.items() if n in ours or n not in STANDARD_COLUMNS}
    columns.setdefault("item_id", pa.nulls(len(rows.row), pa.string()))
    product = columns.pop(flag, None) if flag else None
    if product is not None and flag is not None:
        no = np.asarray(pc.fill_null(pc.invert(as_flag(rows, flag, product, job.limits)), False))
        ids = as_text(rows, "item_id", columns["item_id"], job.limits)
        not_products.update(t for t in ids.filter(pa.array(no)).to_pylist() if t)
        rows.refuse(no, "item_id", columns["item_id"], "not_a_product")
    return item_columns(rows, columns, job.config, file.source, job.limits, file.moments, ignored)
