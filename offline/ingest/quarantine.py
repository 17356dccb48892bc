"""Rejected rows, and the list of all reasons for rejecting a row, each with its remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import duckdb
import pyarrow as pa

from offline.data import erasures, imported


class Reason(NamedTuple):
    """Why a row is rejected: a clause that follows the value, and a remedy, which is a sentence."""

    problem: str
    remedy: str


REASONS: Mapping[str, Reason] = {
    "missing_user": Reason(
        "does not identify a user", "Log the ID of the customer or anonymous visitor with every event."
    ),
    "missing_item": Reason("does not identify an item", "Log the item ID with every row."),
    "placeholder_id": Reason(
        "stands for a missing ID", "Leave the cell empty if there is no ID; otherwise all of these would be one."
    ),
    "id_too_long": Reason("is longer than 256 bytes", "Map a column that contains IDs, or shorten the IDs."),
    "control_character": Reason(
        "contains a control character", "Remove control characters (tab, newline, NUL) from the IDs at the source."
    ),
    "missing_timestamp": Reason(
        "does not contain a timestamp",
        "Log a timestamp with every event, or set `order_column` if only the order is known.",
    ),
    "bad_timestamp": Reason("is not a recognised timestamp", "Set `format` of the column, as for strptime."),
    "timestamp_too_old": Reason(
        "is before `earliest`", "Check `unit` of the column, or lower `earliest` if the event really is that old."
    ),
    "future_event": Reason(
        "is in the future", "Check the clock, and `zone` and `unit` of the column, then import it again."
    ),
    "bad_order": Reason("cannot be ordered", "`order_column` must contain a finite number in every row."),
    "missing_event": Reason(
        "does not name an event kind",
        "Fill in the column, or set `event: {value: purchase}` if all rows are of one kind.",
    ),
    "unknown_event": Reason(
        "is not a known event kind",
        "Use impression, view, click, cart, purchase, rating or a GA4 event name, or map it in `values` of `event`.",
    ),
    "negative_value": Reason(
        "is a negative amount",
        "Returns and corrections are not purchases: leave them out with `where`, or correct the sign.",
    ),
    "wrong_type": Reason(
        "has the wrong type", "Use a string, a number or null. Attributes may also be lists of strings."
    ),
    "wrong_number_of_columns": Reason(
        "does not have the same number of columns as the header",
        "Quote cells that contain the delimiter, or set `delimiter`.",
    ),
    "bad_json": Reason("is not valid JSON", "Write one JSON object per line."),
    "not_an_object": Reason("is not a JSON object", "Write one JSON object per line."),
    "line_too_long": Reason("is longer than 16 MiB", "Write one event per line."),
    "duplicate_event": Reason(
        "is a duplicate", "No action needed: the first event is kept. Retries should send the same `event_id`."
    ),
    "duplicate_item": Reason(
        "is a duplicate", "The first row is kept. Give each item one row, or set `merge` on the source of items."
    ),
    "duplicate_user": Reason(
        "is a duplicate", "The first row is kept. Give each user one row, or set `merge` on the source of users."
    ),
    "item_twice_in_list": Reason(
        "is in the same list twice", "The first position is kept. Log a new `request_id` for every list shown."
    ),
    "list_of_another_user": Reason(
        "is a list shown to another user", "Log a new `request_id` for every list shown, never one shared by users."
    ),
    "list_of_another_arm": Reason(
        "differs from the arms of the other items of the list",
        "Log the arm that the whole list was made by with each of its impressions.",
    ),
    "unknown_item": Reason(
        "is not in the catalogue", "Add the item, or set `unknown_items: keep` to import it with its ID only."
    ),
    "not_a_product": Reason(
        "is not a product", "No action needed, unless `not_products` or `product_column` excludes too much."
    ),
}

SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("column", pa.string()),
        pa.field("value", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("remedy", pa.string(), nullable=False),
    ]
)


def describe_refusal(file: str, row: int, column: str | None, value: str | None, reason: str) -> str:
    """Message about a rejected row: file, row, column, value, problem and remedy."""
    where = f"{file}, row {row}" + (f", column {column}" if column else "")
    what = repr(value) if value else "the row"
    return f"{where}: {what} {REASONS[reason].problem} ({reason}). {REASONS[reason].remedy}"


_EXAMPLE_FILES = 2
"""Files of which the messages give an example, for each reason. An export may have one file per day."""
SCHEMA_COLUMNS = 'file, "row", "column", value, reason'
"""Columns of the database's table of refused rows."""


def quarantine_table(sql: duckdb.DuckDBPyConnection, erased: erasures.Erasures) -> pa.Table:
    """All refused rows of an import: file, row, column (null for the whole row), value (as text), reason, remedy.

    Values that may have the ID of an erased user are null.
    """
    value = f"left(value, {imported.SHOWN_CHARACTERS})"
    found = sql.sql(f'SELECT file, "row", "column", {value} AS value, reason FROM _refused').to_arrow_table()
    remedies = [REASONS[reason].remedy for reason in found["reason"].to_pylist()]
    table = found.append_column("remedy", pa.array(remedies, pa.string())).cast(SCHEMA)
    return imported.without_erased_values(table, erased)


def examples(sql: duckdb.DuckDBPyConnection, erased: erasures.Erasures) -> Sequence[str]:
    """Messages about the first refused row of every reason, in up to `_EXAMPLE_FILES` files."""
    value = f"left(value, {imported.SHOWN_CHARACTERS}) AS value"
    found = sql.sql(
        f'SELECT file, "row", "column", {value}, reason FROM (SELECT *, rowid AS place FROM _refused)'
        " QUALIFY row_number() OVER (PARTITION BY file, reason ORDER BY place) = 1 ORDER BY place"
    ).to_arrow_table()
    rows = imported.without_erased_values(found, erased).to_pylist()
    shown, files = [], Counter[str]()
    for row in rows:
        files[row["reason"]] += 1
        if files[row["reason"]] <= _EXAMPLE_FILES:
            shown.append(describe_refusal(**row))
    more = {reason: n - _EXAMPLE_FILES for reason, n in files.items() if n > _EXAMPLE_FILES}
    return [*shown, *(f"{reason}: {n} more files have such rows" for reason, n in more.items())]
