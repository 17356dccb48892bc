"""Erased users: who asked to be forgotten, until when, and their rows taken out of whatever is read.

A tombstone is a hash of the user's id (the id itself is what must go) and the moment of erasure: events up to that
moment are left out of every night, later ones are those of somebody who came back.
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
    """The erasures a data set knows of; none where it has no such file. Raises DataError where it cannot be read."""
    path = directory / FILE
    if not path.is_file():
        return {}
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: cannot be read ({' '.join(str(e).split())[:200]}); restore it from a copy") from e
    return dict(zip(table["user"].to_pylist(), table["at"].to_pylist(), strict=True))


def to_table(erasures: Erasures) -> pa.Table:
    """The erasures as `erasures.parquet` holds them."""
    users = sorted(erasures)
    return pa.table({"user": users, "at": [erasures[u] for u in users]}, SCHEMA)


def merge_erasures(directory: Path, since: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Those of a data set, and those since that only Redis knows of: the second of what `BulkStore.erased` gives."""
    out = read_erasures(directory)
    for user, at in since:
        out[user] = max(at, out.get(user, at))
    return out


def without_erased(rows: pa.Table, erasures: Erasures, moment: str) -> pa.Table:
    """The rows without those of erased users up to their erasure. moment: the column with a row's time."""
    if not erasures or not len(rows):
        return rows
    users = rows["user_id"].cast(pa.string()).combine_chunks().dictionary_encode()
    until = [-np.inf if u is None else erasures.get(user_hash(u), -np.inf) for u in users.dictionary.to_pylist()]
    bound = np.array([*until, -np.inf])[pc.fill_null(users.indices, len(until)).to_numpy(zero_copy_only=False)]
    if not np.isfinite(bound).any():
        return rows
    at = rows[moment].cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64()).to_numpy() / 1e6
    return rows.filter(pa.array(at > bound))
