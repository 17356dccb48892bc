"""The lists, impressions, actions and purchases of a log as rows, read span by span."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.log import KINDS, Kind
from offline.data import PLACEMENT, LogFiles, to_microseconds
from offline.earnings.cells import Cells
from offline.earnings.rows import RowKind, Rows, make_rows
from offline.experiments import Prices, UserMerges, id_hashes

_KINDS = {
    Kind.IMPRESSION: RowKind.SHOWN,
    Kind.CLICK: RowKind.CLICK,
    Kind.CART: RowKind.CART,
    Kind.PURCHASE: RowKind.PURCHASE,
}


def served_rows(files: LogFiles, cells: Cells, merges: UserMerges) -> Iterator[Rows]:
    """The served lists: a row of kind LIST each, and one of kind LISTED per item."""
    columns = ["request_id", "at", "user_id", "release", "placement", "item_ids", "experiments"]
    for table in files.served_spans(columns):
        heads = make_rows(len(table))
        heads["kind"] = RowKind.LIST
        heads["request"], heads["at"] = id_hashes(table["request_id"]), to_microseconds(table["at"])
        heads["user"] = merges.apply(id_hashes(table["user_id"]), heads["at"])
        table = table.combine_chunks()
        lists = table["item_ids"].combine_chunks()
        lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
        # A list without items is no exposure.
        arms = pc.if_else(pc.greater(pc.fill_null(pc.list_value_length(lists), 0), 0), table["experiments"], None)
        heads["cell"] = cells.encode(table["placement"], table["release"], arms)
        items = heads[pc.list_parent_indices(lists).to_numpy()]
        items["kind"], items["item"] = RowKind.LISTED, id_hashes(pc.list_flatten(lists))
        yield np.concatenate((heads, items))


def event_rows(files: LogFiles, cells: Cells, merges: UserMerges, prices: Prices) -> Iterator[Rows]:
    """The impressions, clicks, carts, purchases and returns."""
    for span in files.event_spans((PLACEMENT,)):
        kind = pc.index_in(span.table["event"], pa.array(KINDS)).to_numpy()
        used = np.isin(kind, list(_KINDS))
        table, kind = span.table.filter(pa.array(used)), kind[used]
        rows = make_rows(len(table))
        rows["request"], rows["at"] = id_hashes(table["request_id"]), span.at[used]
        rows["item"] = id_hashes(table["item_id"])
        rows["user"] = merges.apply(id_hashes(table["user_id"]), rows["at"])
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
