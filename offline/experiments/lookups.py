"""Facts that the log does not hold: to whom a user was merged, and category and margin of an item."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.arrays import F64, I64
from offline.data import LogFiles, to_microseconds, written_items


class Items(NamedTuple):
    """Category and margin of items by ID.

    category: int[n + 1], -1 for none. margin: float64[n + 1], NaN for none. The last row is the unknown item.
    """

    ids: pa.Array
    category: np.ndarray
    margin: F64

    @classmethod
    def of(cls, directory: Path, margin: str) -> Items:
        """Of a data set. Without a catalogue, every item is unknown."""
        path = directory / "items.parquet"
        if not path.is_file():
            return cls(pa.array([], pa.string()), np.full(1, -1), np.full(1, np.nan))
        names = [n for n in ("item_id", "title", "category", margin) if n in pq.read_schema(path).names]
        table = pq.read_table(path, columns=names)
        table = written_items.overlay_written(table, written_items.read_written_items(directory))
        n = len(table)
        category, money = np.full(n + 1, -1), np.full(n + 1, np.nan)
        if "category" in names:
            codes = table["category"].combine_chunks().dictionary_encode().indices
            category[:n] = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)
        if margin in names and (pa.types.is_floating(t := table[margin].type) or pa.types.is_integer(t)):
            money[:n] = pc.fill_null(table[margin].cast(pa.float64()), np.nan).to_numpy()
        return cls(table["item_id"].cast(pa.string()).combine_chunks(), category, money)

    def rows(self, ids: pa.Array | pa.ChunkedArray) -> I64:
        """int64: the row of each ID, -1 for an unknown one."""
        found = pc.index_in(ids.cast(pa.string()), self.ids)
        out: I64 = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return out


class Merges:
    """The user of a row after merges, as a nightly run reads them: what `from_id` had before a merge is `user_id`'s."""

    def __init__(self, files: LogFiles) -> None:
        self.later: dict[str, list[tuple[int, str]]] = {}
        for table in files.merges.spans(("user_id", "from_id", "at")):
            rows = zip(
                table["from_id"].to_pylist(), to_microseconds(table["at"]).tolist(), table["user_id"].to_pylist(),
                strict=True,
            )  # fmt: skip
            for source, at, into in rows:
                self.later.setdefault(source, []).append((at, into))
        for merges in self.later.values():
            merges.sort()
        self._sources = pa.array(list(self.later), pa.string())

    def apply(self, users: pa.Array, at: I64) -> pa.Array:
        """The users to whom rows of these users at these times belong."""
        if not self.later:
            return users
        touched = np.flatnonzero(pc.is_in(users, self._sources).to_numpy(zero_copy_only=False))
        if not len(touched):
            return users
        found = users.to_pylist()
        for k in touched.tolist():
            user, when = found[k], int(at[k])
            while (merge := next((m for m in self.later.get(user, ()) if m[0] > when), None)) is not None:
                when, user = merge
            found[k] = user
        return pa.array(found, pa.string())
