"""The import section of the configuration: source files and their column mappings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from features.catalogue import STANDARD_COLUMNS, TEXT_COLUMNS
from features.log import GA4, KINDS

Format = Literal["auto", "parquet", "csv", "jsonl", "metarank", "ga4"]


Unit = Literal["auto", "s", "ms", "us", "iso"]


AttributeKind = Literal["number", "category", "tags", "date", "ignore"]


DROP = "drop"
"""Used instead of an event kind in `event_values`: rows with that value are rejected and counted."""


ANNOTATION_FILES = ("truth.parquet", "propensities.parquet")
"""Optional files with extra data about the items of shown lists. Most shops have neither."""


EVENT_COLUMNS = (
    "event_id",
    "event",
    "user_id",
    "item_id",
    "timestamp",
    "request_id",
    "position",
    "value",
    "session_id",
    "device",
    "query",
    "clicked",
    *TEXT_COLUMNS,
    "price",
)
"""Canonical columns of an event source. `clicked` and the item columns are read, but not written with the event."""


def _check_columns(columns: dict[str, str], known: Sequence[str]) -> dict[str, str]:
    if wrong := [name for name in columns if name not in known]:
        raise ValueError(
            f"{wrong[0]!r} is not a canonical column; the left-hand side must be one of {', '.join(known)}"
        )
    return columns


class Source(BaseModel):
    """A source file and how to read it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="Path of the file. Gzip files are decompressed while reading.")
    format: Format = Field(
        default="auto",
        description="File format. `auto` detects it from the file name and, for JSON lines, from the first line.",
    )
    columns: dict[str, str] = Field(
        default={},
        description="Column mapping: canonical column to column of the file. Columns of the same name need no entry.",
    )
    encoding: str = Field(default="utf-8", description="Text encoding of a CSV file: utf-8, latin-1, cp1252, ...")
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="Column separator of a CSV file.")
    float_ids: tuple[str, ...] = Field(
        default=(), description="Canonical ID columns that were exported as floats: 13085.0 is read as 13085."
    )
    timezone: str = Field(
        default="UTC", description="Time zone of timestamps without an offset, such as Europe/London."
    )
    timestamp_unit: Unit = Field(
        default="auto", description="Unit of timestamps. `auto` detects the unit of Unix times from their magnitude."
    )
    timestamp_format: str | None = Field(
        default=None, description="strptime format of timestamps that are not ISO 8601."
    )

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{zone!r} is not a time zone; use an IANA name such as Europe/London") from None
        return zone

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(f"{encoding!r} is not a text encoding; use utf-8, latin-1, cp1252, ...") from None
        return encoding


class ItemSource(Source):
    """A file of items. Columns that are not canonical become item attributes."""

    product_column: str | None = Field(
        default=None, description="Column of the file that is false for rows that are not products."
    )
    list_columns: dict[str, str] = Field(default={}, description="CSV columns that hold lists: attribute to separator.")

    @field_validator("columns")
    @classmethod
    def _columns(cls, columns: dict[str, str]) -> dict[str, str]:
        return _check_columns(columns, STANDARD_COLUMNS)


class EventSource(Source):
    """A file of events. A file in Metarank's format also has items, and `columns` then maps item fields."""

    event: str | None = Field(default=None, description="Event kind of every row, for a file without an event column.")
    event_values: dict[str, str] = Field(
        default={},
        description="Mapping from the file's event names to event kinds, or to `drop`. GA4 names are recognised.",
    )
    order_column: str | None = Field(
        default=None,
        description="Column that orders each user's rows if the file has no timestamps. They are generated from it.",
    )
    order_last_day: date = Field(
        default=date(2020, 1, 1), description="With `order_column`: date given to every user's last row."
    )
    position_base: Literal[0, 1] = Field(default=0, description="Number of the first position of a list in this file.")
    items_from_events: bool = Field(
        default=False,
        description="Build the catalogue from the events: most frequent text and median positive price of each item.",
    )

    @field_validator("columns")
    @classmethod
    def _columns(cls, columns: dict[str, str]) -> dict[str, str]:
        return _check_columns(columns, EVENT_COLUMNS)

    @field_validator("event")
    @classmethod
    def _kind(cls, event: str | None) -> str | None:
        kind = GA4.get(event, event) if event is not None else None
        if kind is not None and kind not in KINDS:
            raise ValueError(f"{event!r} is not an event kind; use one of {', '.join(KINDS)}")
        return kind

    @field_validator("event_values")
    @classmethod
    def _values(cls, values: dict[str, str]) -> dict[str, str]:
        if wrong := [v for v in values.values() if v not in (*KINDS, DROP)]:
            raise ValueError(
                f"{wrong[0]!r} is not an event kind; the right-hand side must be one of {', '.join(KINDS)}, {DROP}"
            )
        return values


class ImportConfig(BaseModel):
    """Source files to import and rules for rejecting rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: tuple[ItemSource, ...] = Field(default=(), description="Item files.")
    events: Annotated[tuple[EventSource, ...], Field(min_length=1)] = Field(description="Event files.")
    annotations: tuple[Path, ...] = Field(
        default=(),
        description="Files to copy into the data set: `propensities.parquet`, and `truth.parquet` of a simulated shop.",
    )
    unknown_items: Literal["quarantine", "keep"] = Field(
        default="quarantine",
        description="Events of items that no source describes: reject the event, or add the item with its ID only.",
    )
    not_products: str | None = Field(
        default=None,
        description="Regular expression that matches whole IDs of items that are not products, such as postage.",
    )
    future_tolerance_s: float = Field(
        default=600.0, ge=0, le=86400 * 366, description="Seconds an event may lie in the future before it is rejected."
    )
    earliest: date = Field(default=date(1995, 1, 1), description="Events before this date are rejected.")
    missing: tuple[str, ...] = Field(
        default=("", "null", "NULL", "None", "nan", "NaN", "undefined", "(not set)"),
        description="Cell values that count as missing.",
    )
    moment_attributes: tuple[str, ...] = Field(
        default=("release_date",), description="Item attributes that are timestamps, in ISO 8601 or Unix time."
    )

    @field_validator("not_products")
    @classmethod
    def _regex(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _items_somewhere(self) -> Self:
        has_items = self.items or any(
            e.items_from_events or e.format in ("metarank", "ga4", "auto") for e in self.events
        )
        if not has_items and self.unknown_items == "quarantine":
            raise ValueError(
                "no source describes items, so every event would be rejected: name a file under `items`, set"
                " `items_from_events: true` on an event source, or set `unknown_items: keep`"
            )
        return self
