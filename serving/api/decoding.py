"""Decoding of request bodies (a JSON object, an array or JSON lines), with errors that name the field."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from features.bounds import CONTROL_CHARACTERS, ID_BYTES, IdError, are_clean, clean_id, has_control
from features.context import DEVICE_CHARACTERS, QUERY_CHARACTERS
from serving.api.problem import Problem

NOT_CONTROL = f"[^{CONTROL_CHARACTERS}]"
NOT_CONTROL_OR_SPACE = rf"[^{CONTROL_CHARACTERS}\s]"
PLAIN = {"pattern": f"^{NOT_CONTROL}*$"}
"""JSON schema of a text without control characters. Documentation only: msgspec would search every text separately."""

_ID_RULES = (
    f"At most {ID_BYTES} bytes in UTF-8, without control characters. Surrounding white space is ignored; accents are "
    'compared in Unicode NFC. Placeholders such as "undefined" and "null" are refused.'
)
ID_SCHEMA = {"pattern": f"^{NOT_CONTROL}*{NOT_CONTROL_OR_SPACE}{NOT_CONTROL}*$"}
"""JSON schema of an ID: no control characters, and not blank."""
Id = Annotated[str, Meta(min_length=1, max_length=ID_BYTES, description=_ID_RULES, extra_json_schema=ID_SCHEMA)]
"""An ID as it is sent. `features.bounds.clean_id` validates it and gives its canonical form."""


T = TypeVar("T")


class Refusal(Exception):
    """Raised for one invalid event or item. field: the invalid field, None for the whole. message: the reason."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


_AT_FIELD = re.compile(r" - at `\$\.?(.*)`$")


_NAMED_FIELD = re.compile(r"(?:missing required|unknown) field `(.*?)`")


_ENDS = re.compile(rb"[\r\n]+")


_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def may_have_control(body: bytes) -> bool:
    """True if a text in a body may have a control character; a fast check that clears almost every body."""
    # JSON escapes every control character with a backslash, except U+007F to U+009F, which end in these bytes or
    # begin with 0xc2.
    return b"\\" in body or b"\x7f" in body or b"\xc2" in body


def check_texts(body: bytes, **texts: str | None) -> None:
    """Raise Problem (422) for a text of a request with a control character."""
    if not may_have_control(body):
        return
    for field, text in texts.items():
        if text and has_control(text):
            raise _invalid(field, f"{_short(text)} contains a control character")


def request_ids(name: str, ids: list[str]) -> list[str]:
    """The IDs of a request in canonical form. Raises Problem (422) naming the first invalid one."""
    if are_clean(ids):
        return ids
    return [request_id(f"{name}[{at}]", given) for at, given in enumerate(ids)]


def request_id(name: str, given: str) -> str:
    """An ID of a request or a path in canonical form. Raises Problem (422) if it is invalid."""
    try:
        return clean_id(given)
    except IdError as e:
        raise _invalid(name, f"{_short(given)} {e}") from None


def part_id(name: str, given: str) -> str:
    """An ID of an event or an item in canonical form. Raises Refusal if it is invalid."""
    try:
        return clean_id(given)
    except IdError as e:
        raise Refusal(name, f"{_short(given)} {e}") from None


def check_no_control(name: str, text: str) -> None:
    """Raise Refusal if a text contains a control character."""
    if has_control(text):
        raise Refusal(name, f"{_short(text)} contains a control character")


def to_refusal(error: Exception) -> Refusal:
    """A decoding error as a Refusal that names the field."""
    return Refusal(*_where(error))


def split_body(body: bytes, most: int, content_type: str = "", what: str = "events") -> list[msgspec.Raw]:
    """Split a body (one object, an array or JSON lines) into undecoded parts. Raises Problem (400, 413).

    The body is read as JSON lines if the content type says so, or if its first line is a complete object and more lines
    follow. An object or array that is not valid JSON is refused as a whole; JSON lines are accepted or rejected one by
    one. most: maximum number of parts. what: their name in messages.
    """
    text = body.strip(b" \t\r\n")
    if text.startswith(b"["):
        parts = decode(_LIST, body)
    elif any(name in content_type for name in ("ndjson", "jsonl", "json-lines", "jsonlines")) or _is_lines(text):
        parts = [msgspec.Raw(line) for line in _ENDS.split(text, most + 1) if line.strip()]
    else:
        parts = [msgspec.Raw(body)] if decode(msgspec.json.Decoder(msgspec.Raw), body) else []
    check_count(len(parts), most, what)
    return parts


def check_count(count: int, most: int, what: str) -> None:
    """Raise Problem (413) if a request has more than `most` of something. what: its plural, for the message."""
    if count > most:
        raise Problem(
            413,
            f"too-many-{what}",
            f"Too many {what}",
            f"{count} {what} in one request; the maximum is {most}",
            "Split them over several requests.",
        )


def _is_lines(text: bytes) -> bool:
    first, more, _ = text.partition(b"\n")
    if not more or not first.startswith(b"{"):
        return False
    try:
        msgspec.json.decode(first, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode a body. Raises Problem (400 or 422) naming the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as e:
        field, message = _where(e)
        raise _invalid(field, message) from e
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise Problem(
            400,
            "not-json",
            "Not JSON",
            _where(e)[1],
            "Send valid JSON in UTF-8. NaN and Infinity are not JSON: leave such values out.",
        ) from e


def _invalid(field: str | None, message: str) -> Problem:
    remedy = "See /docs for the fields and their types."
    return Problem(422, "invalid-field", "Invalid field", message, remedy, field)


def _where(error: Exception) -> tuple[str | None, str]:
    """The field a decoding error refers to (None if none), and its message without the field."""
    message = str(error)
    if isinstance(error, RecursionError):
        message = "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        message = "not UTF-8"
    named, at = _NAMED_FIELD.search(message), _AT_FIELD.search(message)
    path = at.group(1) if at else ""
    field = ".".join(filter(None, [path, named.group(1) if named else ""]))
    return field or None, _AT_FIELD.sub("", message)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


Device = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=DEVICE_CHARACTERS,
        description="mobile, tablet, desktop, app or any other text.",
        extra_json_schema=PLAIN,
    ),
]


Query = Annotated[
    str,
    Meta(
        max_length=QUERY_CHARACTERS,
        description="The shopper's search query. Blank means no query.",
        extra_json_schema=PLAIN,
    ),
]
