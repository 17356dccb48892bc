"""The grammar of conditions on an item's attributes: JSON that is checked against the catalogue, never code.

    {"all": [{"attribute": "price", "lte": 50}, {"attribute": "category", "in": ["Dresses"]},
             {"not": {"attribute": "tags", "has": "linen"}}, {"attribute": "available_from", "gt": "now-30d"}]}

A condition is decoded into a `Condition`, and made into a function from rows to true and false for one catalogue. What
an item lacks makes a comparison false; `missing` asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct, field

from features.arrays import F64, I32, Bool
from features.catalogue import Catalogue, Codes, Tags
from features.moment import Items

MOST_CONDITIONS = 200
MOST_VALUES = 1000
MOST_DEPTH = 8
_TEXT = 1000
_YEAR_S = 365.25 * 86400.0
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NOW = re.compile(r"now(?:([+-])(\d{1,6})([smhd]))?")

Text = Annotated[str, Meta(max_length=_TEXT)]
Value = float | Text
Mask = Callable[[I32, float], Bool]
"""bool, like its first argument, int32 rows of the catalogue (`-1` unknown), at a moment in Unix seconds."""


class Condition(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """What an item is to be: `all` or `any` of several conditions, `not` one, or an `attribute` compared.

    Of one attribute, every comparison given has to hold. On an attribute with several values, `eq`, `in` and `has`
    hold where one of the values is meant. `lt`, `lte`, `gt` and `gte` are for numbers and dates; a date is ISO 8601,
    Unix seconds, or `now`, `now-30d`, `now+12h`. What an item lacks makes every comparison false but `missing`.
    """

    all: Annotated[list[Condition], Meta(min_length=1, max_length=MOST_CONDITIONS)] | None = None
    any: Annotated[list[Condition], Meta(min_length=1, max_length=MOST_CONDITIONS)] | None = None
    not_: Condition | None = field(default=None, name="not")
    attribute: Text | None = None
    eq: Value | None = None
    in_: Annotated[list[Value], Meta(min_length=1, max_length=MOST_VALUES)] | None = field(default=None, name="in")
    has: Text | None = None
    lt: Value | None = None
    lte: Value | None = None
    gt: Value | None = None
    gte: Value | None = None
    missing: bool | None = None


class RuleError(ValueError):
    """A rule cannot be used. path: where in the request or the configuration; the message says what and the remedy."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass
class Allowance:
    """What is left, for all conditions of a request together, so that no request costs much more than another."""

    conditions: int = MOST_CONDITIONS
    values: int = MOST_VALUES


@dataclass(frozen=True)
class _Number:
    """A numeric attribute. value: float64[n + 1], NaN missing. second: what one second is in its unit, None where it
    is no date."""

    value: F64
    second: float | None = None


@dataclass(frozen=True)
class Named:
    """A text attribute: the tags of each item, and the code of each value by its name."""

    tags: Tags
    code: Mapping[str, int]


class Attributes:
    """The attributes of a catalogue by name, as conditions and caps ask for them: made once a release."""

    def __init__(self, items: Items) -> None:
        c = items.catalogue
        self._item_ids = c
        self._by_name: dict[str, _Number | Named] = {
            **{name: Named(tags, _codes(c, name)) for name, tags in c.by_attribute.items()},
            **{
                name: _Number(c.numbers[:, k], 1.0 / _YEAR_S if name in c.date_names else None)
                for k, name in enumerate(c.number_names)
            },
            "category": Named(_tags(items.category), {name: k for k, name in enumerate(c.category_names)}),
            "brand": Named(_tags(items.brand), {name: k for k, name in enumerate(c.brand_names)}),
            "price": _Number(c.price),
            "available_from": _Number(c.available_from, 1.0),
        }

    def named(self, name: str, path: str) -> Named:
        """A text attribute. Raises RuleError for an unknown one, or a number."""
        found = self._of(name, path)
        if not isinstance(found, Named):
            raise RuleError(path, f"{name!r} is a number; name an attribute of text: {self._names(Named)}")
        return found

    def mask(self, condition: Condition, path: str, left: Allowance) -> Mask:
        """The condition as a function of rows. Raises RuleError naming what is wrong in it, by its path."""
        return self._mask(condition, path, MOST_DEPTH, left)

    def _of(self, name: str, path: str) -> _Number | Named:
        if name not in self._by_name:
            raise RuleError(path, f"{_short(name)} is no attribute; there are item_id, {', '.join(self._by_name)}")
        return self._by_name[name]

    def _names(self, kind: type) -> str:
        return ", ".join(name for name, a in self._by_name.items() if isinstance(a, kind))

    def _mask(self, c: Condition, path: str, depth: int, left: Allowance) -> Mask:
        left.conditions -= 1
        left.values -= len(c.in_ or ())
        for beyond, bound in (
            (depth == 0, f"{MOST_DEPTH} deep"),
            (left.conditions < 0, f"{MOST_CONDITIONS} conditions in all rules"),
            (left.values < 0, f"{MOST_VALUES} values of `in` in all rules"),
        ):
            if beyond:
                raise RuleError(path, f"more than {bound}: say it with fewer")
        given = [
            n for n, v in (("all", c.all), ("any", c.any), ("not", c.not_), ("attribute", c.attribute)) if v is not None
        ]
        if len(given) != 1:
            raise RuleError(path, f"has {', '.join(given) or 'none'} of all, any, not, attribute; give exactly one")
        compared = [op for op in _COMPARISONS if getattr(c, _FIELD.get(op, op)) is not None]
        if c.attribute is None and compared:
            raise RuleError(f"{path}.{compared[0]}", f"{compared[0]} without an attribute; add `attribute`")
        if c.not_ is not None:
            return _negated(self._mask(c.not_, f"{path}.not", depth - 1, left))
        if c.attribute is not None:
            return self._comparisons(c, c.attribute, compared, path)
        several = [
            self._mask(one, f"{path}.{given[0]}[{k}]", depth - 1, left) for k, one in enumerate(c.all or c.any or [])
        ]
        return _combine(several, np.logical_and if c.all is not None else np.logical_or)

    def _comparisons(self, c: Condition, name: str, compared: list[str], path: str) -> Mask:
        if not compared:
            raise RuleError(path, f"compares {_short(name)} with nothing; add one of {', '.join(_COMPARISONS)}")
        if name == "item_id":
            return _combine([_is_item(self._item_ids, c, op, f"{path}.{op}") for op in compared], np.logical_and)
        attribute = self._of(name, f"{path}.attribute")
        if isinstance(attribute, _Number):
            return _combine([_of_number(attribute, name, c, op, f"{path}.{op}") for op in compared], np.logical_and)
        return _combine([_of_text(attribute, name, c, op, f"{path}.{op}") for op in compared], np.logical_and)


_FIELD = {"in": "in_", "not": "not_"}
_ORDER = {"lt": np.less, "lte": np.less_equal, "gt": np.greater, "gte": np.greater_equal}
_COMPARISONS = ("eq", "in", "has", *_ORDER, "missing")


def _codes(c: Catalogue, name: str) -> dict[str, int]:
    """The codes of one attribute's values, as `Catalogue.by_attribute` numbers them."""
    values = [value for attribute, _, value in (t.partition("=") for t in c.tag_names) if attribute == name]
    return {value: code for code, value in enumerate(values)}


def _tags(codes: Codes) -> Tags:
    """An attribute with at most one value, as one with any number of them."""
    known = codes.code != codes.missing
    return Tags(np.concatenate(([0], np.cumsum(known))), codes.code[known], codes.missing)


def _of_text(attribute: Named, name: str, c: Condition, op: str, path: str) -> Mask:
    tags = attribute.tags
    if op in _ORDER:
        raise RuleError(path, f"{name!r} is text, which {op} cannot order; use eq, in, has or missing")
    if op == "missing":
        some = np.diff(tags.start) > 0
        return lambda rows, at: some[rows] != c.missing
    wanted = np.zeros(tags.n_tags, np.bool_)
    for k, value in enumerate(_values(c, op)):
        if not isinstance(value, str):
            raise RuleError(f"{path}[{k}]" if op == "in" else path, f"{name!r} is text; {value:g} is a number")
        if value in attribute.code:
            wanted[attribute.code[value]] = True
    return lambda rows, at: tags.any_of(wanted, rows)


def _of_number(attribute: _Number, name: str, c: Condition, op: str, path: str) -> Mask:
    value = attribute.value
    if op == "has":
        raise RuleError(path, f"{name!r} is a number, which has no values in it; use eq, in, lt, lte, gt or gte")
    if op == "missing":
        return lambda rows, at: np.isnan(value[rows]) == c.missing
    asked = [_amount(v, attribute, name, f"{path}[{k}]" if op == "in" else path) for k, v in enumerate(_values(c, op))]
    if op in _ORDER:
        return lambda rows, at: _ORDER[op](value[rows], asked[0](at))
    return lambda rows, at: np.isin(value[rows], [amount(at) for amount in asked])


def _is_item(catalogue: Catalogue, c: Condition, op: str, path: str) -> Mask:
    if op not in ("eq", "in"):
        raise RuleError(path, f"an item_id is compared by eq and in, not by {op}")
    ids = _values(c, op)
    if wrong := [v for v in ids if not isinstance(v, str)]:
        raise RuleError(path, f"an item_id is text; {wrong[0]:g} is a number")
    wanted = catalogue.rows(map(str, ids))
    wanted = wanted[wanted >= 0]
    return lambda rows, at: np.isin(rows, wanted)


def _values(c: Condition, op: str) -> Sequence[Value]:
    found: Value | list[Value] = getattr(c, _FIELD.get(op, op))
    return found if isinstance(found, list) else [found]


def _amount(value: Value, attribute: _Number, name: str, path: str) -> Callable[[float], float]:
    """What a number is compared with at a moment, in the unit of the attribute."""
    if attribute.second is None:
        if isinstance(value, str):
            raise RuleError(path, f"{name!r} is a number; {_short(value)} is text")
        number = value
        return lambda at: number
    second = attribute.second
    if isinstance(value, str) and (relative := _NOW.fullmatch(value)):
        sign, count, unit = relative.groups()
        shift = 0.0 if count is None else (1 if sign == "+" else -1) * int(count) * _UNIT_S[unit]
        return lambda at: (at + shift) * second
    try:
        moment = _moment(value) if isinstance(value, str) else value
    except ValueError:
        raise RuleError(
            path, f"{name!r} is a date; {_short(value)} is neither ISO 8601, as 2025-01-31, nor now, now-30d, now+12h"
        ) from None
    return lambda at: moment * second


def _moment(value: str) -> float:
    when = datetime.fromisoformat(value)
    try:
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except OverflowError as e:
        raise ValueError(value) from e


def _negated(mask: Mask) -> Mask:
    return lambda rows, at: ~mask(rows, at)


def _combine(masks: list[Mask], how: Callable[[Bool, Bool], Bool]) -> Mask:
    if len(masks) == 1:
        return masks[0]
    return lambda rows, at: reduce(how, (mask(rows, at) for mask in masks))


def _short(text: object) -> str:
    return repr(text if len(str(text)) <= 40 else str(text)[:40] + "…")
