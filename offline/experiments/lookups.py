"""Facts that the log does not hold: the category of an item, and to whom a user was merged."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.arrays import I64, U64
from features.kernels.strings import hashes
from offline.data import LogFiles, erasures, to_microseconds, to_strings, written_items


class Items(NamedTuple):
    """Categories of items by ID. category: int[n + 1], -1 for none. The last row is the unknown item."""

    ids: pa.Array
    category: np.ndarray

    @classmethod
    def of(cls, directory: Path) -> Items:
        """Of a data set. Without a catalogue, every item is unknown."""
        path = directory / "items.parquet"
        if not path.is_file():
            return cls(pa.array([], pa.string()), np.full(1, -1))
        names = [n for n in ("item_id", "title", "category") if n in pq.read_schema(path).names]
        table = pq.read_table(path, columns=names)
        table = written_items.overlay_written(table, written_items.read_written_items(directory))
        category = np.full(len(table) + 1, -1)
        if "category" in names:
            codes = table["category"].combine_chunks().dictionary_encode().indices
            category[:-1] = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)
        return cls(table["item_id"].cast(pa.string()).combine_chunks(), category)

    def rows(self, ids: pa.Array | pa.ChunkedArray) -> I64:
        """int64: the row of each ID, -1 for an unknown one."""
        found = pc.index_in(ids.cast(pa.string()), self.ids)
        out: I64 = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return out


class UserMerges(NamedTuple):
    """Merges of users, sorted by the user merged and the time. source, into: hashes. at: Unix microseconds."""

    source: U64
    into: U64
    at: I64

    def apply(self, user: U64, at: I64) -> U64:
        """uint64[n]: who each of these users has become since: what they did before a merge is the other user's."""
        user, since = user.copy(), at.copy()
        rows = np.flatnonzero(np.isin(user, self.source))
        while len(rows):
            found = self._next(user[rows], since[rows])
            rows, found = rows[found >= 0], found[found >= 0]
            user[rows], since[rows] = self.into[found], self.at[found]
        return user

    def _next(self, user: U64, at: I64) -> I64:
        """int64[n]: the first merge of each user after a time, `-1` if there is none."""
        users, times = np.concatenate((self.source, user)), np.concatenate((self.at, at))
        is_row = np.arange(len(users)) >= len(self.source)
        order = np.lexsort((is_row, times, users))
        merge = np.where(is_row[order], len(users), np.arange(len(users)))
        following = np.minimum.accumulate(merge[::-1])[::-1]
        ends = following == len(users)
        following[ends] = 0
        same = ~ends & (users[order][following] == users[order])
        out = np.full(len(users), -1)
        out[order] = np.where(same, order[following], -1)
        return out[len(self.source) :]


def read_merges(files: LogFiles) -> UserMerges:
    """The merges of users up to the end of the log."""
    columns = ("user_id", "from_id", "at")
    tables = [erasures.without_erased(t, files.erased, "at") for t in files.merges.spans(columns)]
    if not tables:
        return UserMerges(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))
    table = pa.concat_tables(tables)
    source, into, at = id_hashes(table["from_id"]), id_hashes(table["user_id"]), to_microseconds(table["at"])
    order = np.lexsort((into, at, source))
    return UserMerges(source[order], into[order], at[order])


def id_hashes(column: pa.ChunkedArray | pa.Array) -> U64:
    """uint64[n]: hashes of strings, 0 for null."""
    out: U64 = hashes(to_strings(column))
    if column.null_count:
        out[column.is_null().to_numpy(zero_copy_only=False)] = 0
    return out
