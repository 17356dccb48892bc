"""The lists, impressions, actions and purchases of a log as rows, read span by span."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import F64, U64
from features.kernels.strings import StringIndex, hashes
from features.log import KINDS, Kind
from offline.config import AttributeKind, EarningsConfig
from offline.data import PLACEMENT, LogFiles, erasures, load_items, to_microseconds, to_strings
from offline.earnings.attribution import UserMerges
from offline.earnings.cells import Cells
from offline.earnings.rows import RowKind, Rows, make_rows
from offline.runtime import DataError

_KINDS = {
    Kind.IMPRESSION: RowKind.SHOWN,
    Kind.CLICK: RowKind.CLICK,
    Kind.CART: RowKind.CART,
    Kind.PURCHASE: RowKind.PURCHASE,
}


class Prices(NamedTuple):
    """Money that a piece of each item brings.

    price, cost: float64[n + 1], NaN if unknown; the last entry is of other items. value: as in `EarningsConfig`.
    """

    items: StringIndex
    price: F64
    cost: F64
    value: str

    @classmethod
    def of(cls, directory: Path, attributes: Mapping[str, AttributeKind], config: EarningsConfig) -> Prices:
        """The prices of a data set. Raises DataError if it lacks the attribute that `config` names."""
        items = load_items(directory, attributes)
        price = _numbers(items, "price")
        if config.cost is not None:
            cost = _attribute(items, config.cost, "cost")
        elif config.margin is not None:
            cost = price - _attribute(items, config.margin, "margin")
        else:
            cost = np.full(len(price), np.nan)
        return cls(StringIndex.of(items["item_id"].to_pylist()), price, cost, config.value)

    def money(self, item_ids: list[str], value: F64) -> tuple[F64, F64]:
        """float64[n], float64[n]: revenue and margin of purchases; negative for a return, NaN if unknown.

        value: of the events, NaN for none; a negative one is a return.
        """
        row = self.items.find(item_ids)
        price, cost = self.price[row], self.cost[row]
        sign = np.where(value < 0, -1.0, 1.0)
        if self.value == "amount":
            with np.errstate(divide="ignore", invalid="ignore"):
                pieces = np.maximum(np.round(np.abs(value) / price), 1.0)
            pieces = sign * np.where(np.isfinite(pieces), pieces, 1.0)
            revenue = np.where(np.isnan(value), price, value)
        else:
            pieces = np.where(np.isnan(value) | (self.value == "ignored"), sign, value)
            revenue = price * pieces
        return revenue, revenue - cost * pieces


def _attribute(items: pa.Table, name: str, key: str) -> F64:
    numeric = [f.name for f in items.schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
    if name not in numeric:
        raise DataError(
            f"earnings.{key}: {name!r} is not a numeric attribute of the catalogue; those are "
            f"{', '.join(numeric) or 'none'}. Give its type in features.attributes if it is read as a text"
        )
    return _numbers(items, name)


def _numbers(items: pa.Table, name: str) -> F64:
    if name not in items.column_names:
        return np.full(len(items) + 1, np.nan)
    values = items[name].cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.append(np.where(np.isfinite(values), values, np.nan), np.nan)


def read_merges(files: LogFiles) -> UserMerges:
    """The merges of users up to the end of the log."""
    columns = ("user_id", "from_id", "at")
    tables = [erasures.without_erased(t, files.erased, "at") for t in files.merges.spans(columns)]
    if not tables:
        return UserMerges(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))
    table = pa.concat_tables(tables)
    source, into, at = _hashes(table["from_id"]), _hashes(table["user_id"]), to_microseconds(table["at"])
    order = np.lexsort((into, at, source))
    return UserMerges(source[order], into[order], at[order])


def served_rows(files: LogFiles, cells: Cells, merges: UserMerges) -> Iterator[Rows]:
    """The served lists: a row of kind LIST each, and one of kind LISTED per item."""
    columns = ["request_id", "at", "user_id", "release", "placement", "item_ids", "experiments"]
    for table in files.served_spans(columns):
        heads = make_rows(len(table))
        heads["kind"] = RowKind.LIST
        heads["request"], heads["at"] = _hashes(table["request_id"]), to_microseconds(table["at"])
        heads["user"] = merges.apply(_hashes(table["user_id"]), heads["at"])
        heads["cell"] = cells.encode(table["placement"], table["release"], table["experiments"])
        lists = table.combine_chunks()["item_ids"].combine_chunks()
        lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
        items = heads[pc.list_parent_indices(lists).to_numpy()]
        items["kind"], items["item"] = RowKind.LISTED, _hashes(pc.list_flatten(lists))
        yield np.concatenate((heads, items))


def event_rows(files: LogFiles, cells: Cells, merges: UserMerges, prices: Prices) -> Iterator[Rows]:
    """The impressions, clicks, carts, purchases and returns."""
    for span in files.event_spans((PLACEMENT,)):
        kind = pc.index_in(span.table["event"], pa.array(KINDS)).to_numpy()
        used = np.isin(kind, list(_KINDS))
        table, kind = span.table.filter(pa.array(used)), kind[used]
        rows = make_rows(len(table))
        rows["request"], rows["at"] = _hashes(table["request_id"]), span.at[used]
        rows["item"] = _hashes(table["item_id"])
        rows["user"] = merges.apply(_hashes(table["user_id"]), rows["at"])
        rows["kind"] = np.array([_KINDS.get(Kind(k), 0) for k in range(len(KINDS))])[kind]
        rows["cell"] = cells.encode(table["placement"], pa.chunked_array([pa.nulls(len(table), pa.string())]))
        bought = np.flatnonzero(kind == Kind.PURCHASE)
        paid = table.take(pa.array(bought))
        value = paid["value"].to_numpy()
        value = np.where(np.isfinite(value), value, np.nan)
        rows["revenue"][bought], rows["margin"][bought] = prices.money(paid["item_id"].to_pylist(), value)
        rows["kind"][bought[value < 0]] = RowKind.RETURN
        rows["cell"][rows["kind"] != RowKind.SHOWN] = -1
        yield rows


def _hashes(column: pa.ChunkedArray | pa.Array) -> U64:
    """uint64[n]: hashes of strings, 0 for null."""
    out: U64 = hashes(to_strings(column))
    if column.null_count:
        out[column.is_null().to_numpy(zero_copy_only=False)] = 0
    return out
