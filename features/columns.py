"""Columns that a request brings: values of its candidates, such as a search engine's score, and of the request itself;
and the attributes of its user, which the shop has written before.

The shop declares each column in the configuration, and a release keeps the declarations. A request may send any column.
Those that the release declares become features; all are kept with the list, so that a column can be declared later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from features.arrays import F32
from features.bounds import MAX_NUMBER

Scalar = bool | float | str | None
"""One value as it is sent: None is missing."""
Sent = Mapping[str, Scalar | Sequence[Scalar]]
"""Columns as they are sent, by name: one value for all candidates, or a list with a value per candidate."""
NOTHING: Mapping[str, Scalar] = MappingProxyType({})
"""The attributes of a user who has none."""


_FLAGS: Mapping[bool | float | str, float] = {False: 0.0, True: 1.0, "false": 0.0, "true": 1.0}
"""Codes of flags, of which 0 and 1 are equal to the first two. Imported files often have them as texts."""


class Column(NamedTuple):
    """Declaration of a column.

    kind: number; category, a text; flag, true or false. per: whether each candidate has a value, or the request, or the
    user. values: of a category, those that features tell apart; all others are one further value.
    """

    name: str
    kind: Literal["number", "category", "flag"]
    per: Literal["candidate", "request", "user"] = "candidate"
    values: tuple[str, ...] = ()

    def code(self, value: Scalar) -> float:
        """The value of the feature: the number; 1 or 0 for a flag; the index in `values` for a category.

        NaN if missing. Raises ColumnError if the value is of another kind or out of bounds.
        """
        if value is None:
            return np.nan
        if self.kind == "category":
            return self._category(value)
        if self.kind == "flag":
            if value not in _FLAGS:
                raise ColumnError(f"{_short(value)} is not true or false")
            return _FLAGS[value]
        if isinstance(value, bool | str):
            raise ColumnError(f"{_short(value)} is not a number")
        if not abs(value) <= MAX_NUMBER:
            raise ColumnError(f"{value:g} is not between -{MAX_NUMBER:g} and {MAX_NUMBER:g}")
        return float(value)

    def _category(self, value: bool | float | str) -> float:
        if isinstance(value, bool):
            raise ColumnError(f"{_short(value)} is not a text")
        if not isinstance(value, str):
            value = f"{value:.17g}"  # the ID of a store may be sent as a number
        if not value:
            return np.nan
        return float(self.values.index(value)) if value in self.values else float(len(self.values))

    @property
    def unit(self) -> str:
        """The unit of the feature. For a category, every code and its value."""
        if self.kind == "category":
            return ", ".join([*(f"{k} {value}" for k, value in enumerate(self.values)), f"{len(self.values)} other"])
        return "as sent" if self.kind == "number" else "1 is true"


PLACEMENT = "placement"
"""The column that is the placement of a request, if it is declared as a category of the request."""


def is_placement(column: Column) -> bool:
    """True if a column has the placement of a request that does not send the column itself."""
    return (column.name, column.kind, column.per) == (PLACEMENT, "category", "request")


class ColumnError(ValueError):
    """A value of a column cannot be used; the message says why.

    column: its name. index: place of the value in a list, None for a value of all candidates.
    """

    column: str = ""
    index: int | None = None


def encode(column: Column, values: Sequence[Scalar]) -> F32:
    """float32: `Column.code` of each value. Raises ColumnError with the index of the first that cannot be used."""
    kinds = set(map(type, values))
    if column.kind == "number" and kinds <= {float, int, type(None)}:
        numbers = np.array(values, np.float64)  # None becomes NaN
        if not (np.abs(numbers) > MAX_NUMBER).any():
            return numbers.astype(np.float32)
    if column.kind == "flag" and kinds <= {bool, type(None)}:
        return np.array(values, np.float64).astype(np.float32)
    out = np.empty(len(values), np.float32)
    known: dict[str, float] = {}  # a list has few distinct texts
    for k, value in enumerate(values):
        if isinstance(value, str) and value in known:
            out[k] = known[value]
            continue
        try:
            out[k] = code = column.code(value)
        except ColumnError as e:
            e.column, e.index = column.name, k
            raise
        if isinstance(value, str):
            known[value] = code
    return out


def encode_usable(column: Column, values: Sequence[Scalar]) -> F32:
    """float32: `encode` with NaN for a value that cannot be used: a log may be older than the declaration."""
    try:
        return encode(column, values)
    except ColumnError:
        return np.concatenate([_usable(column, value) for value in values])


def _usable(column: Column, value: Scalar) -> F32:
    try:
        return encode(column, [value])
    except ColumnError:
        return np.full(1, np.nan, np.float32)


def table(columns: Sequence[Column], sent: Sent, user: Mapping[str, Scalar] = NOTHING, strict: bool = True) -> F32:
    """float32[columns, c]: the declared columns of a request, NaN where one was not sent.

    c is the number of candidates if any column is a list, otherwise 1: the same values for all candidates. user: the
    attributes of the user; those that cannot be used are missing. strict: raise ColumnError for a value of the request
    that cannot be used; otherwise it is missing too.
    """
    read = encode if strict else encode_usable
    out = np.full((len(columns), _candidates(sent)), np.nan, np.float32)
    for k, column in enumerate(columns):
        if column.per == "user":
            out[k] = encode_usable(column, [user.get(column.name)])
            continue
        values = sent.get(column.name)
        if isinstance(values, list | tuple):
            out[k] = read(column, values)
        elif values is not None:
            one: list[Scalar] = [values]  # type: ignore[list-item]  # a text is a sequence to mypy
            try:
                out[k] = read(column, one)
            except ColumnError as e:
                e.index = None
                raise
    return out


def with_placement(columns: Sequence[Column], sent: Sent, placement: str | None) -> Sent:
    """The columns of a request, and its placement as a column if that is declared and was not sent."""
    if placement is None or sent.get(PLACEMENT) not in (None, "") or not any(map(is_placement, columns)):
        return sent
    return {**sent, PLACEMENT: placement}


def _candidates(sent: Sent) -> int:
    return max((len(values) for values in sent.values() if isinstance(values, list | tuple)), default=1)


def pick(sent: Sent, index: Sequence[int]) -> dict[str, Scalar | Sequence[Scalar]]:
    """The columns of some candidates, in the order of `index`: what is kept with a list that shows only these."""
    return {
        name: [values[k] for k in index] if isinstance(values, list | tuple) else values
        for name, values in sent.items()
    }


def has_lists(sent: Sent) -> bool:
    """True if any column has a value per candidate."""
    return any(isinstance(values, list | tuple) for values in sent.values())


def _short(value: Scalar) -> str:
    text = repr(value) if isinstance(value, str) else str(value).lower()
    return text if len(text) <= 60 else text[:60] + "…"
