"""Rejected rows, and the list of all reasons for rejecting a row, each with its remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrays import I64
from offline.data import erasures, quarantined

Mask = NDArray[np.bool_]


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
    "bad_encoding": Reason(
        "is not UTF-8", "Set `encoding` of this source (often latin-1 or cp1252), or export as UTF-8."
    ),
    "missing_timestamp": Reason(
        "does not contain a timestamp",
        "Log a timestamp with every event, or set `order_column` if only the order is known.",
    ),
    "bad_timestamp": Reason(
        "is not a recognised timestamp",
        "Use ISO 8601 or Unix time, or set `timestamp_unit` or `timestamp_format` of this source.",
    ),
    "timestamp_too_old": Reason(
        "is before `earliest`",
        "Check `timestamp_unit` of this source, or lower `earliest` if the event really is that old.",
    ),
    "future_event": Reason(
        "is in the future", "Check the clock, `timezone` and `timestamp_unit` of this source, then import it again."
    ),
    "bad_order": Reason("cannot be ordered", "`order_column` must contain a finite number in every row."),
    "missing_event": Reason(
        "does not name an event kind", "Fill in the column, or set `event` if all rows are of one kind."
    ),
    "unknown_event": Reason(
        "is not a known event kind",
        "Use impression, view, click, cart, purchase, rating or a GA4 event name, or map it in `event_values`.",
    ),
    "dropped_event": Reason("is dropped by `event_values`", "No action needed, unless you want events of this kind."),
    "user_attributes": Reason("describes a user", "No action needed: user attributes are not imported."),
    "not_a_number": Reason(
        "is not a number", "Write plain decimals such as 6.95, without currency or thousands separators."
    ),
    "not_finite": Reason("is infinite", "Write a finite number, or leave the cell empty if the value is missing."),
    "negative_price": Reason(
        "is a negative price", "Correct the sign, or leave the cell empty if the price is missing."
    ),
    "negative_value": Reason(
        "is a negative amount", "Returns and corrections are not purchases: map them to `drop`, or correct the sign."
    ),
    "number_too_large": Reason("is larger than 1e15", "Check the unit, or leave the cell empty."),
    "date_out_of_range": Reason(
        "is not between 1700-01-01 and 2200-01-01", "Correct the date, or leave the cell empty if it is not known."
    ),
    "bad_position": Reason(
        "is not a list position",
        "Use whole numbers starting at `position_base`, at most 32767, or leave the cell empty.",
    ),
    "device_too_long": Reason(
        "is longer than 64 characters", "Map the device type (mobile, tablet, desktop, app), not the user agent."
    ),
    "query_too_long": Reason(
        "is longer than 200 characters", "Map the words the customer typed, not the page the search led to."
    ),
    "text_too_long": Reason("is longer than 100,000 characters", "Shorten the text, or map another column."),
    "wrong_type": Reason(
        "has the wrong type", "Use a string, a number or null. Attributes may also be lists of strings."
    ),
    "wrong_number_of_columns": Reason(
        "does not have the same number of columns as the header",
        "Quote cells that contain the delimiter, or set `delimiter`.",
    ),
    "bad_json": Reason("is not valid JSON", "Write one JSON object per line. NaN and Infinity are not valid JSON."),
    "not_an_object": Reason("is not a JSON object", "Write one JSON object per line."),
    "line_too_long": Reason("is longer than 16 MiB", "Write one event per line."),
    "empty_list": Reason("does not contain any items", "Log the items that were shown."),
    "duplicate_event": Reason(
        "is a duplicate", "No action needed: the first event is kept. Retries should send the same `event_id`."
    ),
    "duplicate_item": Reason("is a duplicate", "The first row is kept. Give each item one row."),
    "item_twice_in_list": Reason(
        "is in the same list twice", "The first position is kept. Log a new `request_id` for every list shown."
    ),
    "list_of_another_user": Reason(
        "is a list shown to another user", "Log a new `request_id` for every list shown, never one shared by users."
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


def _excerpt(value: object) -> str | None:
    if value is None:
        return None
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    # A lone surrogate, which JSON may contain, cannot be written as UTF-8.
    text = text[: quarantined.SHOWN_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= quarantined.SHOWN_CHARACTERS else text[: quarantined.SHOWN_CHARACTERS]


class Quarantine:
    """Rejected rows in the order they were found. A row is rejected once, for the first reason found."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._counts: dict[str, Counter[str]] = {}

    def add(self, file: str, row: I64, column: str | None, values: Sequence[object] | None, reason: str) -> None:
        """Reject rows of one file for one reason. values: the value of `column` in each row."""
        n = len(row)
        if n == 0:
            return
        shown = [None] * n if values is None else [_excerpt(v) for v in values]
        columns = [[file] * n, row, [column] * n, shown, [reason] * n, [REASONS[reason].remedy] * n]
        self._tables.append(
            pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        )
        self._counts.setdefault(file, Counter())[reason] += n

    def extend(self, later: Quarantine) -> None:
        """Append the rows of another quarantine."""
        self._tables += later._tables
        for file, counts in later._counts.items():
            self._counts.setdefault(file, Counter()).update(counts)

    def counts(self, file: str) -> dict[str, int]:
        """Number of rejected rows of a file by reason, sorted by reason."""
        return dict(sorted(self._counts.get(file, Counter()).items()))

    def table(self) -> pa.Table:
        """All rejected rows: file, row, column (null for the whole row), value (as text), reason, remedy."""
        return pa.concat_tables([SCHEMA.empty_table(), *self._tables])

    def examples(self, each: int = 1) -> list[str]:
        """Messages about the first `each` rows of every file and reason."""
        seen: Counter[tuple[str, str]] = Counter()
        out = []
        for table in self._tables:
            key = (table["file"][0].as_py(), table["reason"][0].as_py())
            rows = table.slice(0, max(0, each - seen[key])).to_pylist()
            seen[key] += len(rows)
            out += [describe_refusal(r["file"], r["row"], r["column"], r["value"], r["reason"]) for r in rows]
        return out

    def without_erased(self, erased: erasures.Erasures) -> Quarantine:
        """The same rows, without values that may have the ID of an erased user."""
        out = Quarantine()
        out._tables = [quarantined.without_erased_values(table, erased) for table in self._tables]
        out._counts = self._counts
        return out


class Rows:
    """Rows of a batch of one file while they are checked. good: bool[n], rows not rejected so far.

    names: mapping from canonical columns to the file's columns, for messages.
    """

    def __init__(self, file: str, row: I64, names: Mapping[str, str], quarantine: Quarantine) -> None:
        self.file, self.row, self.names, self.quarantine = file, row, names, quarantine
        self.good: Mask = np.ones(len(row), np.bool_)

    def refuse(self, bad: Mask, column: str, values: pa.Array, reason: str) -> None:
        """Quarantine the rows marked `bad` that were good so far. values: the column as in the file."""
        bad = bad & self.good
        if not bad.any():
            return
        at = np.flatnonzero(bad)
        cells = values.take(pa.array(at))
        if pa.types.is_string(cells.type):  # the bytes may not be UTF-8
            cells = cells.cast(pa.binary())
        elif pa.types.is_large_string(cells.type):
            cells = cells.cast(pa.large_binary())
        self.quarantine.add(self.file, self.row[at], self.names.get(column, column), cells.to_pylist(), reason)
        self.good &= ~bad
