"""Schemas of the files of a data set, whether imported, simulated or collected from a running service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from features.log import KINDS


@dataclass(frozen=True)
class Form:
    """Rules that the files of a log must follow.

    moment: the column with the time of a row. required: columns that must exist. never_null: columns that must have a
    value in every row. allowed: permitted values, by column. fix: how to repair a file, for error messages.
    """

    moment: str
    required: Sequence[str]
    never_null: Sequence[str]
    allowed: Mapping[str, Sequence[str]]
    fix: str


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

RECREATE = "recreate the data set with `shelfwise import` or `shelfwise simulate`"
EVENTS_FILE, EVENTS = "events.parquet", "events"
SERVED_FILE, SERVED = "served.parquet", "served"
"""Events and served lists as single files, of an import, and the folders of their day partitions, of `collect`."""

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
        ("columns", pa.string()),
    ]
)
"""Of an event. columns: of an impression, the columns of its request, as a JSON object of one value each."""
PLACEMENT = pa.field("placement", pa.string())
"""The placement of the list of an event, and of a served list: the last column of files in which a row has one."""
SEEDS = pa.field("items", pa.list_(pa.string()))
"""The items that the request of a served list named: a column of files in which a row has some, after `PLACEMENT`."""
EXPERIMENT_FIELDS = (
    pa.field("experiments", pa.map_(pa.string(), pa.string())),
    pa.field("teams", pa.list_(pa.string())),
    pa.field("session_id", pa.string()),
    pa.field("took_ms", pa.float64()),
)
"""Of a served list that was in experiments: columns of files in which a row has a value, after `SEEDS`.

experiments: the arm by experiment, which is `interleaved` for a list that mixes both arms. teams: of such a list, the
arm that chose the item of each position; null for one that neither chose. session_id: that of the request. took_ms:
milliseconds that the list took.
"""
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
        ("columns", pa.string()),
        ("candidate_columns", pa.string()),
        ("user_attributes", pa.string()),
    ]
)
ATTRIBUTES = "attributes"
"""The folder of day partitions of writes of users' attributes."""
ATTRIBUTES_SCHEMA = pa.schema([("user_id", pa.string()), ("at", UTC_US), ("attributes", pa.string())])
"""attributes: JSON object; null for one that was cleared."""
MERGES = "merges"
"""The folder of day partitions of merges of users."""
MERGES_SCHEMA = pa.schema([("user_id", pa.string()), ("from_id", pa.string()), ("at", UTC_US)])
"""What `from_id` had before `at` is in the lists of `user_id` from then on."""
EVENTS_FORM = Form(
    "timestamp",
    ("event_id", "event", "user_id", "item_id", "timestamp", "request_id", "position", "value"),
    ("event_id", "event", "user_id", "item_id", "timestamp"),
    {"event": KINDS},
    RECREATE,
)
ATTRIBUTES_FORM = Form("at", ("user_id", "at", "attributes"), ("user_id", "at"), {}, "restore it from a backup")
MERGES_FORM = Form("at", MERGES_SCHEMA.names, MERGES_SCHEMA.names, {}, "restore it from a backup")
SERVED_FORM = Form("at", ("request_id", "at"), ("request_id", "at"), {}, "restore it from a backup")
