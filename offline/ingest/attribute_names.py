"""Names of attributes: any column name becomes a valid one by one rule."""

from __future__ import annotations

import re
from collections.abc import Iterable

from features.bounds import ATTRIBUTE_NAME, CONTROL, RESERVED_NAMES

_CONTROL = re.compile(f"{CONTROL}+")


def attribute_names(columns: Iterable[str]) -> dict[str, str]:
    """Mapping from column names to attribute names.

    Control characters and runs of white space become one space, at most `ATTRIBUTE_NAME` characters are kept, a blank
    name becomes `column`, a reserved one in any case gets an underscore, and a repeated one a number: `size (2)`.
    Names are repeated if they have the same letters and digits in any case, because the trees know `Unit Weight` and
    `unit_weight` by one name.
    """
    out: dict[str, str] = {}
    taken: set[str] = set()
    for column in dict.fromkeys(columns):
        name = " ".join(_CONTROL.sub(" ", column).split())[:ATTRIBUTE_NAME].strip() or "column"
        if name.lower() in RESERVED_NAMES or name.startswith("#"):
            name = f"{name[: ATTRIBUTE_NAME - 1]}_"
        number, first = 2, name
        while _letters(name) in taken:
            end = f" ({number})"
            name, number = first[: ATTRIBUTE_NAME - len(end)] + end, number + 1
        taken.add(_letters(name))
        out[column] = name
    return out


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum()) or name
