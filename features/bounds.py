"""Bounds of everything that enters: IDs, times, numbers, texts and attributes.

The service, the importer and the nightly run all use these, so that a value accepted by one is accepted by the others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from features.catalogue import STANDARD_COLUMNS

ID_BYTES = 256
"""Maximum length of an ID in UTF-8, after `clean_id`."""

PLACEHOLDER_IDS = frozenset(
    {
        "null",
        "NULL",
        "Null",
        "none",
        "None",
        "NONE",
        "nan",
        "NaN",
        "NAN",
        "undefined",
        "(not set)",
        "[object Object]",
        "\\N",
    }
)
"""What programs write in place of an ID they do not have. Accepted as IDs, they would merge all these shoppers."""

EVENT_MOMENTS = (0, 4_102_444_800)
"""Earliest and latest time of an event, Unix seconds: 1970-01-01 and 2100-01-01."""

ITEM_MOMENTS = (-8_520_336_000, 7_258_118_400)
"""Earliest and latest date of an item, Unix seconds: 1700-01-01 and 2200-01-01. pandas represents both to the ns."""

MAX_NUMBER = 1e15
"""Largest magnitude of a price, a value or a numeric attribute: below it, whole numbers are exact in float64."""

URL_CHARACTERS = 2_000
"""Maximum characters of the address of a picture: browsers and servers refuse longer ones."""

TEXT_CHARACTERS = 100_000
"""Maximum characters of a title, a description, a category, a brand or a text attribute."""

MAX_POSITION = 32_767

ATTRIBUTES = 100
"""Maximum attributes of an item, and values of an attribute that is a list."""

ITEM_BYTES = 500_000
"""Maximum bytes of the written fields of an item, names and JSON values, after any number of writes.

One text of the maximum length fits, whatever its script."""

ATTRIBUTE_NAME = 64
"""Maximum characters of an attribute's name."""

COLUMNS = 50
"""Maximum columns of a request; see `features.columns`. Their names are as long as those of attributes."""

SEEDS = 50
"""Maximum items that a request names, such as those in the cart."""

CONTROL_CHARACTERS = r"\x00-\x1f\x7f-\x9f"
"""The control characters, as they stand within the brackets of a regular expression, for Python, Rust, RE2 and JSON
schemas. IDs, names, devices and queries have none."""

_BLANKS = " \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
COLUMN_NAME = rf"^[^{CONTROL_CHARACTERS}{_BLANKS}]{{1,{ATTRIBUTE_NAME}}}$"
"""Regular expression of the name of a column that can be declared, for Python, Rust and RE2: it has no white space.

The blanks stand for themselves, because `\\s` has another meaning in each of them.
"""

COLUMN_TEXT = 256
"""Maximum characters of a text in a column of a request: that of an ID."""

RESERVED_NAMES = frozenset({*STANDARD_COLUMNS, "embedding", "at", "attributes"})
"""Names that an attribute cannot have, because they are columns or fields of their own."""

CONTROL = f"[{CONTROL_CHARACTERS}]"
"""Regular expression of a control character."""

_PLAIN = bytes(range(0x21, 0x7F))
_CONTROL = re.compile(CONTROL)


class IdError(ValueError):
    """Raised for a text that cannot be an ID. code: the reason as in the importer's quarantine."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def has_control(text: str) -> bool:
    """True if a text has a control character: U+0000 to U+001F, or U+007F to U+009F."""
    return _CONTROL.search(text) is not None


def is_name(text: str) -> bool:
    """True if a text can name an attribute or a column: 1 to `ATTRIBUTE_NAME` characters, no control characters, and no
    white space around it."""
    return 0 < len(text) <= ATTRIBUTE_NAME and text == text.strip() and not has_control(text)


def clean_id(text: str) -> str:
    """The canonical form of an ID: Unicode NFC, without surrounding white space.

    Raises IdError for a blank, a placeholder such as "undefined", a control character, and more than `ID_BYTES` bytes.
    """
    out = text.strip()
    if not out.isascii():
        out = unicodedata.normalize("NFC", out)
    if not out:
        raise IdError("missing_id", "is blank")
    if out in PLACEHOLDER_IDS:
        raise IdError("placeholder_id", "stands for a missing ID")
    if has_control(out):
        raise IdError("control_character", "contains a control character")
    if len(out) * 4 > ID_BYTES and (size := len(out.encode("utf-8", "surrogatepass"))) > ID_BYTES:
        raise IdError("id_too_long", f"has {size} bytes; the maximum is {ID_BYTES}")
    return out


def are_clean(ids: Sequence[str]) -> bool:
    """True if no ID needs `clean_id`. A fast check for long lists: it is False for some lists that are clean.

    ids: of at most `ID_BYTES` characters each, which the decoder of a request checks.
    """
    joined = "".join(ids)
    return (
        joined.isascii()
        and not joined.encode().translate(None, _PLAIN)
        and all(ids)
        and PLACEHOLDER_IDS.isdisjoint(ids)
    )


def is_within(moment: float, bounds: tuple[int, int]) -> bool:
    """True if a time in Unix seconds is within bounds; False for NaN."""
    return bounds[0] <= moment <= bounds[1]


def check_attribute_names(names: Iterable[str]) -> None:
    """Raise ValueError for a name that is blank, reserved, too long or has a control character or outer white space."""
    for name in names:
        if name in RESERVED_NAMES:
            raise ValueError(f"{name!r} is reserved for a field of the item")
        if not is_name(name):
            raise ValueError(
                f"{name[:80]!r} is not a valid name: use 1 to {ATTRIBUTE_NAME} characters, without control characters "
                "or surrounding spaces"
            )
