"""The first pass over the sources of an import: a file is read batch by batch, and each row is checked by itself.

A file is a part of its own (see `offline/runtime/engine.py`): a log that comes as a file a day is checked by many
machines at once. What rows must be together is checked by `offline/ingest/importer.py`, once all are there.
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

from offline.config import EVENT_COLUMNS, ITEM_COLUMNS, ITEM_TEXTS, EventSource, ImportConfig, ItemSource
from offline.ingest.catalogue import item_columns
from offline.ingest.cells import Limits, Moments, as_flag, as_text
from offline.ingest.detection import resolve_columns, source_format
from offline.ingest.quarantine import Quarantine, Rows
from offline.ingest.readers import Batch, RefusedCell, read_csv, read_ga4, read_jsonl, read_metarank, read_parquet
from offline.ingest.validation import EventRules, event_columns
from offline.runtime import DataError


@dataclass
class SourceFile:
    """A source while it is read. names: our columns to the file's. accepted: rows still good after all checks."""

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
        """How its moments are written."""
        s = self.source
        return Moments(s.timestamp_unit, s.timestamp_format, ZoneInfo(s.timezone))

    @property
    def item_names(self) -> Mapping[str, str]:
        """The file's columns to our names for those of an item."""
        return {self.source.columns.get(name, name): name for name in ITEM_COLUMNS}

    def take(self, found: CheckedBatch) -> None:
        """Take in a batch of it that has been checked."""
        self.read += found.rows
        self.lines += found.lines
        self.ignored |= found.ignored
        self.not_products |= found.not_products
        if found.table is not None:
            (self.items if found.items else self.events).append(found.table)

    def batches(self) -> Iterator[Batch]:
        """What the file holds, some rows at a time. Raises DataError where it cannot be read."""
        s, form = self.source, self.form
        if form in ("metarank", "ga4"):
            return read_metarank(s.path) if form == "metarank" else read_ga4(s.path)
        events = isinstance(s, EventSource)
        if form == "jsonl":
            scalars = frozenset(theirs for ours, theirs in self.names.items() if events or ours not in ITEM_TEXTS)
            return read_jsonl(s.path, list(dict.fromkeys(self.names.values())) if events else None, scalars)
        wanted = list(dict.fromkeys(self.names.values()))
        return read_csv(s.path, wanted, s.encoding, s.delimiter) if form == "csv" else read_parquet(s.path, wanted)


def open_source(source: ItemSource | EventSource, name: str) -> SourceFile:
    """A source before it is read. Raises DataError where there is no such file or a column is missing."""
    if not source.path.is_file():
        raise DataError(f"{source.path}: there is no such file. Check `path` of this source.")
    form = source_format(source)
    if isinstance(source, ItemSource):
        if form in ("metarank", "ga4"):
            raise DataError(
                f"{name}: a {form} file holds events too. Name it under `events`; items are read from there."
            )
        required = ["item_id", *([source.product_column] if source.product_column else [])]
        return SourceFile(source, name, form, resolve_columns(source, form, ITEM_COLUMNS, required, others=True))
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
    """What the files share."""

    config: ImportConfig
    limits: Limits
    files: tuple[SourceFile, ...]


class CheckedBatch(NamedTuple):
    """A batch of file number `file`, checked row by row.

    read: bytes of the file behind us. rows, lines: read in this batch. table: the good rows as canonical columns, and
    their `#source`; None where there was none. items: they describe items, not events. ignored: columns of no use.
    not_products: ids that the file says are no products.
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


def check_file(asked: CheckJob, number: int) -> Iterator[CheckedBatch]:
    """The batches of a file. Raises DataError where it cannot be read."""
    file = asked.files[number]
    for batch in file.batches():
        yield _check_batch(asked, number, file, batch)


def _check_batch(asked: CheckJob, number: int, file: SourceFile, batch: Batch) -> CheckedBatch:
    quarantine, ignored, not_products = Quarantine(), set[str](), set[str]()
    for (column, reason), same in groupby(batch.refused, key=lambda r: (r.column, r.reason)):
        refused: list[RefusedCell] = list(same)
        row = np.array([r.row for r in refused], np.int64)
        quarantine.add(file.name, row, column, [r.value for r in refused], reason)
    items, table = batch.items or isinstance(file.source, ItemSource), None
    if len(batch.row):
        rows = Rows(file.name, batch.row, file.names, quarantine)
        if items or not isinstance(file.source, EventSource):
            table = _item_rows(asked, file, batch, rows, ignored, not_products)
        else:
            columns = {ours: batch.columns[theirs] for ours, theirs in file.names.items() if theirs in batch.columns}
            table = event_columns(rows, columns, _event_rules(file, file.source), asked.limits)
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
    asked: CheckJob, file: SourceFile, batch: Batch, rows: Rows, ignored: set[str], not_products: set[str]
) -> pa.Table:
    flag = file.source.product_column if isinstance(file.source, ItemSource) else None
    ours = file.item_names
    columns = {ours.get(n, n): v for n, v in batch.columns.items() if n in ours or n not in ITEM_COLUMNS}
    columns.setdefault("item_id", pa.nulls(len(rows.row), pa.string()))
    product = columns.pop(flag, None) if flag else None
    if product is not None and flag is not None:
        no = np.asarray(pc.fill_null(pc.invert(as_flag(rows, flag, product, asked.limits)), False))
        ids = as_text(rows, "item_id", columns["item_id"], asked.limits)
        not_products.update(t for t in ids.filter(pa.array(no)).to_pylist() if t)
        rows.refuse(no, "item_id", columns["item_id"], "not_a_product")
    return item_columns(rows, columns, asked.config, file.source, asked.limits, file.moments, ignored)
