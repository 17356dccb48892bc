"""Attributes of users, as imported: `users.parquet`, with `user_id` and a column per attribute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offline.data.erasures import Erasures
from offline.runtime import atomic_path

FILE = "users.parquet"


def without_erased(profiles: pa.Table, erasures: Erasures) -> pa.Table:
    """The rows of users who were never erased. Attributes have no time, so they are never newer than an erasure."""
    if not erasures.at:
        return profiles
    kept = [erasures.until(user) == -np.inf for user in profiles["user_id"].to_pylist()]
    return profiles.filter(pa.array(kept, pa.bool_()))


def remove_erased(directory: Path, erasures: Erasures) -> None:
    """Remove the attributes of erased users from a data set."""
    path = directory / FILE
    if not path.is_file():
        return
    before = pq.read_table(path)
    after = without_erased(before, erasures)
    if len(after) < len(before):
        with atomic_path(path) as temporary:
            pq.write_table(after, temporary, compression="zstd")
