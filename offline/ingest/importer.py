"""Imports source files: checks every row, writes the accepted ones as a data set, and quarantines the rejected ones.

Rows are checked batch by batch. Accepted rows stay in memory as columns until they are sorted and written. Nothing is
written before everything is read, so a source that fails leaves no partial data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.catalogue import TEXT_COLUMNS
from features.log import KINDS, Kind
from offline.config import ANNOTATION_FILES, EventSource, ImportConfig, ItemSource
from offline.data import (
    EVENTS_FILE,
    EVENTS_FORM,
    EVENTS_SCHEMA,
    GROUP_ROWS,
    UTC_US,
    annotation_table,
    erasures,
    quarantined,
    written_items,
)
from offline.ingest import validation
from offline.ingest.catalogue import catalogue_table, concat_tables, detect_numbers, items_from_events, merge_updates
from offline.ingest.cells import Limits, Moments
from offline.ingest.detection import detect
from offline.ingest.quarantine import Mask, Quarantine, Rows
from offline.ingest.rows import CheckJob, check_file, open_source
from offline.ingest.summary import ImportSummary, SourceSummary
from offline.ingest.validation import EventRules, codes, event_columns, event_ids, find_duplicates, refuse_rows
from offline.runtime import LOCAL, DataError, Engine, OnProgress, atomic_path

__all__ = ["DataError", "ImportConfig", "ImportSummary", "import_data", "validate"]


GA4_CLICK_US = 30 * 60 * 10**6
"""A GA4 click is assigned to the newest list of the last 30 minutes (GA4's session timeout) that showed the item."""


def import_data(
    config: ImportConfig, directory: Path, now: datetime, on_progress: OnProgress | None = None, engine: Engine = LOCAL
) -> ImportSummary:
    """Write a data set: `items.parquet`, `events.parquet`, `quarantine.parquet` and the summary `import.json`.

    Rows of erased users up to their erasure are not written, although they count as accepted, nor are rejected values
    that may have their IDs. Files named under
    `annotations` are checked and written too; any of `ANNOTATION_FILES` that is not among them is removed.

    now: timezone-aware; events later than it by more than the configured tolerance are rejected. on_progress: called
    with the bytes done and in total. engine: reads the sources and checks rows one by one; it must be able to access
    the files. Raises DataError if a source cannot be read (nothing is written), if no event is accepted (only the
    quarantine and the summary are written), or if the directory contains a simulated shop.
    """
    if (directory / "truth.parquet").exists() and not (directory / quarantined.SUMMARY_FILE).exists():
        raise DataError(f"{directory}: contains a simulated shop (truth.parquet). Import into another directory.")
    erased = erasures.read_erasures(directory)
    found = _Import(config, now, engine, erased).run(on_progress)
    events = erasures.without_erased(found.events, erased, EVENTS_FORM.moment)
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / quarantined.FILE, found.quarantine)
    with atomic_path(directory / quarantined.SUMMARY_FILE) as temporary:
        temporary.write_text(found.summary.to_json(), "utf-8")
    if not len(found.events):
        raise DataError(f"{found.summary.why_nothing()} All rejected rows are in {directory / 'quarantine.parquet'}.")
    _write(directory / "items.parquet", found.items)
    (directory / written_items.FILE).unlink(missing_ok=True)
    _write(directory / EVENTS_FILE, events)
    for name in ANNOTATION_FILES:
        if name in found.annotations:
            _write(directory / name, found.annotations[name])
        else:
            # A file left over from an earlier import would not match this log.
            (directory / name).unlink(missing_ok=True)
    return found.summary


def validate(
    source: ImportConfig | Path, now: datetime, on_progress: OnProgress | None = None, engine: Engine = LOCAL
) -> ImportSummary:
    """Summary of an import without writing it. source: a configuration, or a folder or file in a known layout."""
    config = detect(source) if isinstance(source, Path) else source
    return _Import(config, now, engine).run(on_progress).summary


def _write(path: Path, table: pa.Table) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=GROUP_ROWS)


def _midnight_us(day: date) -> int:
    return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1e6)


# --- import ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Imported:
    items: pa.Table
    events: pa.Table
    quarantine: pa.Table
    summary: ImportSummary
    annotations: Mapping[str, pa.Table]


class _Import:
    def __init__(
        self, config: ImportConfig, now: datetime, engine: Engine, erased: erasures.Erasures = erasures.NOBODY
    ) -> None:
        if now.tzinfo is None:
            raise ValueError(f"now is {now.isoformat()}, without a time zone; pass a timezone-aware datetime")
        latest_us = round((now.timestamp() + config.future_tolerance_s) * 1e6)
        self.config, self.engine, self.erased = config, engine, erased
        self.limits = Limits(config.missing, _midnight_us(config.earliest), latest_us)
        self.quarantine = Quarantine()
        sources: tuple[ItemSource | EventSource, ...] = (*config.items, *config.events)
        plain = [s.path.name for s in sources]
        names = [n if plain.count(n) == 1 else f"{s.path.parent.name}/{n}" for s, n in zip(sources, plain, strict=True)]
        if twice := [n for n in names if names.count(n) > 1]:
            raise DataError(f"two sources are called {twice[0]}. Rename one, so that messages can tell them apart.")
        self.files = [open_source(s, n) for s, n in zip(sources, names, strict=True)]
        self.notes: list[str] = []

    def run(self, on_progress: OnProgress | None) -> _Imported:
        self._read(on_progress)
        items = self._items()
        events = self._check_across_rows(self._events())
        items, events = self._with_items(items, events)
        for i, file in enumerate(self.files):
            file.accepted += int((events["#source"].to_numpy() == i).sum())
        written = self._written(events)
        known = self._annotations()
        self.quarantine = self.quarantine.without_erased(self.erased)
        return _Imported(items, written, self.quarantine.table(), self._summary(items, events, written), known)

    # Reading.

    def _read(self, on_progress: OnProgress | None) -> None:
        sizes = [f.source.path.stat().st_size for f in self.files]
        # Workers may run in another directory, so paths must be absolute.
        there = [replace(f, source=f.source.model_copy(update={"path": f.source.path.absolute()})) for f in self.files]
        job = CheckJob(self.config, self.limits, tuple(there))
        for found in self.engine.map(check_file, job, range(len(self.files))):
            self.files[found.file].take(found)
            self.quarantine.extend(found.quarantine)
            if on_progress:
                on_progress(sum(sizes[: found.file]) + min(found.read, sizes[found.file]), sum(sizes))

    def _annotations(self) -> Mapping[str, pa.Table]:
        out = {}
        for path in self.config.annotations:
            if path.name not in ANNOTATION_FILES or path.name in out:
                raise DataError(
                    f"{path}: not allowed under `annotations`; expected at most one of {', '.join(ANNOTATION_FILES)}"
                )
            if not path.is_file():
                raise DataError(f"{path}: there is no such file. Check `annotations` of the configuration.")
            out[path.name] = annotation_table(path)
            self.notes.append(f"{path.name}: {len(out[path.name])} rows about shown lists were imported")
        return out

    # Checks across rows.

    def _refuse(self, table: pa.Table, column: str, reason: str, bad: Callable[[pa.Table], Mask]) -> pa.Table:
        names, columns = [f.name for f in self.files], [f.names for f in self.files]
        return refuse_rows(table, bad(table), names, column, reason, self.quarantine, columns)

    def _not_products(self, table: pa.Table) -> Mask:
        flagged = sorted(set().union(*(f.not_products for f in self.files)))
        bad = np.asarray(pc.is_in(table["item_id"], pa.array(flagged, pa.string())))
        if self.config.not_products:
            whole = f"^(?:{self.config.not_products})$"
            bad = bad | np.asarray(pc.match_substring_regex(table["item_id"], whole))
        return bad

    def _items(self) -> pa.Table:
        tables = []
        for file in self.files:
            if file.items:
                table = concat_tables(file.items)
                tables.append(detect_numbers(table, ("item_id", *TEXT_COLUMNS)) if file.form == "csv" else table)
            file.notes += [
                f"column {name} is ignored: its type is not text, number, timestamp or list of text"
                for name in sorted(file.ignored)
            ]
        if not tables:
            return pa.table({"item_id": pa.array([], pa.string())})
        items = self._refuse(concat_tables(tables), "item_id", "not_a_product", self._not_products)
        has_updates = "#updated" in items.column_names
        if not has_updates:
            items = self._refuse(items, "item_id", "duplicate_item", lambda t: find_duplicates(codes(t["item_id"])))
        for i, file in enumerate(self.files):
            file.accepted += int((items["#source"].to_numpy() == i).sum())
        updates = int(find_duplicates(codes(items["item_id"])).sum())
        if not updates:
            return items
        self.notes.append(f"{updates} rows update an earlier item: the last value of each field is kept")
        return merge_updates(items)

    def _events(self) -> pa.Table:
        tables = []
        for file in self.files:
            if not file.events or not isinstance(file.source, EventSource):
                continue
            table = concat_tables(file.events)
            if file.source.order_column is not None:
                day = file.source.order_last_day
                table = validation.times_from_order(table, _midnight_us(day)).drop_columns("order")
                file.notes.append(
                    f"no timestamps, only an order ({file.source.order_column}): timestamps were generated one day"
                    f" apart, the last of each user on {day.isoformat()}"
                )
            tables.append(table)
        return concat_tables(tables) if tables else _no_events(self.limits)

    def _check_across_rows(self, events: pa.Table) -> pa.Table:
        events = self._refuse(events, "item_id", "not_a_product", self._not_products)
        if ga4 := [i for i, f in enumerate(self.files) if f.form == "ga4"]:
            events, n = validation.make_lists_unique(events, GA4_CLICK_US, ga4)
            self.notes.append(
                f"{n} GA4 events were assigned to the newest list of the last 30 minutes that showed the item"
            )
        events = self._refuse(events, "request_id", "list_of_another_user", validation.find_shared_lists)
        events, moved = validation.unify_list_times(events)
        if moved:
            self.notes.append(f"{moved} impressions were moved to the earliest time of their list")
        events = events.set_column(events.schema.get_field_index("event_id"), "event_id", event_ids(events))
        events = self._refuse(events, "event_id", "duplicate_event", lambda t: find_duplicates(codes(t["event_id"])))
        events = self._refuse(events, "item_id", "item_twice_in_list", validation.find_repeated_items)
        flagged, wrong = validation.find_click_conflicts(events)
        if flagged:
            self.notes.append(
                f"`clicked` agrees with the click events for {flagged - wrong} of {flagged} impressions; the events are"
                " used"
            )
        return events

    def _with_items(self, items: pa.Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        if sources := [i for i, f in enumerate(self.files) if getattr(f.source, "items_from_events", False)]:
            rows = events.filter(pc.is_in(events["#source"], pa.array(sources, pa.int32())))
            more = items_from_events(rows.filter(pc.invert(pc.is_in(rows["item_id"], pc.unique(items["item_id"])))))
            self.notes.append(f"{len(more)} items were created from their events")
            items = concat_tables([items, more])
        known = pc.unique(items["item_id"])
        id_only = pa.array([], pa.string())
        if self.config.unknown_items == "keep":
            seen = pc.unique(events["item_id"])
            id_only = seen.filter(pc.invert(pc.is_in(seen, known)))
            if len(id_only):
                self.notes.append(f"{len(id_only)} items have no catalogue entry; imported with their ID only")
        else:
            outside: Callable[[pa.Table], Mask] = lambda t: ~np.asarray(pc.is_in(t["item_id"], known))  # noqa: E731
            events = self._refuse(events, "item_id", "unknown_item", outside)
        return catalogue_table(items, id_only), events

    def _written(self, events: pa.Table) -> pa.Table:
        kind = pa.array(KINDS).take(events["kind"].combine_chunks().cast(pa.int32()))
        at = events["timestamp"].cast(pa.timestamp("us")).cast(UTC_US)
        events = events.drop_columns("timestamp").append_column("timestamp", at).append_column("event", kind)
        order = [(name, "ascending") for name in ("timestamp", "event", "item_id", "user_id", "request_id", "position")]
        return events.select(EVENTS_SCHEMA.names).cast(EVENTS_SCHEMA).sort_by(order)

    # Summary.

    def _summary(self, items: pa.Table, events: pa.Table, written: pa.Table) -> ImportSummary:
        sources = []
        for file in self.files:
            quarantined = self.quarantine.counts(file.name)
            assert file.read == file.accepted + sum(quarantined.values()), f"{file.name}: rows were lost"
            lines = file.lines if file.form in ("metarank", "ga4") else None
            if lines not in (None, file.read):
                file.notes.append(f"{lines} lines gave {file.read} rows: each list item counts as one impression")
            sources.append(SourceSummary(file.name, file.read, lines, file.accepted, quarantined, tuple(file.notes)))
        kinds = np.bincount(events["kind"].to_numpy(), minlength=len(Kind)).tolist()
        at = written["timestamp"]
        first, last = (at[0].as_py().isoformat(), at[-1].as_py().isoformat()) if len(at) else (None, None)
        shown = events.filter(pc.equal(events["kind"], int(Kind.IMPRESSION)))
        users, lists = (pc.count_distinct(column).as_py() for column in (events["user_id"], shown["request_id"]))
        return ImportSummary(
            tuple(sources),
            users,
            len(items),
            lists,
            dict(zip(KINDS, kinds, strict=True)),
            first,
            last,
            tuple(self.notes),
            tuple(self.quarantine.examples()),
        )


def _no_events(limits: Limits) -> pa.Table:
    """An empty event table, built by `event_columns` so that its columns match."""
    none = {n: pa.array([], pa.string()) for n in ("user_id", "item_id", "timestamp")}
    rules = EventRules("view", {}, Moments("auto", None, ZoneInfo("UTC")), False, 0, ())
    table = event_columns(Rows("", np.empty(0, np.int64), {}, Quarantine()), none, rules, limits)
    return table.append_column("#source", pa.array([], pa.int32()))
