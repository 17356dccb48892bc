"""The columns of a data set's files: what is imported, simulated, and collected from a running service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from features.log import KINDS


@dataclass(frozen=True)
class Form:
    """What the files of a log must be like. moment: the column of a row's time. needed: columns that must be there.
    never_null: those of which each row has a value. allowed: by column, its values."""

    moment: str
    needed: Sequence[str]
    never_null: Sequence[str]
    allowed: Mapping[str, Sequence[str]]
    again: str


UTC_US = pa.timestamp("us", "UTC")


TAGS = pa.list_(pa.string())


CANONICAL = {
    "item_id": pa.string(),
    "title": pa.string(),
    "description": pa.string(),
    "category": pa.string(),
    "brand": pa.string(),
    "price": pa.float64(),
    "available_from": UTC_US,
}

AGAIN = "make the data set again with `shelfwise import` or `shelfwise simulate`"
EVENTS_FILE, EVENTS, SERVED = "events.parquet", "events", "served"
"""The log as one file; folders of day partitions: events, and answered lists."""

EVENTS_SCHEMA = pa.schema(
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
        ("device", pa.string()),
        ("query", pa.string()),
    ]
)
SERVED_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("at", UTC_US),
        ("release", pa.string()),
        ("route", pa.string()),
        ("user_id", pa.string()),
        ("device", pa.string()),
        ("query", pa.string()),
        ("degraded", pa.bool_()),
        ("item_ids", pa.list_(pa.string())),
        ("score", pa.list_(pa.float64())),
        ("propensity", pa.list_(pa.float64())),
        ("candidates", pa.list_(pa.string())),
        ("rows", pa.binary()),
        ("shadow", pa.string()),
        ("shadow_score", pa.list_(pa.float64())),
        ("shadow_correlation", pa.float64()),
        ("shadow_overlap", pa.float64()),
        ("shadow_ms", pa.float64()),
        ("live_ms", pa.float64()),
    ]
)
EVENTS_FORM = Form(
    "timestamp",
    ("event_id", "event", "user_id", "item_id", "timestamp", "request_id", "position", "value"),
    ("event_id", "event", "user_id", "item_id", "timestamp"),
    {"event": KINDS},
    AGAIN,
)
SERVED_FORM = Form("at", ("request_id", "at"), ("request_id", "at"), {}, "restore it from a copy")
