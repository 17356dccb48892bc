"""Conditions on item attributes, written in JSON and checked against the catalogue. They are data, never code.

    {"all": [{"attribute": "price", "lte": 50}, {"attribute": "category", "in": ["Dresses"]},
             {"not": {"attribute": "tags", "has": "linen"}}, {"attribute": "available_from", "gt": "now-30d"}]}

A condition is decoded into a `Condition`, then compiled for one catalogue into a function from rows to a boolean mask.
Comparisons with a missing attribute are false; `missing` tests for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, reduce
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

import numpy as np
from msgspec import Meta, Struct, field

from features.arrays import F64, I32, Bool
from features.bounds import IdError, clean_id
from features.catalogue import Catalogue, Codes, Tags
from features.kernels.strings import StringIndex
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


class Listed(NamedTuple):
    """Items to test. item: int32[m] catalogue rows, -1 outside the catalogue. outside: the IDs of the latter, by their
    position in `item`."""

    item: I32
    outside: Mapping[int, str] = MappingProxyType({})


Mask = Callable[[Listed, float], Bool]
"""Function from m items and a time in Unix seconds to bool[m]."""


class Condition(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """A condition on items: `all` or `any` of several conditions, `not` one, or comparisons of an `attribute`.

    If there are several comparisons of an attribute, all must hold. For an attribute with several values, `eq`, `in`
    and `has` hold if any of the values matches. `lt`, `lte`, `gt` and `gte` are for numbers and dates. A date is ISO
    8601, Unix seconds, or relative, such as `now`, `now-30d`, `now+12h`. If an item lacks the attribute, all
    comparisons except `missing` are false.
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
    """A rule is invalid. path: its place in the request or configuration. The message gives the problem and the fix."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass
class Budget:
    """Remaining conditions and `in` values allowed over all rules of a request, which bounds the cost of a request."""

    conditions: int = MOST_CONDITIONS
    values: int = MOST_VALUES


@dataclass(frozen=True)
class _NumberAttribute:
    """A numeric attribute. value: float64[n + 1], NaN if missing. second: one second in the unit of the attribute; None
    if it is not a date."""

    value: F64
    second: float | None = None


@dataclass(frozen=True)
class TextAttribute:
    """A text attribute. tags: the values of each item, as codes. code: the code of each value."""

    tags: Tags
    code: Mapping[str, int]


class _CodeOf(Mapping[str, int]):
    """The code of each of many names, without a dictionary of them: they are looked up only if a rule names one."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    @cached_property
    def _index(self) -> StringIndex:
        return StringIndex.of(self._names)

    def __getitem__(self, name: str) -> int:
        code = int(self._index.find([name])[0])
        if code < 0:
            raise KeyError(name)
        return code

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class AboutAttribute(Struct, omit_defaults=True):
    """An attribute as a person may choose it. kind: text, number or date. values: of a text, the most frequent first.

    low, high: range of a number, or of a date in Unix seconds; null if no item has a value.
    """

    name: str
    kind: Literal["text", "number", "date"]
    values: list[str] = []
    low: float | None = None
    high: float | None = None


class Attributes:
    """The attributes of a catalogue by name, for conditions and caps; built once per release."""

    def __init__(self, items: Items) -> None:
        c = items.catalogue
        self._catalogue = c
        self._by_name: dict[str, _NumberAttribute | TextAttribute] = {
            **{name: TextAttribute(tags, _codes(c, name)) for name, tags in c.by_attribute.items()},
            **{
                name: _NumberAttribute(c.numbers[:, k], 1.0 / _YEAR_S if name in c.date_names else None)
                for k, name in enumerate(c.number_names)
            },
            "category": TextAttribute(_tags(items.category), {name: k for k, name in enumerate(c.category_names)}),
            "brand": TextAttribute(_tags(items.brand), {name: k for k, name in enumerate(c.brand_names)}),
            "price": _NumberAttribute(c.price),
            "available_from": _NumberAttribute(c.available_from, 1.0),
        }
        if c.group is not None:
            group = Codes(c.group, len(c.group_names))
            self._by_name["group_id"] = TextAttribute(_tags(group), _CodeOf(c.group_names))

    def about(self, most: int) -> list[AboutAttribute]:
        """The attributes by name, each text with its `most` most frequent values."""
        return [_about(name, a, most) for name, a in sorted(self._by_name.items())]

    def text_attribute(self, name: str, path: str) -> TextAttribute:
        """The text attribute of this name. Raises RuleError if it is unknown or a number."""
        attribute = self._attribute(name, path)
        if not isinstance(attribute, TextAttribute):
            raise RuleError(path, f"{name!r} is a number; use a text attribute: {self._names(TextAttribute)}")
        return attribute

    def mask(self, condition: Condition, path: str, budget: Budget) -> Mask:
        """Compile a condition. path: its path, for errors. Raises RuleError with the path of the invalid part."""
        return self._mask(condition, path, MOST_DEPTH, budget)

    def _attribute(self, name: str, path: str) -> _NumberAttribute | TextAttribute:
        if name not in self._by_name:
            raise RuleError(
                path, f"unknown attribute {_short(name)}; the attributes are item_id, {', '.join(self._by_name)}"
            )
        return self._by_name[name]

    def _names(self, kind: type) -> str:
        return ", ".join(name for name, a in self._by_name.items() if isinstance(a, kind))

    def _mask(self, c: Condition, path: str, depth: int, budget: Budget) -> Mask:
        form, comparisons = form_of(c, path, depth, budget)
        if c.not_ is not None:
            return _negated(self._mask(c.not_, f"{path}.not", depth - 1, budget))
        if c.attribute is not None:
            return self._comparisons(c, c.attribute, comparisons, path)
        masks = [
            self._mask(part, f"{path}.{form}[{k}]", depth - 1, budget) for k, part in enumerate(c.all or c.any or [])
        ]
        return _combine(masks, np.logical_and if c.all is not None else np.logical_or)

    def _comparisons(self, c: Condition, name: str, comparisons: list[str], path: str) -> Mask:
        if name == "item_id":
            return _combine(
                [_item_id_mask(self._catalogue, c, op, f"{path}.{op}") for op in comparisons], np.logical_and
            )
        attribute = self._attribute(name, f"{path}.attribute")
        if isinstance(attribute, _NumberAttribute):
            return _combine(
                [_number_mask(attribute, name, c, op, f"{path}.{op}") for op in comparisons], np.logical_and
            )
        return _combine([_text_mask(attribute, name, c, op, f"{path}.{op}") for op in comparisons], np.logical_and)


def form_of(c: Condition, path: str, depth: int, budget: Budget) -> tuple[str, list[str]]:
    """Which one of all, any, not and attribute a condition has, and its comparisons. Takes it out of the budget.

    depth: levels left. Raises RuleError if it has several or none of them, or is beyond a bound.
    """
    budget.conditions -= 1
    budget.values -= len(c.in_ or ())
    for exceeded, bound in (
        (depth == 0, f"{MOST_DEPTH} levels deep"),
        (budget.conditions < 0, f"{MOST_CONDITIONS} conditions in all rules"),
        (budget.values < 0, f"{MOST_VALUES} values of `in` in all rules"),
    ):
        if exceeded:
            raise RuleError(path, f"more than {bound}: use fewer")
    given = [
        n for n, v in (("all", c.all), ("any", c.any), ("not", c.not_), ("attribute", c.attribute)) if v is not None
    ]
    if len(given) != 1:
        raise RuleError(path, f"needs exactly one of all, any, not, attribute; has {', '.join(given) or 'none'}")
    comparisons = [op for op in _COMPARISONS if getattr(c, _FIELD.get(op, op)) is not None]
    if c.attribute is None and comparisons:
        raise RuleError(f"{path}.{comparisons[0]}", f"{comparisons[0]} without an attribute; add `attribute`")
    if c.attribute is not None and not comparisons:
        raise RuleError(path, f"{_short(c.attribute)} has no comparison; add one of {', '.join(_COMPARISONS)}")
    return given[0], comparisons


def _about(name: str, a: _NumberAttribute | TextAttribute, most: int) -> AboutAttribute:
    if isinstance(a, TextAttribute):
        count = np.bincount(a.tags.tag, minlength=a.tags.n_tags)[: len(a.code)]
        values = list(a.code)
        return AboutAttribute(name, "text", [values[k] for k in np.argsort(-count, kind="stable")[:most] if count[k]])
    known = a.value[np.isfinite(a.value)] / (1.0 if a.second is None else a.second)
    low, high = (float(known.min()), float(known.max())) if len(known) else (None, None)
    return AboutAttribute(name, "number" if a.second is None else "date", [], low, high)


_FIELD = {"in": "in_", "not": "not_"}
_ORDER = {"lt": np.less, "lte": np.less_equal, "gt": np.greater, "gte": np.greater_equal}
_COMPARISONS = ("eq", "in", "has", *_ORDER, "missing")


def _codes(c: Catalogue, name: str) -> dict[str, int]:
    """The codes of the values of an attribute, numbered as in `Catalogue.by_attribute`."""
    values = [value for attribute, _, value in (t.partition("=") for t in c.tag_names) if attribute == name]
    return {value: code for code, value in enumerate(values)}


def _tags(codes: Codes) -> Tags:
    """An attribute with at most one value per item, in the form for several values."""
    known = codes.code != codes.missing
    return Tags(np.concatenate(([0], np.cumsum(known))), codes.code[known], codes.missing)


def _text_mask(attribute: TextAttribute, name: str, c: Condition, op: str, path: str) -> Mask:
    tags = attribute.tags
    if op in _ORDER:
        raise RuleError(path, f"{name!r} is text and has no order for {op}; use eq, in, has or missing")
    if op == "missing":
        present = np.diff(tags.start) > 0
        return lambda listed, at: present[listed.item] != c.missing
    wanted = np.zeros(tags.n_tags, np.bool_)
    for k, value in enumerate(values_of(c, op)):
        if not isinstance(value, str):
            raise RuleError(f"{path}[{k}]" if op == "in" else path, f"{name!r} is text, but {value:g} is a number")
        if value in attribute.code:
            wanted[attribute.code[value]] = True
    return lambda listed, at: tags.any_of(wanted, listed.item)


def _number_mask(attribute: _NumberAttribute, name: str, c: Condition, op: str, path: str) -> Mask:
    value = attribute.value
    if op == "has":
        raise RuleError(path, f"{name!r} is a number and has no list of values; use eq, in, lt, lte, gt or gte")
    if op == "missing":
        return lambda listed, at: np.isnan(value[listed.item]) == c.missing
    operands = [
        _operand(v, attribute, name, f"{path}[{k}]" if op == "in" else path) for k, v in enumerate(values_of(c, op))
    ]
    if op in _ORDER:
        return lambda listed, at: _ORDER[op](value[listed.item], operands[0](at))
    return lambda listed, at: np.isin(value[listed.item], [operand(at) for operand in operands])


def _item_id_mask(catalogue: Catalogue, c: Condition, op: str, path: str) -> Mask:
    if op not in ("eq", "in"):
        raise RuleError(path, f"item_id cannot be compared by {op}; use eq or in")
    ids = values_of(c, op)
    if numbers := [v for v in ids if not isinstance(v, str)]:
        raise RuleError(path, f"item_id is text, but {numbers[0]:g} is a number")
    for item_id in ids:
        check_rule_id(str(item_id), path)
    wanted = catalogue.rows(map(str, ids))
    return of_items(wanted[wanted >= 0], frozenset(map(str, ids)))


def of_items(rows: I32, ids: Collection[str]) -> Mask:
    """Mask of the items with these catalogue rows, and of those outside the catalogue with these IDs."""

    def mask(listed: Listed, at: float) -> Bool:
        out = np.isin(listed.item, rows)
        out[[k for k, item_id in listed.outside.items() if item_id in ids]] = True
        return out

    return mask


def check_rule_id(item_id: str, path: str) -> None:
    """Raise RuleError if an item ID of a rule is not in canonical form, because it would match nothing."""
    try:
        canonical = clean_id(item_id)
    except IdError as e:
        raise RuleError(path, f"{_short(item_id)} {e}") from None
    if canonical != item_id:
        raise RuleError(path, f"{_short(item_id)} has surrounding white space, or is not in Unicode NFC; remove it")


def values_of(c: Condition, op: str) -> Sequence[Value]:
    """The values that a comparison of a condition has: one, or those of `in`."""
    values: Value | list[Value] = getattr(c, _FIELD.get(op, op))
    return values if isinstance(values, list) else [values]


def _operand(value: Value, attribute: _NumberAttribute, name: str, path: str) -> Callable[[float], float]:
    """The value to compare with, in the unit of the attribute, as a function of the time (Unix seconds)."""
    if attribute.second is None:
        if isinstance(value, str):
            raise RuleError(path, f"{name!r} is a number, but {_short(value)} is text")
        number = value
        return lambda at: number
    second = attribute.second
    moment = moment_of(value, name, path)
    return lambda at: moment(at) * second


def moment_of(value: Value, name: str, path: str) -> Callable[[float], float]:
    """A date of a condition as a function of the time; both in Unix seconds. Raises RuleError if it is none.

    name: of the attribute that it is compared with.
    """
    if isinstance(value, str) and (relative := _NOW.fullmatch(value)):
        sign, count, unit = relative.groups()
        shift = 0.0 if count is None else (1 if sign == "+" else -1) * int(count) * _UNIT_S[unit]
        return lambda at: at + shift
    try:
        time = unix_seconds(value) if isinstance(value, str) else value
    except ValueError:
        raise RuleError(
            path, f"{name!r} is a date, but {_short(value)} is not; use ISO 8601 (2025-01-31), now, now-30d or now+12h"
        ) from None
    return lambda at: time


def unix_seconds(value: str) -> float:
    """Unix seconds of a date in ISO 8601, in UTC unless it says otherwise. Raises ValueError."""
    when = datetime.fromisoformat(value)
    try:
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except OverflowError as e:
        raise ValueError(value) from e


def _negated(mask: Mask) -> Mask:
    return lambda listed, at: ~mask(listed, at)


def _combine(masks: list[Mask], how: Callable[[Bool, Bool], Bool]) -> Mask:
    if len(masks) == 1:
        return masks[0]
    return lambda listed, at: reduce(how, (mask(listed, at) for mask in masks))


def _short(text: object) -> str:
    return repr(text if len(str(text)) <= 40 else str(text)[:40] + "…")
