"""Numbers, names and moments as a person reads them; whatever the value is, it becomes words."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np


def finite(value: object) -> float | None:
    """A finite float, or None for whatever is not one."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def truncate(value: object, cells: int) -> str:
    """Text on one line, without control characters, at most so many columns wide (an East Asian letter takes two)."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+", " ", str(value)[: 4 * cells])
    line, width = line[: cells + 1], 0
    for i, letter in enumerate(line):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > cells:
            return line[: max(i - 1, 0)] + "…"
    return line


def escape(value: object) -> str:
    """Text as HTML, at most 300 columns of it; "-" for None."""
    return "-" if value is None else html.escape(truncate(value, 300))


def display_name(name: object) -> str:
    """The name of a system, slice or step, in words: not escaped."""
    return truncate(name, 34).replace("_", " ")


def decimal(value: object, digits: int = 3, signed: bool = False) -> str:
    """A number with so many decimals, in scientific notation where they would not show it; "-" for no number."""
    number = finite(value)
    if number is None:
        return "-"
    plain = number == 0 or 10.0**-digits <= abs(number) < 1e6
    return f"{number:{'+' if signed else ''},.{digits}{'f' if plain else 'e'}}".replace("-", "−")


def interval(entry: Mapping[str, Any], digits: int = 3, signed: bool = False) -> str:
    """`low` and `high` in brackets."""
    return f"[{decimal(entry.get('low'), digits, signed)}, {decimal(entry.get('high'), digits, signed)}]"


def gain(comparison: Mapping[str, Any]) -> str:
    """The difference of a comparison and its interval."""
    return f"{decimal(comparison.get('difference'), 4, True)} {interval(comparison, 4, True)}"


def count(value: object) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**15 else decimal(value, 0)


def moment(value: object) -> str:
    """An ISO 8601 moment to the minute, UTC named; anything else as it came, escaped."""
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        return escape(value)
    zone = "" if at.tzinfo is None else " UTC" if at.utcoffset() == timedelta(0) else at.strftime(" %z")
    return at.strftime("%Y-%m-%d %H:%M") + zone


_PARTS = {
    "repeats": "what they had before",
    "new_items": "what they never had",
    "cold_items": "items nobody chose before",
    "new_only": "what they never had, alone",
    "warm_items": "items chosen before",
    "head": "most chosen fifth of items",
    "tail": "the other items",
}


def slice_name(name: object) -> str:
    """The name of a slice in words: not escaped."""
    key = str(name)
    if counted := re.fullmatch(r"(history|seen)_(\d+)_(\d+|plus)", key):
        of, low, high = counted.groups()
        many = f"{low} or more" if high == "plus" else f"{low} to {high}"
        return f"users with {many} events" if of == "history" else f"items chosen {many} times"
    return _PARTS.get(key, truncate(name, 34).replace("_", " "))
