"""Columns of a request: what it says about its candidates and itself, such as a search engine's score or a country.

They are sent beside the candidates, as lists in the same order, or as further keys of candidates that are objects. Any
name may be sent. A column that the live release does not declare is kept with the list and counted, not refused: a shop
can send a column before it trains on it, and keep sending one that it has stopped to train on. A value of a declared
column that cannot be used is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.json import Decoder

from features.arrays import F32
from features.bounds import ATTRIBUTE_NAME, COLUMN_TEXT, COLUMNS, ID_BYTES, MAX_NUMBER, has_control, is_name
from features.columns import Column, ColumnError, Scalar, Sent, table
from serving.api.decoding import (
    ID_SCHEMA,
    NOT_CONTROL,
    NOT_CONTROL_OR_SPACE,
    PLAIN,
    Id,
    Refusal,
    _invalid,
    _short,
    check_no_control,
    decode,
    may_have_control,
)

NAME_SCHEMA = {
    "maxLength": ATTRIBUTE_NAME,
    "pattern": rf"^{NOT_CONTROL_OR_SPACE}({NOT_CONTROL}*{NOT_CONTROL_OR_SPACE})?$",
}
"""JSON schema of the name of a column."""
NAME_RULE = f"a name has 1 to {ATTRIBUTE_NAME} characters, without control characters or white space around it"
ID_KEY = "id"
"""The key of an object that has the ID of a candidate; its other keys are columns."""
_Text = Annotated[str, Meta(max_length=COLUMN_TEXT, extra_json_schema=PLAIN)]
_Number = Annotated[float, Meta(extra_json_schema={"minimum": -MAX_NUMBER, "maximum": MAX_NUMBER})]
Value = _Text | _Number | bool | None
ColumnsIn = Annotated[
    dict[str, Value | list[Value]],
    Meta(
        description="Columns by name: a value for all candidates, or a list with one per candidate. null is missing.",
        extra_json_schema={"maxProperties": COLUMNS, "propertyNames": NAME_SCHEMA},
    ),
]
Candidate = Annotated[
    dict[str, Value],
    Meta(
        description=f"A candidate with columns: `{ID_KEY}` and one value per column.",
        extra_json_schema={
            "properties": {ID_KEY: {"type": "string", "maxLength": ID_BYTES, **ID_SCHEMA}},
            "required": [ID_KEY],
            "propertyNames": NAME_SCHEMA,
        },
    ),
]
Candidates = list[Id | Candidate]
EventColumns = Annotated[
    dict[str, Value],
    Meta(
        description="Columns by name. null is missing.",
        extra_json_schema={"maxProperties": COLUMNS, "propertyNames": NAME_SCHEMA},
    ),
]


class _OfObjects(list[Scalar]):
    """Values of a column that was sent with the candidates as objects; messages name the field accordingly."""


def split_candidates(given: Candidates) -> tuple[list[str], ColumnsIn]:
    """The IDs of candidates, and the columns of those that are objects. Raises Problem (422) for one without an ID."""
    kinds = set(map(type, given))
    if kinds <= {str}:
        return given, {}  # type: ignore[return-value]
    objects: list[Candidate] = [{ID_KEY: c} if isinstance(c, str) else c for c in given]
    names, values = _transposed(objects)
    ids = values.pop(names.index(ID_KEY)) if ID_KEY in names else [None] * len(objects)
    if set(map(type, ids)) != {str} or not all(ids):
        at = next(k for k, one in enumerate(ids) if not isinstance(one, str) or not one)
        found = "has no ID" if ids[at] is None else f"{_short(str(ids[at]))} is not an ID"
        raise _invalid(f"candidates[{at}].{ID_KEY}", found)
    columns = (name for name in names if name != ID_KEY)
    return list(ids), dict(zip(columns, map(_OfObjects, values), strict=True))  # type: ignore[arg-type]


def _transposed(objects: Sequence[Candidate]) -> tuple[list[str], list[Sequence[Scalar]]]:
    """The keys of all objects, and the values of each key. Fast if all objects have the same keys."""
    names = list(objects[0])
    if len(names) > 1 and all(len(c) == len(names) for c in objects):
        with suppress(KeyError):
            return names, list(zip(*map(itemgetter(*names), objects), strict=True))
    names = list(dict.fromkeys(chain.from_iterable(objects)))
    _check_count(len(names) - 1)
    return names, [[c.get(name) for c in objects] for name in names]


def merged(body: bytes, columns: ColumnsIn, of_objects: ColumnsIn, candidates: int | None) -> ColumnsIn:
    """The columns of a request, checked. Raises Problem (422) naming the field.

    body: the whole request. of_objects: the columns of candidates that are objects. candidates: their number; None if
    the request has none.
    """
    out = {**columns, **of_objects}
    _check_count(len(out))
    if len(out) < len(columns) + len(of_objects):
        name = next(n for n in columns if n in of_objects)
        raise _invalid(_field(name), "was sent both in `columns` and with the candidates: send it once")
    for name, values in out.items():
        if problem := _name_problem(name):
            raise _invalid(_field(name), problem)
        if isinstance(values, list) and len(values) != candidates:
            given = "the request has no `candidates`" if candidates is None else f"there are {candidates} candidates"
            raise _invalid(_field(name), f"has {len(values)} values, but {given}: send one value, or one per candidate")
    if may_have_control(body):
        for name, values in out.items():
            for k, value in enumerate(values if isinstance(values, list) else [values]):
                if isinstance(value, str) and has_control(value):
                    raise _invalid(_field(name, k, values), f"{_short(value)} contains a control character")
    return out


def check_event_columns(columns: EventColumns) -> None:
    """Raise Refusal for columns of an impression that a request could not have."""
    _check_values("columns", columns, "event")


class UserIn(Struct, forbid_unknown_fields=True):
    """Attributes of a user: a new value of each attribute that is named; null clears one. Others stay unchanged.

    The ranker uses those that the live release declares (`features.user`), from the next request on. All are logged,
    so that an attribute can be declared later.
    """

    attributes: EventColumns


class UserAnswer(Struct):
    """The attributes are written. at: Unix seconds of the write."""

    at: float


_USER = Decoder(UserIn)


def user_attributes(body: bytes, declared: Sequence[Column]) -> dict[str, Scalar]:
    """Decode and validate attributes of a user. declared: columns of the live release, whose types the values must
    have. Raises Problem (400, 422) naming the field."""
    given = decode(_USER, body).attributes
    try:
        _check_values("attributes", given, "write")
    except Refusal as e:
        raise _invalid(e.field, e.message) from None
    for column in declared:
        if column.per == "user":
            try:
                column.code(given.get(column.name))
            except ColumnError as e:
                raise _invalid(f"attributes.{column.name}", str(e)) from None
    return dict(given)


def _check_values(what: str, values: EventColumns, where: str) -> None:
    """Raise Refusal for names and texts that are not allowed. what: the field that has the values."""
    if len(values) > COLUMNS:
        raise Refusal(what, f"{len(values)} {what} in one {where}; the maximum is {COLUMNS}")
    for name, value in values.items():
        if problem := _name_problem(name):
            raise Refusal(f"{what}.{name[:ATTRIBUTE_NAME]}", problem)
        if isinstance(value, str):
            check_no_control(f"{what}.{name}", value)
        if isinstance(value, float) and abs(value) > MAX_NUMBER:
            raise Refusal(f"{what}.{name}", f"{value:g} is not between -{MAX_NUMBER:g} and {MAX_NUMBER:g}")


def encoded(declared: Sequence[Column], sent: Sent, user: Mapping[str, Scalar]) -> F32:
    """`features.columns.table` of a request. Raises Problem (422) naming the field of a value that cannot be used."""
    for column in declared:
        if column.per == "request" and isinstance(sent.get(column.name), list):
            raise _invalid(
                _field(column.name, None, sent[column.name]), "is a column of the request: send one value in `columns`"
            )
    try:
        return table(declared, sent, user)
    except ColumnError as e:
        raise _invalid(_field(e.column, e.index, sent[e.column]), str(e)) from None


def _name_problem(name: str) -> str:
    """Why a name is not allowed; empty if it is."""
    return "" if is_name(name) else NAME_RULE


def _check_count(count: int) -> None:
    if count > COLUMNS:
        raise _invalid("columns", f"{count} columns in one request; the maximum is {COLUMNS}")


def _field(name: str, index: int | None = None, values: object = None) -> str:
    """The field of a value in the request."""
    name = name[:ATTRIBUTE_NAME]
    if isinstance(values, _OfObjects):
        return f"candidates[{index or 0}].{name}"
    return f"columns.{name}" if index is None or not isinstance(values, list) else f"columns.{name}[{index}]"
