"""Erased users: their tombstones, and the removal of their rows from tables.

A tombstone is a hash of the user ID, because the ID itself must be deleted, and the time of the erasure. Events up to
that time are excluded from every nightly run. Later events are kept: the user came back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from offline.runtime import DataError
from serving.store import user_hash

FILE = "erasures.parquet"
SCHEMA = pa.schema([("user", pa.string()), ("at", pa.float64())])

Erasures = Mapping[str, float]
"""Unix seconds of the last erasure by `user_hash`."""


def read_erasures(directory: Path) -> dict[str, float]:
    """The erasures recorded in a data set; empty without a file. Raises DataError if the file cannot be read."""
    path = directory / FILE
    return read_file(path) if path.is_file() else {}


def read_file(path: Path) -> dict[str, float]:
    """The erasures in a file. Raises DataError if it cannot be read."""
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: cannot be read ({' '.join(str(e).split())[:200]}); restore it from a backup") from e
    return dict(zip(table["user"].to_pylist(), table["at"].to_pylist(), strict=True))


def to_table(erasures: Erasures) -> pa.Table:
    """The erasures as the table of `erasures.parquet`."""
    users = sorted(erasures)
    return pa.table({"user": users, "at": [erasures[u] for u in users]}, SCHEMA)


def merge_erasures(directory: Path, since: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The erasures of a data set and newer ones from Redis: the second value that `BulkStore.erased` returns."""
    out = read_erasures(directory)
    for user, at in since:
        out[user] = max(at, out.get(user, at))
    return out


def without_erased(rows: pa.Table, erasures: Erasures, time_column: str) -> pa.Table:
    """The rows that remain after the erasures. time_column: the column with the time of a row."""
    if not erasures or not len(rows):
        return rows
    users = rows["user_id"].cast(pa.string()).combine_chunks().dictionary_encode()
    until = [-np.inf if u is None else erasures.get(user_hash(u), -np.inf) for u in users.dictionary.to_pylist()]
    bound = np.array([*until, -np.inf])[pc.fill_null(users.indices, len(until)).to_numpy(zero_copy_only=False)]
    if not np.isfinite(bound).any():
        return rows
    at = rows[time_column].cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64()).to_numpy() / 1e6
    return rows.filter(pa.array(at > bound))
