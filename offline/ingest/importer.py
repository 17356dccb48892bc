"""Imports source files: checks every row, writes the accepted ones as a data set, and quarantines the rejected ones.

All steps are SQL over one temporary database on disk, so memory does not grow with the files. Nothing is written to the
data set before everything is read, so a source that fails leaves no partial data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.catalogue import TEXT_COLUMNS
from features.log import KINDS, Kind
from offline.config import ANNOTATION_FILES, ImportConfig
from offline.data import (
    EVENTS_FILE,
    EVENTS_FORM,
    EVENTS_SCHEMA,
    EXPERIMENT_FIELDS,
    GROUP_ROWS,
    PLACEMENT,
    SERVED_FILE,
    SERVED_FORM,
    SERVED_SCHEMA,
    UTC_US,
    annotation_table,
    erasures,
    imported,
    written_items,
)
from offline.ingest.account import Account
from offline.ingest.cells import create_macros
from offline.ingest.events import read_events
from offline.ingest.lists import EventChecks
from offline.ingest.matching import match_items
from offline.ingest.opening import open_tables
from offline.ingest.profiles import Profiles, read_profiles
from offline.ingest.quarantine import examples, quarantine_table
from offline.ingest.reading import Library
from offline.ingest.reading.library import literal, quoted
from offline.ingest.shoppers import check_shoppers
from offline.ingest.summary import ImportSummary
from offline.runtime import DataError, OnProgress, atomic_path, write_text

__all__ = ["DataError", "ImportConfig", "ImportSummary", "import_data", "validate"]


def import_data(
    config: ImportConfig, directory: Path, now: datetime, on_progress: OnProgress | None = None
) -> ImportSummary:
    """Write a data set: items, events, users with attributes if there are any, the quarantine, and `import.json`.

    If a list was in an experiment, also the lists, as served ones. Rows of erased users up to their erasure and their
    attributes are not written, although they count as accepted, nor are rejected values that may have their IDs. Files
    named under `annotations` are checked and written too; any of `ANNOTATION_FILES` that is not among them is removed.

    now: timezone-aware; events later than it by more than the configured tolerance are rejected. on_progress: called
    with the bytes read and in total. Raises DataError if a source cannot be read (nothing is written), if no event is
    accepted (only the quarantine and the summary are written), or if the directory contains a simulated shop.
    """
    if (directory / "truth.parquet").exists() and not (directory / imported.SUMMARY_FILE).exists():
        raise DataError(f"{directory}: contains a simulated shop (truth.parquet). Import into another directory.")
    erased = erasures.read_erasures(directory)
    with _imported(config, now, on_progress, _existing(directory), erased) as found:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / imported.QUARANTINE_FILE, quarantine_table(found.library.sql, erased))
        write_text(directory / imported.SUMMARY_FILE, found.summary.to_json())
        if not sum(found.summary.events.values()):
            where = directory / imported.QUARANTINE_FILE
            raise DataError(f"{found.summary.why_nothing()} All rejected rows are in {where}.")
        _write(directory / "items.parquet", found.items.arrow())
        (directory / written_items.FILE).unlink(missing_ok=True)
        if len(found.users.types) > 1:
            _write(directory / imported.PROFILES_FILE, imported.without_erased_profiles(found.users.arrow(), erased))
        else:
            (directory / imported.PROFILES_FILE).unlink(missing_ok=True)
        _write_events(found.library, directory, erased)
        _write_served(found.library, directory, erased)
        for name in ANNOTATION_FILES:
            if name in found.annotations:
                _write(directory / name, found.annotations[name])
            else:
                # A file left over from an earlier import would not match this log.
                (directory / name).unlink(missing_ok=True)
        return found.summary


def _existing(directory: Path) -> Path:
    """The directory, or the nearest one above it that exists: on the disk that the data set will be on."""
    return next(folder for folder in (directory.absolute(), *directory.absolute().parents) if folder.is_dir())


def validate(config: ImportConfig, now: datetime, on_progress: OnProgress | None = None) -> ImportSummary:
    """Summary of an import without writing it."""
    with _imported(config, now, on_progress, None, erasures.NOBODY) as found:
        return found.summary


def _write(path: Path, table: pa.Table) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=GROUP_ROWS)


def _write_events(library: Library, directory: Path, erased: erasures.Erasures) -> None:
    """Write the accepted events in time order, without those of erased users."""
    kinds = ", ".join(literal(kind) for kind in KINDS)
    ours: Mapping[str, str] = {"event": f"[{kinds}][kind + 1]", "timestamp": "make_timestamp(timestamp)"}
    placed = library.rows("SELECT count(placement) FROM shop.events")[0][0] > 0
    schema = EVENTS_SCHEMA.append(PLACEMENT) if placed else EVENTS_SCHEMA
    columns = ", ".join(f"{ours.get(n, quoted(n))} AS {quoted(n)}" for n in schema.names)
    order = "e.timestamp, event, item_id, user_id, request_id NULLS LAST, position NULLS LAST, event_id"
    query = f"SELECT {columns} FROM shop.events AS e ORDER BY {order}"
    _write_log(library, query, directory / EVENTS_FILE, schema, EVENTS_FORM.moment, erased)


def _write_served(library: Library, directory: Path, erased: erasures.Erasures) -> None:
    """Write the lists of the impressions as served lists, if any was in an experiment, without those of erased users.

    All lists are written, so that those of the experiments are no more than their share of all.
    """
    shown = f"FROM shop.events WHERE kind = {int(Kind.IMPRESSION)} AND request_id IS NOT NULL"
    if not library.rows(f"SELECT count(experiments) {shown}")[0][0]:
        # A file left over from an earlier import would not match this log.
        (directory / SERVED_FILE).unlink(missing_ok=True)
        return
    by_place = "ORDER BY position NULLS LAST, seq"
    of_first = {name: f"arg_min({name}, seq)" for name in ("user_id", "device", "query", "placement", "session_id")}
    cells = {
        **of_first,
        "at": "make_timestamp(min(timestamp))",
        "item_ids": f"list(item_id {by_place})",
        "experiments": "arg_min(experiments, seq)",
        "teams": f"CASE WHEN count(team) > 0 THEN list(team {by_place}) END",
    }
    fields = {f.name: f for f in (*SERVED_SCHEMA, PLACEMENT, *EXPERIMENT_FIELDS)}
    schema = pa.schema([fields["request_id"], *(fields[name] for name in fields if name in cells)])
    columns = ", ".join(f"{cells.get(n, n)} AS {quoted(n)}" for n in schema.names)
    query = f"SELECT {columns} {shown} GROUP BY request_id ORDER BY min(timestamp), request_id"
    _write_log(library, query, directory / SERVED_FILE, schema, SERVED_FORM.moment, erased)


def _write_log(
    library: Library, query: str, path: Path, schema: pa.Schema, moment: str, erased: erasures.Erasures
) -> None:
    """Write the rows of a query as a file of the log. moment: the column with the time of a row."""
    batches = library.sql.sql(query).to_arrow_reader(GROUP_ROWS)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        left = schema.empty_table()
        for batch in batches:
            table = pa.Table.from_batches([batch])
            at = table[moment].cast(pa.timestamp("us")).cast(UTC_US)
            table = table.set_column(table.schema.get_field_index(moment), moment, at).cast(schema)
            table = erasures.without_erased(table, erased, moment)
            left = pa.concat_tables([left, table])
            while len(left) >= GROUP_ROWS:
                writer.write_table(left.slice(0, GROUP_ROWS), GROUP_ROWS)
                left = left.slice(GROUP_ROWS)
        if len(left):
            writer.write_table(left, GROUP_ROWS)


# --- import ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Imported:
    library: Library
    items: Profiles
    users: Profiles
    summary: ImportSummary
    annotations: Mapping[str, pa.Table]


@contextmanager
def _imported(
    config: ImportConfig, now: datetime, on_progress: OnProgress | None, near: Path | None, erased: erasures.Erasures
) -> Iterator[_Imported]:
    """The checked rows in a database that lives as long as the context. near: folder on the disk to use for it."""
    if now.tzinfo is None:
        raise ValueError(f"now is {now.isoformat()}, without a time zone; pass a timezone-aware datetime")
    latest_us = round((now.timestamp() + config.future_tolerance_s) * 1e6)
    with TemporaryDirectory(prefix=".import-", dir=near) as folder:
        copies = Path(folder) / "copies"
        copies.mkdir()
        library = Library(Path(folder))
        try:
            annotations = _annotations(config)
            create_macros(library.sql, config.missing)
            open_tables(library, config, copies, on_progress)
            yield _check(library, config, latest_us, annotations, erased)
        finally:
            library.close()


def _annotations(config: ImportConfig) -> Mapping[str, pa.Table]:
    out = {}
    for path in config.annotations:
        if path.name not in ANNOTATION_FILES or path.name in out:
            raise DataError(
                f"{path}: not allowed under `annotations`; expected at most one of {', '.join(ANNOTATION_FILES)}"
            )
        where = config.folder / path
        if not where.is_file():
            raise DataError(f"{where}: there is no such file. Check `annotations` of the configuration.")
        out[path.name] = annotation_table(where)
    return out


def _check(
    library: Library,
    config: ImportConfig,
    latest_us: int,
    annotations: Mapping[str, pa.Table],
    erased: erasures.Erasures,
) -> _Imported:
    account = Account(library)
    notes = [f"{name}: {len(table)} rows about shown lists were imported" for name, table in annotations.items()]
    items = read_profiles(library, account, config, "item_id", config.items)
    users = read_profiles(library, account, config, "user_id", config.users)
    read_events(library, account, config, latest_us)
    account.close()
    items.finish()
    described = users.finish()
    checks = EventChecks(library, account, config)
    if not_products := _not_products(config, items):
        checks.refuse(f"SELECT seq FROM shop.events WHERE {not_products}", "item_id", "not_a_product")
    notes += check_shoppers(checks)
    notes += match_items(library, config)
    notes += checks.run()
    notes += _complete_items(library, checks, items)
    for number, source in enumerate(config.events):
        found = library.rows(f"SELECT count(*) FROM shop.events WHERE source = {number}")
        account.of(source.table).accepted += found[0][0]
    return _Imported(library, items, users, _summary(library, account, described, notes, erased), annotations)


def _not_products(config: ImportConfig, items: Profiles) -> str:
    conditions = []
    if config.not_products:
        conditions.append(f"regexp_full_match(item_id, {literal(config.not_products)})")
    if items.not_products:
        conditions.append(f"item_id IN ({', '.join(map(literal, sorted(items.not_products)))})")
    return " OR ".join(conditions)


def _complete_items(library: Library, checks: EventChecks, items: Profiles) -> list[str]:
    """Add items from their events, and refuse events of unknown items or add the items with their ID only."""
    notes = []
    if "available" in items.types and (n := library.rows("SELECT count(*) FROM shop.items WHERE NOT available")[0][0]):
        notes.append(f"{n} items are not available: their events count, but they are never recommended")
    if sources := [str(i) for i, s in enumerate(checks.config.events) if s.items_from_events]:
        # The most frequent text (ties: the first), and the median of the prices above 0.
        have = library.rows(
            f"SELECT {', '.join(f'count({n})' for n in (*TEXT_COLUMNS, 'price'))} FROM shop.events WHERE source IN"
            f" ({', '.join(sources)})"
        )[0]
        wanted = [n for n, count in zip((*TEXT_COLUMNS, "price"), have, strict=True) if count]
        cells = "".join(
            ", median(price) FILTER (price > 0) AS price" if n == "price" else f", mode({n} ORDER BY {n}) AS {n}"
            for n in wanted
        )
        query = (
            f"SELECT item_id{cells} FROM shop.events WHERE source IN ({', '.join(sources)})"
            " AND item_id NOT IN (SELECT item_id FROM shop.items) GROUP BY item_id"
        )
        if n := _append(library, items, query, wanted):
            notes.append(f"{n} items were created from their events")
    unknown = "item_id NOT IN (SELECT item_id FROM shop.items)"
    if checks.config.unknown_items == "keep":
        if n := _append(library, items, f"SELECT DISTINCT item_id FROM shop.events WHERE {unknown}", []):
            notes.append(f"{n} items have no catalogue entry; imported with their ID only")
    else:
        checks.refuse(f"SELECT seq FROM shop.events WHERE {unknown}", "item_id", "unknown_item")
    return notes


def _append(library: Library, items: Profiles, query: str, columns: list[str]) -> int:
    """Append rows to the table of items; returns their number."""
    for name in columns:
        if name not in items.types:
            items.types[name] = "DOUBLE" if name == "price" else "VARCHAR"
            library.sql.execute(f"ALTER TABLE shop.items ADD COLUMN {quoted(name)} {items.types[name]}")
    before = library.rows("SELECT count(*) FROM shop.items")[0][0]
    library.sql.execute(f"INSERT INTO shop.items BY NAME {query}")
    return int(library.rows("SELECT count(*) FROM shop.items")[0][0] - before)


# --- summary ---------------------------------------------------------------------------------------------------


def _summary(
    library: Library, account: Account, described: int, notes: list[str], erased: erasures.Erasures
) -> ImportSummary:
    users, first, last = library.rows(
        "SELECT count(DISTINCT user_id), min(timestamp), max(timestamp) FROM shop.events"
    )[0]
    kinds = dict(library.rows("SELECT kind, count(*) FROM shop.events GROUP BY kind"))
    lists = library.rows(f"SELECT count(DISTINCT request_id) FROM shop.events WHERE kind = {int(Kind.IMPRESSION)}")[0][
        0
    ]
    at: Callable[[int | None], str | None] = lambda us: us if us is None else _iso(us)  # noqa: E731
    return ImportSummary(
        tuple(account.summaries()),
        users,
        library.rows("SELECT count(*) FROM shop.items")[0][0],
        lists,
        described,
        {kind: kinds.get(i, 0) for i, kind in enumerate(KINDS)},
        at(first),
        at(last),
        tuple(notes),
        tuple(examples(library.sql, erased)),
    )


def _iso(us: int) -> str:
    value: Any = pc.cast(pa.scalar(us, pa.timestamp("us", "UTC")), UTC_US).as_py()
    return str(value.isoformat())
