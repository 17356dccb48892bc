"""Builds one catalogue from item files, Metarank's item updates, and the item columns of events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import F64
from features.bounds import ITEM_MOMENTS
from features.catalogue import TEXT_COLUMNS
from offline.config import ImportConfig, Source
from offline.data import CANONICAL, TAGS, UTC_US
from offline.ingest.cells import (
    NO_MOMENT,
    Limits,
    Moments,
    as_id,
    as_moments,
    as_number,
    bounded_text,
    is_numeric,
    is_text_list,
)
from offline.ingest.quarantine import Rows


def _moment_column(rows: Rows, name: str, array: pa.Array, limits: Limits, how: Moments) -> pa.Array:
    at = as_moments(rows, name, array, limits, how, required=False)
    none = at == NO_MOMENT
    outside = ~none & ((at < ITEM_MOMENTS[0] * 10**6) | (at > ITEM_MOMENTS[1] * 10**6))
    rows.refuse(outside, name, array, "date_out_of_range")
    none |= outside
    return pa.array(np.where(none, 0, at), pa.int64(), mask=none).cast(pa.timestamp("us")).cast(UTC_US)


def _prices(rows: Rows, array: pa.Array, limits: Limits) -> pa.Array:
    price = as_number(rows, "price", array, limits)
    rows.refuse(price < 0, "price", array, "negative_price")
    return pa.array(price, from_pandas=True)


def _attribute(
    rows: Rows, name: str, array: pa.Array, limits: Limits, how: Moments, config: ImportConfig, separator: str | None
) -> pa.Array | None:
    """An attribute as number, text, list of text or timestamp; None for an unsupported type."""
    kind = array.type
    if name in config.moment_attributes or pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _moment_column(rows, name, array, limits, how)
    if is_numeric(kind):
        return pa.array(as_number(rows, name, array, limits), from_pandas=True)
    if is_text_list(kind):
        return pa.array([v if v is None else [str(x) for x in v if x is not None] for v in array.to_pylist()], TAGS)
    if pa.types.is_nested(kind) or pa.types.is_duration(kind) or pa.types.is_time(kind):
        return None
    text = bounded_text(rows, name, array, limits)
    if separator is None:
        return text
    tags = [t if t is None else [p.strip() for p in t.split(separator) if p.strip()] for t in text.to_pylist()]
    return pa.array(tags, TAGS)


def item_columns(
    rows: Rows,
    columns: Mapping[str, pa.Array],
    config: ImportConfig,
    source: Source,
    limits: Limits,
    how: Moments,
    ignored: set[str],
) -> pa.Table:
    """The accepted items of a batch, with their `#row`. Attributes of unsupported types are added to `ignored`.

    columns: by canonical name if there is one, else by the file's name. `#updated` (int64, Unix us) orders Metarank's
    updates.
    """
    separators: Mapping[str, str] = getattr(source, "list_columns", {})
    out = {"#row": pa.array(rows.row)}
    for name, values in columns.items():
        array = values.dictionary_decode() if isinstance(values, pa.DictionaryArray) else values
        if name == "item_id":
            out[name] = as_id(rows, name, array, limits, "missing_item")
            if name in source.float_ids:
                out[name] = pc.replace_substring_regex(out[name], r"^(-?\d+)\.0+$", r"\1")
        elif name in TEXT_COLUMNS:
            out[name] = bounded_text(rows, name, array, limits)
        elif name == "price":
            out[name] = _prices(rows, array, limits)
        elif name == "available_from":
            out[name] = _moment_column(rows, name, array, limits, how)
        elif name == "#updated":
            out[name] = pa.array(as_moments(rows, name, array, limits, how, required=True))
        else:
            column = _attribute(rows, name, array, limits, how, config, separators.get(name))
            if column is None:
                ignored.add(name)
            else:
                out[name] = column
    return pa.table(out).filter(pa.array(rows.good))


def _as_list(column: pa.Array) -> pa.Array:
    return pa.array([v if v is None else [str(v)] for v in column.to_pylist()], TAGS)


def _unify_types(arrays: Sequence[pa.Array]) -> Sequence[pa.Array]:
    """Cast the parts of a column to one type: a list of text if any part is a list, else text if the types differ."""
    kinds = {a.type for a in arrays if not pa.types.is_null(a.type)}
    if len(kinds) <= 1:
        kind = next(iter(kinds), pa.string())
        return [a.cast(kind) for a in arrays]
    if any(pa.types.is_list(k) for k in kinds):
        return [a if pa.types.is_list(a.type) else _as_list(a) for a in arrays]
    return [a.cast(pa.string()) for a in arrays]


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenate tables. A column that a table lacks is null in its rows."""
    names = dict.fromkeys(name for t in tables for name in t.column_names)
    columns = {}
    for name in names:
        parts = [t[name].combine_chunks() if name in t.column_names else pa.nulls(len(t)) for t in tables]
        columns[name] = pa.chunked_array(_unify_types(parts))
    return pa.table(columns)


def detect_numbers(items: pa.Table, keep_text: Sequence[str]) -> pa.Table:
    """Convert text attributes to float64 if every cell is a finite number, since CSV has no types."""
    for i, name in enumerate(items.column_names):
        column = items[name]
        if name in keep_text or not pa.types.is_string(column.type) or column.null_count == len(column):
            continue
        number: F64 = np.asarray(pd.to_numeric(column.to_pandas().astype(object), errors="coerce"), np.float64)
        if np.isfinite(number[np.asarray(column.is_valid())]).all():
            items = items.set_column(i, name, pa.array(number, from_pandas=True))
    return items


def merge_updates(items: pa.Table) -> pa.Table:
    """One row per item, with the last value of each field in the order of `#updated`."""
    frame = items.to_pandas(types_mapper=pd.ArrowDtype).sort_values("#updated", kind="stable")
    last = frame.groupby("item_id", sort=True, as_index=False).last()
    columns = [
        pa.array(last[name].tolist(), items.schema.field(name).type, from_pandas=True) for name in items.column_names
    ]
    return pa.table(columns, names=items.column_names)


def items_from_events(events: pa.Table) -> pa.Table:
    """Items from the item columns of events: most frequent text (ties: the first), median of the prices above 0."""
    texts = [name for name in TEXT_COLUMNS if name in events.column_names]
    names = ["item_id", *texts, *(["price"] if "price" in events.column_names else [])]
    frame = events.select(names).to_pandas()
    out = pd.DataFrame(index=pd.Index(sorted(frame["item_id"].unique()), name="item_id"))
    for name in texts:
        times = frame.groupby(["item_id", name], sort=True).size().rename("times").reset_index()
        times = times.sort_values("times", ascending=False, kind="stable").drop_duplicates("item_id")
        out[name] = times.set_index("item_id")[name]
    if "price" in names:
        out["price"] = frame[frame["price"] > 0].groupby("item_id")["price"].median()
    out = out.reset_index()
    return pa.table({n: pa.array(out[n].tolist(), CANONICAL[n], from_pandas=True) for n in out.columns})


def catalogue_table(items: pa.Table, id_only: pa.Array) -> pa.Table:
    """The table of `items.parquet`: canonical columns, then attributes by name, sorted by ID.

    id_only: IDs of items without a catalogue entry. A missing title is empty; any other missing value is null.
    """
    items = concat_tables([items, pa.table({"item_id": id_only.cast(pa.string())})]) if len(id_only) else items
    items = items.take(pc.sort_indices(items["item_id"]))
    columns = {
        name: items[name].cast(kind) if name in items.column_names else pa.nulls(len(items), kind)
        for name, kind in CANONICAL.items()
    }
    columns["title"] = pc.fill_null(columns["title"], "")
    # Sorted by name, so that the same items give the same table in every format.
    extra = sorted(n for n in items.column_names if n not in CANONICAL and not n.startswith("#"))
    return pa.table(columns | {name: items[name] for name in extra})
