"""Rows that were refused at the door, and why: the one list of reasons, each with what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrays import I64

Mask = NDArray[np.bool_]

SHOWN_CHARACTERS = 200
"""A refused value is kept up to this length: enough to recognise it, too little to fill a disk."""


class Reason(NamedTuple):
    """Why a row was refused (a clause that follows the value), and what to do about it (a sentence)."""

    problem: str
    remedy: str


REASONS: Mapping[str, Reason] = {
    "missing_user": Reason("names no user", "Log the shopper's id, or an anonymous visitor's, with every event."),
    "missing_item": Reason("names no item", "Log the item's id with every row."),
    "id_too_long": Reason("is longer than 256 bytes", "Map a column that holds ids; shorten those that are longer."),
    "control_character": Reason(
        "holds a control character", "Remove control characters (tab, newline, NUL) from ids at the source."
    ),
    "bad_encoding": Reason("is not UTF-8", "Set `encoding` of this source (often latin-1 or cp1252), or export UTF-8."),
    "missing_timestamp": Reason(
        "gives no time", "Log the moment of every event; set `order_column` where only the order is known."
    ),
    "bad_timestamp": Reason(
        "is no moment", "Use ISO 8601 or Unix time, or set `timestamp_unit` or `timestamp_format` of this source."
    ),
    "timestamp_too_old": Reason(
        "lies before `earliest`", "Check `timestamp_unit` of this source; lower `earliest` if the event is that old."
    ),
    "future_event": Reason(
        "lies in the future", "Check the clock, `timezone` and `timestamp_unit` of this source, then import it again."
    ),
    "bad_order": Reason("is no place in an order", "`order_column` must hold a finite number in every row."),
    "missing_event": Reason("names no event kind", "Fill the column, or set `event` where all rows are of one kind."),
    "unknown_event": Reason(
        "is no known event kind",
        "Use impression, view, click, cart, purchase or rating or a GA4 name, or map it in `event_values`.",
    ),
    "dropped_event": Reason("is dropped by `event_values`", "Nothing to do, unless you want this kind of event."),
    "user_attributes": Reason("describes a user", "Nothing to do: no attribute of a user is kept."),
    "not_a_number": Reason("is no number", "Write plain decimals (6.95): no currency, no thousands separator."),
    "not_finite": Reason("is infinite", "Write a finite number, or leave the cell empty for missing."),
    "negative_price": Reason("is a negative price", "Correct the sign, or leave the cell empty for missing."),
    "negative_value": Reason(
        "is a negative amount", "Returns and corrections are no purchases: map them to `drop`, or correct the sign."
    ),
    "bad_position": Reason(
        "is no place in a list", "Use whole numbers from `position_base` on, at most 32767, or leave it empty."
    ),
    "device_too_long": Reason(
        "is longer than 64 characters", "Map the kind of device (mobile, tablet, desktop, app), not the user agent."
    ),
    "query_too_long": Reason("is longer than 200 characters", "Map what the shopper typed, not the page it led to."),
    "text_too_long": Reason("is longer than 100000 bytes", "Shorten the text, or map another column."),
    "wrong_type": Reason("has the wrong type", "Use a string, a number or null here; attributes may be string lists."),
    "wrong_number_of_columns": Reason(
        "does not have the header's number of columns", "Quote cells that hold the delimiter, or set `delimiter`."
    ),
    "bad_json": Reason("is not JSON", "Write one JSON object a line; NaN and Infinity are not JSON."),
    "not_an_object": Reason("is not a JSON object", "Write one JSON object a line."),
    "line_too_long": Reason("is longer than 16 MiB", "Write one event a line."),
    "empty_list": Reason("is a list without items", "Log the items that were shown."),
    "duplicate_event": Reason("was there before", "Nothing to do: the first is kept. Retries should keep `event_id`."),
    "duplicate_item": Reason("was there before", "Nothing to do: the first is kept. Give each item one row."),
    "item_twice_in_list": Reason(
        "is in the same list twice", "The first place is kept; log a new `request_id` for every list shown."
    ),
    "list_of_another_user": Reason(
        "is a list shown to another user", "Log a new `request_id` for every list shown, never one shared by users."
    ),
    "unknown_item": Reason(
        "is not in the catalogue", "Add the item, or set `unknown_items: keep` to accept it by its id alone."
    ),
    "not_a_product": Reason("is no product", "Nothing to do, unless `not_products` or `product_column` is too wide."),
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
    """One refused row as a person reads it: file, row, column, value, problem and remedy."""
    where = f"{file}, row {row}" + (f", column {column}" if column else "")
    what = repr(value) if value else "the row"
    return f"{where}: {what} {REASONS[reason].problem} ({reason}). {REASONS[reason].remedy}"


def _excerpt(value: object) -> str | None:
    if value is None:
        return None
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    # A lone surrogate, as JSON may carry one, cannot be written as UTF-8.
    text = text[:SHOWN_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS]


class Quarantine:
    """Refused rows in the order they were met. A row is refused once, for the first reason found."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._counts: dict[str, Counter[str]] = {}

    def add(self, file: str, row: I64, column: str | None, values: Sequence[object] | None, reason: str) -> None:
        """Refuse rows of one file for one reason; `values`, one for each row, are what they held in `column`."""
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
        """Add what another one holds, after what is here."""
        self._tables += later._tables
        for file, counts in later._counts.items():
            self._counts.setdefault(file, Counter()).update(counts)

    def counts(self, file: str) -> dict[str, int]:
        """Refused rows of a file by reason, in order of reason."""
        return dict(sorted(self._counts.get(file, Counter()).items()))

    def table(self) -> pa.Table:
        """All refused rows: file, row, column (null: the whole row), value (as text), reason, remedy."""
        return pa.concat_tables([SCHEMA.empty_table(), *self._tables])

    def examples(self, each: int = 1) -> list[str]:
        """Sentences for the first few rows of every file and reason."""
        seen: Counter[tuple[str, str]] = Counter()
        out = []
        for table in self._tables:
            key = (table["file"][0].as_py(), table["reason"][0].as_py())
            rows = table.slice(0, max(0, each - seen[key])).to_pylist()
            seen[key] += len(rows)
            out += [describe_refusal(r["file"], r["row"], r["column"], r["value"], r["reason"]) for r in rows]
        return out


class Rows:
    """A batch of one file's rows under check: `good` marks those that nothing was found against so far.

    names: what the file itself calls a column, for messages.
    """

    def __init__(self, file: str, row: I64, names: Mapping[str, str], quarantine: Quarantine) -> None:
        self.file, self.row, self.names, self.quarantine = file, row, names, quarantine
        self.good: Mask = np.ones(len(row), np.bool_)

    def refuse(self, bad: Mask, column: str, values: pa.Array, reason: str) -> None:
        """Quarantine the rows marked `bad` that were good until now; `values` is the column as the file had it."""
        bad = bad & self.good
        if not bad.any():
            return
        at = np.flatnonzero(bad)
        cells = values.take(pa.array(at))
        if pa.types.is_string(cells.type):  # the file may hold bytes that are no UTF-8
            cells = cells.cast(pa.binary())
        elif pa.types.is_large_string(cells.type):
            cells = cells.cast(pa.large_binary())
        self.quarantine.add(self.file, self.row[at], self.names.get(column, column), cells.to_pylist(), reason)
        self.good &= ~bad
