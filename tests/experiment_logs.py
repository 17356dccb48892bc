"""Hand-made logs of experiments: served lists and events as a service would have logged them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

START_US = 1_780_272_000_000_000
"""2026-06-01T00:00Z, Unix microseconds."""
HOUR_US = 3_600_000_000
UTC_US = pa.timestamp("us", "UTC")
_SERVED = pa.schema(
    [
        ("request_id", pa.string()),
        ("at", UTC_US),
        ("user_id", pa.string()),
        ("placement", pa.string()),
        ("degraded", pa.bool_()),
        ("item_ids", pa.list_(pa.string())),
        ("experiments", pa.map_(pa.string(), pa.string())),
        ("teams", pa.list_(pa.string())),
        ("session_id", pa.string()),
        ("took_ms", pa.float64()),
    ]
)
_EVENTS = pa.schema(
    [
        ("event_id", pa.string()),
        ("event", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", UTC_US),
        ("request_id", pa.string()),
        ("position", pa.int16()),
        ("value", pa.float64()),
        ("session_id", pa.string()),
    ]
)
_MERGES = pa.schema([("user_id", pa.string()), ("from_id", pa.string()), ("at", UTC_US)])
_ITEMS = {"item_id": ["a", "b", "c", "d"], "title": ["A", "B", "C", "D"], "category": ["x", "x", "y", None]} | {
    "price": [10.0, 5.0, 20.0, None]
}


def shown(user: str | None, arm: str | None, hours: float, **others: Any) -> dict[str, Any]:
    """A served list of the experiment `test`, some hours after the start."""
    return {"user_id": user, "at": START_US + round(hours * HOUR_US), "arm": arm} | others


def acted(user: str, event: str, hours: float, value: float | None = None, **others: Any) -> dict[str, Any]:
    """An event, some hours after the start."""
    return {"user_id": user, "event": event, "timestamp": START_US + round(hours * HOUR_US), "value": value} | others


def write_log(
    directory: Path,
    lists: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
    merges: Sequence[Mapping[str, Any]] = (),
    margins: Sequence[float | None] | None = (2.0, 3.0, None, 5.0),
) -> Path:
    """Write a data set with these lists and events; the directory."""
    served = [
        {
            "request_id": f"r{k}",
            "placement": "home",
            "degraded": False,
            "item_ids": ["a", "b", "c"],
            "experiments": None if row["arm"] is None else [("test", row["arm"])],
        }
        | {name: value for name, value in row.items() if name != "arm"}
        for k, row in enumerate(lists)
    ]
    logged = [{"event_id": f"e{k}", "item_id": "a"} | dict(row) for k, row in enumerate(events)]
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**_ITEMS} | ({"margin": margins} if margins else {})), directory / "items.parquet")
    for folder, rows, schema, column in (
        ("served", served, _SERVED, "at"),
        ("events", logged, _EVENTS, "timestamp"),
        ("merges", list(merges), _MERGES, "at"),
    ):
        by_day: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_day.setdefault(str(pa.scalar(row[column], UTC_US).as_py().date()), []).append(dict(row))
        for day, part in by_day.items():
            path = directory / folder / f"date={day}"
            path.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(part, schema), path / "part.parquet")
    return directory
