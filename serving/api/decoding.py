"""Decoding of request bodies: JSON, arrays and JSON lines, with errors that name the field."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from features.context import DEVICE_CHARACTERS, QUERY_CHARACTERS
from serving.api.problem import Problem
from serving.config import ID_CHARACTERS

PLAIN = {"pattern": r"^[^\u0000-\u001f\u007f]*$"}
"""Documented, and checked by us: checked by msgspec, each id of a request would cost a search."""


Id = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=ID_CHARACTERS,
        description="Any text without control characters.",
        extra_json_schema=PLAIN,
    ),
]


T = TypeVar("T")


class Refusal(Exception):
    """Why one event is not taken: the field at fault, and a message."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


_AT_FIELD = re.compile(r" - at `\$\.?(.*)`$")


_NAMED_FIELD = re.compile(r"(?:missing required|unknown) field `(.*?)`")


_ENDS = re.compile(rb"[\r\n]+")


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def _check_request_texts(body: bytes, **texts: list[str]) -> None:
    # In JSON a control character stands behind a backslash, but for the last, DEL: two looks tell nearly all.
    if b"\\" not in body and b"\x7f" not in body:
        return
    for field, ids in texts.items():
        # Once over all of them: a search for each would cost more than the decoding.
        if _CONTROL.search("".join(ids)):
            at = next(n for n, i in enumerate(ids) if _CONTROL.search(i))
            where = f"{field}[{at}]" if field == "candidates" else field
            raise _invalid(where, f"{ids[at]!r} contains a control character")


def check_no_control(name: str, text: str) -> None:
    """Raises Refusal where a text contains a control character."""
    if _CONTROL.search(text):
        raise Refusal(name, f"{_short(text)} contains a control character")


def to_refusal(error: Exception) -> Refusal:
    """What a decoder's error means for the caller."""
    return Refusal(*_where(error))


def check_id(name: str, given: str) -> str:
    """An id from a path. Raises Problem where it cannot be one."""
    if not 1 <= len(given) <= ID_CHARACTERS:
        raise _invalid(name, f"Expected 1 to {ID_CHARACTERS} characters, got {len(given)}")
    if _CONTROL.search(given):
        raise _invalid(name, f"{_short(given)} contains a control character")
    return given


def split_body(body: bytes, most: int, content_type: str = "", what: str = "events") -> list[msgspec.Raw]:
    """The parts of a body that is one object, an array, or JSON lines, each still to be decoded. Raises Problem.

    Lines where the content type says so, or where the first line is an object by itself and others follow. An array or
    an object is JSON as a whole or refused as a whole; of lines each stands alone.
    """
    text = body.strip(b" \t\r\n")
    if text.startswith(b"["):
        parts = decode(_LIST, body)
    elif any(said in content_type for said in ("ndjson", "jsonl", "json-lines", "jsonlines")) or _is_lines(text):
        parts = [msgspec.Raw(line) for line in _ENDS.split(text, most + 1) if line.strip()]
    else:
        parts = [msgspec.Raw(body)] if decode(msgspec.json.Decoder(msgspec.Raw), body) else []
    check_count(len(parts), most, what)
    return parts


def check_count(count: int, most: int, what: str) -> None:
    """Raises Problem (413) where a request holds more of something than is taken."""
    if count > most:
        raise Problem(
            413,
            f"too-many-{what}",
            f"Too many {what}",
            f"{count} {what} in one request, at most {most} are taken",
            "Send them in several requests.",
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
    """A body in its form. Raises Problem (400, 422) naming the field."""
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
            "Send JSON in UTF-8; NaN and Infinity are not JSON: leave such a value out.",
        ) from e


def _invalid(field: str | None, message: str) -> Problem:
    remedy = "See /docs for the fields and their types."
    return Problem(422, "invalid-field", "A field is not as it must be", message, remedy, field)


def _where(error: Exception) -> tuple[str | None, str]:
    """The field that a decoder's message is about, if any, and the message without it."""
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
        description="mobile, tablet, desktop, app, or any other text.",
        extra_json_schema=PLAIN,
    ),
]


Query = Annotated[
    str,
    Meta(
        max_length=QUERY_CHARACTERS,
        description="What the shopper typed to search; blank is nothing.",
        extra_json_schema=PLAIN,
    ),
]
