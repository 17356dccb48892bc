"""Conditions on a request: on its device and query, its columns, and the attributes of its user.

They are written as conditions on items are. A comparison with a value that is missing, or of another kind, is false.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import ge, gt, le, lt
from typing import Annotated, NamedTuple

import msgspec
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from features.columns import Scalar
from serving.rules.conditions import (
    MOST_DEPTH,
    Budget,
    Condition,
    RuleError,
    Value,
    form_of,
    moment_of,
    unix_seconds,
    values_of,
)
from serving.rules.rules import to_struct

_ORDER = {"lt": lt, "lte": le, "gt": gt, "gte": ge}

Holds = Callable[[Mapping[str, Scalar], float], bool]
"""Function from the values of a request, by name, and a time in Unix seconds, to whether a condition holds."""


class RequestCondition(NamedTuple):
    """A condition that is ready to be tested. names: of the values that it reads."""

    names: frozenset[str]
    holds: Holds


def compile_for_requests(condition: Condition, path: str) -> RequestCondition:
    """Compile a condition. path: its path, for errors. Raises RuleError with the path of the invalid part."""
    names = set[str]()
    holds = _compile(condition, path, MOST_DEPTH, Budget(), names)
    return RequestCondition(frozenset(names), holds)


def _compile(c: Condition, path: str, depth: int, budget: Budget, names: set[str]) -> Holds:
    form, comparisons = form_of(c, path, depth, budget)
    if c.not_ is not None:
        negated = _compile(c.not_, f"{path}.not", depth - 1, budget, names)
        return lambda values, at: not negated(values, at)
    if c.attribute is not None:
        names.add(c.attribute)
        return _all([_comparison(c, c.attribute, op, f"{path}.{op}") for op in comparisons])
    parts = [
        _compile(part, f"{path}.{form}[{k}]", depth - 1, budget, names) for k, part in enumerate(c.all or c.any or [])
    ]
    return _all(parts) if c.all is not None else lambda values, at: any(part(values, at) for part in parts)


def _all(parts: list[Holds]) -> Holds:
    return parts[0] if len(parts) == 1 else lambda values, at: all(part(values, at) for part in parts)


def _comparison(c: Condition, name: str, op: str, path: str) -> Holds:
    if op == "missing":
        return lambda values, at: (values.get(name) is None) == c.missing
    if op not in _ORDER:
        wanted = [v if isinstance(v, str) else float(v) for v in values_of(c, op)]
        return lambda values, at: _same(values.get(name), wanted)
    compare, operand = _ORDER[op], values_of(c, op)[0]
    moment = moment_of(operand, name, path) if isinstance(operand, str) else None

    def holds(values: Mapping[str, Scalar], at: float) -> bool:
        value = values.get(name)
        if moment is None:
            return isinstance(value, float | int) and not isinstance(value, bool) and compare(value, float(operand))
        seconds = _seconds(value)
        return seconds is not None and compare(seconds, moment(at))

    return holds


def _same(value: Scalar, wanted: list[Value]) -> bool:
    """True if a value is one of these. A flag is the text true or false."""
    if isinstance(value, bool):
        return ("true" if value else "false") in wanted
    return value is not None and value in wanted


def _seconds(value: Scalar) -> float | None:
    """A value as a date, in Unix seconds; None if it is none."""
    if isinstance(value, str):
        try:
            return unix_seconds(value)
        except ValueError:
            return None
    return None if value is None or isinstance(value, bool) else float(value)


def _valid(value: object) -> Condition:
    condition = to_struct(Condition, value)
    try:
        compile_for_requests(condition, "where")
    except RuleError as e:
        raise ValueError(f"{e.path}: {e}") from e
    return condition


StandingCondition = Annotated[
    Condition,
    PlainValidator(_valid),
    PlainSerializer(msgspec.to_builtins),
    WithJsonSchema({"type": "object", "description": "A condition; see docs/rules.md."}),
]
"""`Condition` on requests as a field of the configuration."""
