"""Text for numbers, names and times on the page. Every function accepts any value."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np

_LONGEST_TEXT = 500


def finite(value: object) -> float | None:
    """The value as a finite float; None for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def truncate(value: object, columns: int) -> str:
    """Text on one line, without control characters, at most `columns` wide (an East Asian letter takes two)."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+", " ", str(value)[: 4 * columns])
    line, width = line[: columns + 1], 0
    for i, letter in enumerate(line):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > columns:
            return line[: max(i - 1, 0)] + "…"
    return line


def printable(value: object) -> object:
    """A value as the templates print it: "-" for None, text on one line of limited length, markup as it is."""
    return "-" if value is None else value if hasattr(value, "__html__") else truncate(value, _LONGEST_TEXT)


_NAMES = {"ease": "EASE", "cooccurrence": "co-occurrence"}


def display_name(name: object) -> str:
    """The name of a system, slice or step, in words."""
    return _NAMES.get(str(name)) or truncate(name, 34).replace("_", " ")


def decimal(value: object, digits: int = 3, signed: bool = False) -> str:
    """A number with this many decimals, in scientific notation from a million on; "-" for anything else.

    signed: with a plus sign before a positive number. A number that rounds to zero has no sign.
    """
    number = finite(value)
    if number is None:
        return "-"
    number = round(number, digits) or 0.0
    form = f"{'+' if signed and number else ''},.{digits}{'f' if abs(number) < 1e6 else 'e'}"
    return f"{number:{form}}".replace("-", "−")


def interval(entry: Mapping[str, Any], digits: int = 3, signed: bool = False) -> str:
    """`low` and `high` in brackets."""
    return f"[{decimal(entry.get('low'), digits, signed)}, {decimal(entry.get('high'), digits, signed)}]"


def difference(comparison: Mapping[str, Any]) -> str:
    """The difference of a comparison and its interval."""
    return f"{decimal(comparison.get('difference'), 4, True)} {interval(comparison, 4, True)}"


def count(value: object) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**15 else decimal(value, 0)


def moment(value: object) -> str:
    """An ISO 8601 time to the minute, with its time zone; any other value as its own text."""
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        return truncate(value, 34)
    zone = "" if at.tzinfo is None else " UTC" if at.utcoffset() == timedelta(0) else at.strftime(" %z")
    return at.strftime("%Y-%m-%d %H:%M") + zone


_SLICES = {
    "all": "all users",
    "warm_items": "items with engagements",
    "cold_items": "items without engagements",
    "repeats": "items the user had before",
    "new_items": "items new to the user",
    "new_only": "items new to the user, ranked alone",
    "head": "most popular fifth of items",
    "tail": "all other items",
}


def slice_name(name: object) -> str:
    """The name of a slice in words; a slice by column, "column:value", with a space."""
    key = str(name)
    if match := re.fullmatch(r"(history|seen)_(\d+)_(\d+|plus)", key):
        of, low, high = match.groups()
        number = f"{low} or more" if high == "plus" else f"{low} to {high}"
        return f"{'users' if of == 'history' else 'items'} with {number} engagements"
    return _SLICES.get(key) or display_name(key.replace(":", ": ", 1))
