"""Recognises files in a known layout, which can be imported without configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from offline.config import ANNOTATION_FILES, DROP, EventSource, ImportConfig, ItemSource, Source
from offline.ingest.readers import column_names, file_format
from offline.runtime import DataError


def detect(path: Path) -> ImportConfig:
    """Import configuration for a folder or file in a known layout.

    Known layouts are a folder with `items`, `events` and optionally `impressions` (Parquet, CSV or JSONL), such as a
    Shelfwise data set, and one JSON lines file from Metarank or GA4, given directly or as the only such file in its
    folder. Raises DataError if nothing is recognised.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder.")
    if path.is_file():
        return _of_one_file(path)
    items, events, shown = (_named(path, stem) for stem in ("items", "events", "impressions"))
    sources = [*([_shown_lists(shown)] if shown else []), *([_event_file(events)] if events else [])]
    if not sources:
        alone = [f for f in sorted(path.iterdir()) if f.name.endswith((".jsonl", ".jsonl.gz"))]
        if len(alone) == 1:
            return _of_one_file(alone[0])
        raise DataError(
            f"{path}: no known layout recognised (found: {_listing(f.name for f in path.iterdir())})."
            " Expected items and events as .parquet, .csv or .jsonl, or one JSON lines file from Metarank or GA4."
            f" For other files, `shelfwise import {path} --suggest` suggests a column mapping."
        )
    catalogue = (_item_file(items),) if items else ()
    annotations = tuple(path / name for name in ANNOTATION_FILES if (path / name).is_file())
    return ImportConfig(items=catalogue, events=tuple(sources), annotations=annotations, unknown_items="keep")


def source_format(source: Source) -> str:
    """File format of a source: as configured, or detected from the file if it is `auto`."""
    return file_format(source.path) if source.format == "auto" else source.format


def _listing(names: Any) -> str:
    return ", ".join(sorted(names)[:12]) or "nothing"


def _named(folder: Path, stem: str) -> Path | None:
    for ending in (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz"):
        if (folder / (stem + ending)).is_file():
            return folder / (stem + ending)
    return None


def _of_one_file(path: Path) -> ImportConfig:
    form = file_format(path)
    if form not in ("metarank", "ga4"):
        raise DataError(
            f"{path.name}: this {form} file needs a column mapping. `shelfwise import {path} --suggest > shop.yaml`"
            " suggests one. Review it, then run `shelfwise import --config shop.yaml`."
        )
    source = EventSource(path=path, format=form, items_from_events=form == "ga4")
    return ImportConfig(events=(source,), unknown_items="keep")


def _first_of(names: Sequence[str], ours: str, candidates: Sequence[str]) -> dict[str, str]:
    return next(({ours: c} for c in candidates if c in names), {})


def _shown_lists(path: Path) -> EventSource:
    names = column_names(path, file_format(path)) or []
    columns = _first_of(names, "request_id", ("request_id", "impression_id"))
    return EventSource(path=path, columns=columns, event="impression")


def _event_file(path: Path) -> EventSource:
    names = column_names(path, file_format(path)) or []
    columns = {
        **_first_of(names, "request_id", ("request_id", "impression_id")),
        **_first_of(names, "session_id", ("session_id", "basket_id")),
    }
    return EventSource(
        path=path,
        columns=columns,
        event_values={"review": "purchase", "return_or_adjustment": DROP},
        order_column="seq" if "seq" in names and _all_null(path, "timestamp") else None,
    )


def _item_file(path: Path) -> ItemSource:
    names = column_names(path, file_format(path)) or []
    return ItemSource(path=path, product_column="is_product" if "is_product" in names else None)


def _all_null(path: Path, column: str) -> bool:
    if file_format(path) != "parquet":
        return False
    with pq.ParquetFile(path) as file:
        if column not in file.schema_arrow.names:
            return True
        return all(part.column(0).null_count == part.num_rows for part in file.iter_batches(columns=[column]))


def resolve_columns(
    source: Source, form: str, ours: Sequence[str], required: Sequence[str], others: bool = False
) -> Mapping[str, str]:
    """Mapping from canonical columns to the file's columns, for those the file has (for JSON lines, all of them).

    others: include the file's remaining columns under their own names. Raises DataError for a mapped or required column
    that the file lacks; the message lists the columns it has.
    """
    out = {name: source.columns.get(name, name) for name in dict.fromkeys((*ours, *required))}
    names = column_names(source.path, form, source.encoding, source.delimiter)
    if names is None:
        return out
    lacking = [name for name in out if out[name] not in names and (name in required or name in source.columns)]
    if lacking:
        name = lacking[0]
        what = f"no column {out[name]!r}" + (f" for {name}" if out[name] != name else "")
        raise DataError(
            f"{source.path.name}: {what}. It has: {', '.join(names)}."
            f" Map one of them in the configuration: columns: {{{name}: <column>}}."
        )
    out = {name: theirs for name, theirs in out.items() if theirs in names}
    if others:
        out |= {name: name for name in names if name not in out.values() and name not in ours}
    if twice := [theirs for theirs in out.values() if names.count(theirs) > 1]:
        raise DataError(f"{source.path.name}: two columns are called {twice[0]!r}. Rename one of them.")
    return out
