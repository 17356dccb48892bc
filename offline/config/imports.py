"""Which files an import reads and what their columns mean: the import section of the configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from features.log import GA4, KINDS

Format = Literal["auto", "parquet", "csv", "jsonl", "metarank", "ga4"]


Unit = Literal["auto", "s", "ms", "us", "iso"]


AttributeKind = Literal["number", "category", "tags", "date", "ignore"]


DROP = "drop"
"""Instead of a kind in `event_values`: rows of that value are refused, and counted."""


ANNOTATION_FILES = ("truth.parquet", "propensities.parquet")
"""Files that say more of shown lists than an event can: few shops have them, and none needs them."""


ITEM_COLUMNS = ("item_id", "title", "description", "category", "brand", "price", "available_from")


ITEM_TEXTS = ("title", "description", "category", "brand")


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
    *ITEM_TEXTS,
    "price",
)
"""Canonical columns of an event source; `clicked` and those of the item are read, but not written with the event."""


def _known_columns(columns: dict[str, str], known: Sequence[str]) -> dict[str, str]:
    if wrong := [name for name in columns if name not in known]:
        raise ValueError(f"{wrong[0]!r} is no column of ours; the left-hand side is one of {', '.join(known)}")
    return columns


class Source(BaseModel):
    """A file to read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="The file. Gzip is unpacked as it is read.")
    format: Format = Field(
        default="auto", description="`auto` tells it from the name and, for JSON lines, the first line."
    )
    columns: dict[str, str] = Field(
        default={}, description="Our column: the file's column. A column of the same name needs no entry."
    )
    encoding: str = Field(default="utf-8", description="Of a CSV file: utf-8, latin-1, cp1252, ...")
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="Of a CSV file.")
    float_ids: tuple[str, ...] = Field(
        default=(), description="Our id columns that were exported as floats: 13085.0 is read as 13085."
    )
    timezone: str = Field(default="UTC", description="Zone of times that name none, e.g. Europe/London.")
    timestamp_unit: Unit = Field(default="auto", description="`auto` tells the unit of Unix times by their size.")
    timestamp_format: str | None = Field(default=None, description="A strptime format where times are not ISO 8601.")

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{zone!r} is no time zone; use an IANA name such as Europe/London") from None
        return zone

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(f"{encoding!r} is no text encoding; use utf-8, latin-1, cp1252, ...") from None
        return encoding


class ItemSource(Source):
    """A file of items. Columns beyond ours are kept as attributes."""

    product_column: str | None = Field(
        default=None, description="Column of the file that is false for what is no product."
    )
    list_columns: dict[str, str] = Field(default={}, description="Attribute of a CSV: the separator of its list.")

    @field_validator("columns")
    @classmethod
    def _columns(cls, columns: dict[str, str]) -> dict[str, str]:
        return _known_columns(columns, ITEM_COLUMNS)


class EventSource(Source):
    """A file of events; of Metarank's format also of items (`columns` then maps item fields)."""

    event: str | None = Field(default=None, description="The kind of every row, where the file has no such column.")
    event_values: dict[str, str] = Field(
        default={}, description="The file's word for a kind: ours, or `drop`. GA4's names are known."
    )
    order_column: str | None = Field(
        default=None,
        description="Column that orders each user's rows, where no time is known: times are made up from it.",
    )
    order_last_day: date = Field(
        default=date(2020, 1, 1), description="With `order_column`: the day of every user's last row."
    )
    position_base: Literal[0, 1] = Field(default=0, description="Position of the top of a list in this file.")
    items_from_events: bool = Field(
        default=False, description="Make items from the rows: the most frequent text, the median price above 0."
    )

    @field_validator("columns")
    @classmethod
    def _columns(cls, columns: dict[str, str]) -> dict[str, str]:
        return _known_columns(columns, EVENT_COLUMNS)

    @field_validator("event")
    @classmethod
    def _kind(cls, event: str | None) -> str | None:
        kind = GA4.get(event, event) if event is not None else None
        if kind is not None and kind not in KINDS:
            raise ValueError(f"{event!r} is no event kind; use one of {', '.join(KINDS)}")
        return kind

    @field_validator("event_values")
    @classmethod
    def _values(cls, values: dict[str, str]) -> dict[str, str]:
        if wrong := [v for v in values.values() if v not in (*KINDS, DROP)]:
            raise ValueError(f"{wrong[0]!r} is no event kind; the right-hand side is one of {', '.join(KINDS)}, {DROP}")
        return values


class ImportConfig(BaseModel):
    """What to import, and how strictly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: tuple[ItemSource, ...] = Field(default=(), description="Files of items.")
    events: Annotated[tuple[EventSource, ...], Field(min_length=1)] = Field(description="Files of events.")
    beside: tuple[Path, ...] = Field(
        default=(), description="`propensities.parquet`, and `truth.parquet` of a simulated shop, to bring along."
    )
    unknown_items: Literal["quarantine", "keep"] = Field(
        default="quarantine",
        description="An event of an item that no source describes: refuse it, or add the bare item.",
    )
    not_products: str | None = Field(
        default=None,
        description="Regular expression; an item whose whole id matches is no product (postage, fees, tests).",
    )
    future_tolerance_s: float = Field(default=600.0, ge=0, le=86400 * 366, description="Seconds a clock may be ahead.")
    earliest: date = Field(default=date(1995, 1, 1), description="An event before this day is taken for a mistake.")
    missing: tuple[str, ...] = Field(
        default=("", "null", "NULL", "None", "nan", "NaN", "undefined", "(not set)"),
        description="Cells that mean: missing.",
    )
    moment_attributes: tuple[str, ...] = Field(
        default=("release_date",), description="Attributes of items that are moments, as ISO 8601 or Unix time."
    )

    @field_validator("not_products")
    @classmethod
    def _regex(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _items_somewhere(self) -> Self:
        described = self.items or any(
            e.items_from_events or e.format in ("metarank", "ga4", "auto") for e in self.events
        )
        if not described and self.unknown_items == "quarantine":
            raise ValueError(
                "no source describes items, so every event would be refused: name a file under `items`, set"
                " `items_from_events: true` on a source of events, or set `unknown_items: keep`"
            )
        return self
