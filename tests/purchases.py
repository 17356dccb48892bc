"""A shop that imported its purchases and then served lists, made from a simulated shop that logged all its lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.log import KINDS, Kind

_OF_LISTS = ("request_id", "position", "session_id", "device")


def forget_lists(data: Path, served: int = 0, since: float = np.inf, all_since: float = np.inf) -> None:
    """Leave of a simulated log what a shop has that served `served` lists from `since` on, and every list from
    `all_since` on. Of all other lists only the purchases are left, without a list, session or device.

    since, all_since: Unix seconds. The lists that are kept are the first that were shown; they keep all their events.
    """
    events = pq.read_table(data / "events.parquet")
    at = events["timestamp"].cast(pa.int64()).to_numpy() / 1e6
    shown = pc.equal(events["event"], KINDS[Kind.IMPRESSION]).to_numpy()
    request = np.array(events["request_id"].to_pylist(), object)
    first: dict[str, float] = {}
    for name, time in zip(request[shown].tolist(), at[shown].tolist(), strict=True):
        first.setdefault(name, time)
    live = [name for name, time in first.items() if since <= time < all_since][:served]
    kept = {*live, *(name for name, time in first.items() if time >= all_since)}
    of_list = np.array([name in kept for name in request.tolist()], bool)
    bought = pc.equal(events["event"], KINDS[Kind.PURCHASE]).to_numpy() & ~of_list
    purchases = events.filter(pa.array(bought))
    for name in _OF_LISTS:
        field = purchases.schema.field(name)
        nothing = pa.nulls(len(purchases), field.type)
        purchases = purchases.set_column(purchases.schema.get_field_index(name), field, nothing)
    left = pa.concat_tables([events.filter(pa.array(of_list)), purchases]).sort_by("timestamp")
    pq.write_table(left, data / "events.parquet")
    for name in ("truth.parquet", "propensities.parquet"):
        (data / name).unlink(missing_ok=True)
