"""The import section of the configuration: raw tables, and their mapping to items, events and users."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from features.catalogue import STANDARD_COLUMNS, TEXT_COLUMNS
from features.log import GA4, KINDS
from serving.config import ExperimentName

CellKind = Literal["number", "category", "tags", "date", "ignore"]
"""Types of attributes in an import."""
AttributeKind = Literal["number", "category", "tags", "date", "value", "ignore"]
"""Types of attributes in training. `value`: a number for objectives, and not a feature."""


DROP = "drop"
"""Used instead of an event kind in `values`: rows with that value are left out and counted."""


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
    "placement",
    "clicked",
    *TEXT_COLUMNS,
    "price",
)
"""Canonical columns of an event source. `clicked` and the item columns are read, but not written with the event."""

_NAME = r"^[A-Za-z][A-Za-z0-9_]*$"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class TableConfig(_Section):
    """A raw table: files and how to read them, or an SQL query over other tables."""

    files: str | tuple[str, ...] | None = Field(
        default=None, description="File, folder or glob, or a list of them, relative to `folder`. They form one table."
    )
    sql: str | None = Field(default=None, description="Query over the tables above, in DuckDB's SQL, instead of files.")
    columns: tuple[str, ...] = Field(default=(), description="Names of the columns of a file without a header.")
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=4, description="Column separator of a text. Guessed if missing."
    )
    quote: str | None = Field(
        default=None, max_length=1, description="Quote character of a text, '' for none. Guessed if missing."
    )
    encoding: str | None = Field(
        default=None, description="Text encoding: utf-8, cp1252, gb18030, ... Guessed if missing."
    )
    part: str | None = Field(
        default=None,
        description="Which table of a file that holds several: sheet, XML element, or member of a zip file.",
    )
    rename: dict[str, tuple[str, ...]] = Field(
        default={},
        description="New name of a column to the names it may have in the files. The first that the files have is"
        " renamed. Letters and digits decide if no name is equal; `*` stands for any characters.",
    )
    ensure: tuple[str, ...] = Field(
        default=(), description="Columns that are added, without values, if no file has them; `sql` may then name them."
    )
    as_text: bool = Field(
        default=False,
        description="Read numbers, moments and truth values of Parquet and JSON as texts, as those of CSV are, so that"
        " one `sql` or `where` fits every format.",
    )
    lists: dict[str, str] = Field(
        default={},
        description="Lists from numbered columns, such as line_1_sku, line_1_price, line_2_sku: name of the list to"
        " names of the columns, with {number} for the number and {field} for the rest. `explode` makes rows of a list.",
    )
    fill_down: tuple[str, ...] = Field(
        default=(), description="Columns that are filled only in the first of several rows, such as those of an order."
    )
    key: str | None = Field(
        default=None,
        description="With `fill_down`: column that is equal in the rows of one order. It may be filled itself.",
    )

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, encoding: str | None) -> str | None:
        try:
            "".encode(encoding or "utf-8")
        except LookupError:
            raise ValueError(f"{encoding!r} is not a text encoding; use utf-8, latin-1, cp1252, ...") from None
        return encoding

    @field_validator("lists")
    @classmethod
    def _have_numbers(cls, lists: dict[str, str]) -> dict[str, str]:
        for name, template in lists.items():
            if template.count("{number}") != 1 or template.count("{field}") > 1:
                raise ValueError(f"{name}: {template!r} needs {{number}} once, and {{field}} at most once")
        return lists

    @model_validator(mode="after")
    def _files_or_sql(self) -> Self:
        if (self.files is None) == (self.sql is None):
            raise ValueError("set either `files` or `sql`")
        return self


class Column(_Section):
    """Source of the values of a canonical column or an attribute, and how to read them.

    Exactly one of path, first, value and sql is set, or first and sql.
    """

    path: str | None = Field(default=None, description="Column, or path into a nested value: `device.category`.")
    first: tuple[str, ...] = Field(default=(), description="Paths of which the first that is not missing is used.")
    value: str | None = Field(default=None, description="The same value in every row.")
    sql: str | None = Field(
        default=None, description="Expression over the columns of the row, in DuckDB's SQL. Beside `first`: used last."
    )
    values: dict[str, str] = Field(
        default={},
        description="Replaces values. For `event`: from the file's event names to event kinds, or to `drop`.",
    )
    html: bool | None = Field(default=None, description="Whether texts are HTML. Texts with tags are, if missing.")
    split: str | None = Field(default=None, min_length=1, description="Separator of a text that holds a list.")
    type: CellKind | None = Field(default=None, description="Type of an attribute. Found from its values if missing.")
    decimal: Literal[".", ","] | None = Field(
        default=None, description="Decimal separator of numbers. Found from the whole column if missing."
    )
    zone: str | None = Field(default=None, description="Time zone of moments without an offset, such as Europe/London.")
    unit: Literal["s", "ms", "us", "ns"] | None = Field(
        default=None, description="Unit of Unix times. Found from their size if missing."
    )
    format: str | None = Field(
        default=None, description="strptime format of moments. Found from the values if missing."
    )
    start: Literal[0, 1] = Field(default=0, description="Number of the first position of a list.")
    currency: str | None = Field(
        default=None,
        description="Path of the currency of an amount, which `rates` converts. If missing, the sign or code beside the"
        " number of a `price`.",
    )

    @field_validator("zone")
    @classmethod
    def _zone_exists(cls, zone: str | None) -> str | None:
        try:
            ZoneInfo(zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{zone!r} is not a time zone; use an IANA name such as Europe/London") from None
        return zone

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        origins = [self.path is not None, bool(self.first), self.value is not None, self.sql is not None]
        if sum(origins) != 1 and origins != [False, True, False, True]:
            raise ValueError("set exactly one of `path`, `first`, `value` and `sql`, or `first` and `sql`")
        return self


def _as_column(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


ColumnConfig = Annotated[Column, BeforeValidator(_as_column)]


class Join(_Section):
    """A table to look up one row in, for each row of a source."""

    table: str = Field(description="Table to look up.")
    keys: dict[str, str] = Field(
        min_length=1, description="Pairs that must be equal: path of the row to column of the table."
    )


class Unpack(_Section):
    """A nested value whose members become attributes: an object, or a list of pairs."""

    path: str = Field(description="Path of the nested value.")
    key: str | None = Field(default=None, description="In a list of pairs: field that holds the attribute's name.")
    value: str | None = Field(
        default=None,
        description="Path of the value within a pair, or within a member of the object: `*` is its first field.",
    )


class Pattern(_Section):
    """Columns that become attributes under another name."""

    columns: str = Field(
        description="Regular expression that matches a column's whole name. Its first group is the attribute's name."
    )
    type: CellKind | None = Field(default=None, description="Type of the attributes.")
    split: str | None = Field(default=None, min_length=1, description="Separator of texts that hold a list.")

    @field_validator("columns")
    @classmethod
    def _has_group(cls, columns: str) -> str:
        try:
            groups = re.compile(columns).groups
        except re.error as error:
            raise ValueError(f"{columns!r} is not a regular expression: {error}") from None
        if groups < 1:
            raise ValueError(f"{columns!r} has no group for the attribute's name; write it as in 'Meta: (.+)'")
        return columns


class Explode(_Section):
    """A list in a row of which each element becomes a row."""

    path: str = Field(description="Path of the list.")
    split: str | None = Field(default=None, min_length=1, description="Separator, if the list is a text.")


def _as_explode(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class Source(_Section):
    """A table and what its rows mean."""

    table: str = Field(alias="from", description="Table whose rows are read.")
    join: tuple[Join, ...] = Field(default=(), description="Tables to look up, in this order.")
    explode: Annotated[Explode | None, BeforeValidator(_as_explode)] = Field(
        default=None, description="Path of a list: each element becomes a row. `_index` is its place, from 0."
    )
    where: str | None = Field(
        default=None, description="Condition in DuckDB's SQL. Other rows are left out and counted."
    )
    columns: dict[str, ColumnConfig | None] = Field(
        default={},
        description="Canonical column to path, or to an object with more options. A column of the same name needs no"
        " entry; `null` leaves it out.",
    )


class _Profiles(Source):
    exclude: tuple[str, ...] = Field(
        default=(), description="Columns that do not become attributes. `*` stands for any characters."
    )
    include: tuple[str, ...] | None = Field(
        default=None, description="Columns that become attributes. All that are not mapped, if missing."
    )
    unpack: tuple[Unpack, ...] = Field(default=(), description="Nested values whose members become attributes.")
    patterns: tuple[Pattern, ...] = Field(
        default=(), description="Columns that become attributes under another name. The first pattern that fits counts."
    )
    merge: Literal["first", "last"] | None = Field(
        default=None,
        description="Several rows of one ID are one: the first or the last value of each column. If missing, only the"
        " first row is accepted.",
    )
    order: str | None = Field(default=None, description="With `merge`: column that orders the rows, such as a moment.")

    def excludes(self, column: str) -> bool:
        """True if a column does not become an attribute."""
        return any(re.fullmatch(".*".join(map(re.escape, name.split("*"))), column) for name in self.exclude)


class ItemSource(_Profiles):
    """A table of items. Other columns become attributes."""

    product_column: str | None = Field(
        default=None, description="Column that is false for rows that are not products; their events are rejected too."
    )


class UserSource(_Profiles):
    """A table of users. All columns but `user_id` become attributes."""


class EventSource(Source):
    """A table of events."""

    request: dict[str, ColumnConfig | None] = Field(
        default={},
        description="Of impressions: columns of the request that the list answers, such as a search engine's score, by"
        " name. `features.request` declares which of them are features.",
    )
    unpack: tuple[Unpack, ...] = Field(
        default=(), description="Of impressions: nested values whose members become columns of the request."
    )
    exclude: tuple[str, ...] = Field(default=(), description="Members of `unpack` that do not.")

    experiments: dict[ExperimentName, ColumnConfig] = Field(
        default={},
        description="Of impressions: the arm of the list in an experiment, by the name of the experiment; "
        "`interleaved` for a list that mixes both arms.",
    )
    team: ColumnConfig | None = Field(
        default=None, description="Of impressions of an interleaved list: the arm that chose the item."
    )
    order_column: str | None = Field(
        default=None,
        description="Column that orders each user's rows if there are no moments. They are generated from it.",
    )
    order_last_day: date = Field(
        default=date(2020, 1, 1), description="With `order_column`: date given to every user's last row."
    )
    find_list_within_s: float | None = Field(
        default=None,
        gt=0,
        description="Assign a row without a list to the newest list that showed the user the item, at most this old.",
    )
    items_from_events: bool = Field(
        default=False,
        description="Create items from the events: most frequent text and median positive price of each item.",
    )

    @field_validator("columns")
    @classmethod
    def _columns(cls, columns: dict[str, Column | None]) -> dict[str, Column | None]:
        if wrong := [name for name in columns if name not in EVENT_COLUMNS]:
            raise ValueError(
                f"{wrong[0]!r} is not a canonical column; the left-hand side must be one of {', '.join(EVENT_COLUMNS)}"
            )
        event = columns.get("event")
        kinds = [] if event is None else [*event.values.values(), *([event.value] if event.value else [])]
        if wrong := [v for v in kinds if GA4.get(v, v) not in (*KINDS, DROP)]:
            raise ValueError(f"{wrong[0]!r} is not an event kind; use one of {', '.join(KINDS)}, {DROP}")
        return columns


class ImportConfig(_Section):
    """Source tables to import, their mapping, and rules for rejecting rows."""

    folder: Path = Field(default=Path(), description="Folder that `files` are relative to.")
    tables: dict[Annotated[str, Field(pattern=_NAME)], TableConfig] = Field(
        default={}, description="Raw tables by name. A source may also name a file, which is then a table of its own."
    )
    items: tuple[ItemSource, ...] = Field(default=(), description="Tables of items.")
    events: Annotated[tuple[EventSource, ...], Field(min_length=1)] = Field(description="Tables of events.")
    users: tuple[UserSource, ...] = Field(default=(), description="Tables of users and their attributes.")
    annotations: tuple[Path, ...] = Field(
        default=(),
        description="Files to copy into the data set: `propensities.parquet`, and `truth.parquet` of a simulated shop.",
    )
    unknown_items: Literal["quarantine", "keep"] = Field(
        default="quarantine",
        description="Events of items that no source describes: reject the event, or add the item with its ID only.",
    )
    match_items: bool = Field(
        default=True,
        description="Read an event's item ID as the catalogue's where they differ by leading zeros, case, accents, `.0`"
        " or a prefix only, and only one item can be meant.",
    )
    most_unknown: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Largest share of events without a catalogue entry. The import stops above it. 1 for any share.",
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
        default=("", "null", "NULL", "None", "nan", "NaN", "undefined", "(not set)", "\\N"),
        description="Cell values that count as missing.",
    )
    timezone: str = Field(default="UTC", description="Time zone of moments without an offset.")
    currency: str | None = Field(
        default=None,
        pattern="^[A-Z]{3}$",
        description="Currency of the shop, such as EUR. Prices in another one are converted by `rates`; without a rate,"
        " they count as missing. null: prices are not converted.",
    )
    rates: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default={},
        description="Price of one unit of another currency in that of the shop, by its code or sign: {USD: 0.92}.",
    )

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, zone: str) -> str:
        Column(path="timestamp", zone=zone)
        return zone

    @field_validator("not_products")
    @classmethod
    def _regex(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _shop_has_currency(self) -> Self:
        if self.currency is None and self.rates:
            raise ValueError("set `currency` to the shop's own, such as EUR: `rates` convert amounts to it")
        return self

    @model_validator(mode="after")
    def _items_somewhere(self) -> Self:
        has_items = self.items or any(e.items_from_events for e in self.events)
        if not has_items and self.unknown_items == "quarantine":
            raise ValueError(
                "no source describes items, so every event would be rejected: name a table under `items`, set"
                " `items_from_events: true` on an event source, or set `unknown_items: keep`"
            )
        return self

    def to_mapping(self) -> Mapping[str, Any]:
        """The section as plain values for YAML, without defaults."""
        out: Mapping[str, Any] = _compact(self.model_dump(mode="json", by_alias=True, exclude_defaults=True))
        return out


def _compact(value: Any) -> Any:
    """Plain values in which an object with only a path is written as the path, except of `unpack`, which needs one."""
    if isinstance(value, dict):
        if list(value) == ["path"]:
            return value["path"]
        return {k: v if k == "unpack" else _compact(v) for k, v in value.items()}
    return [_compact(v) for v in value] if isinstance(value, list) else value


__all__ = [
    "ANNOTATION_FILES",
    "DROP",
    "EVENT_COLUMNS",
    "STANDARD_COLUMNS",
    "AttributeKind",
    "Column",
    "EventSource",
    "Explode",
    "ImportConfig",
    "ItemSource",
    "Join",
    "Pattern",
    "Source",
    "TableConfig",
    "Unpack",
    "UserSource",
]
