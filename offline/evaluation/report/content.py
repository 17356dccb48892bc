"""Sections of an evaluation: their types, and their values with the interval of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np

SCHEMA = 2
HEADLINE = "ndcg@10"
DRAWN = ("all", "warm_users", "cold_users")
"""Slices with their own plots and remarks; the tables have every slice."""
RANKER, CEILING, TRAINED = "ranker", "best_possible", "trained"
_DICTS = "data windows encoder ranker choice systems intervals calibration explanation off_policy outcomes"
_LISTS = "objectives comparisons rivals examples quality steps learning_curve small_slices staleness"
SECTIONS = dict.fromkeys(_DICTS.split(), dict) | dict.fromkeys(_LISTS.split(), list)
"""Name of a section -> its type."""


def plain(value: object, where: str = "evaluation") -> Any:
    """The value as JSON values: dates as ISO 8601, numbers that are not finite as None, lone surrogates replaced."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{where}: key {wrong[0]!r} is a {type(wrong[0]).__name__}, expected str")
        return {plain(key): plain(inner, f"{where}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, expected text, a number, a list or a mapping")


def validate(evaluation: Mapping[str, object]) -> dict[str, Any]:
    """A copy of the evaluation as plain values, with every section present and of its type.

    Raises ValueError for another schema or without systems, TypeError naming the place of a value of the wrong type.
    """
    page: dict[str, Any] = plain(evaluation)
    if page.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"schema {page['schema']!r}: this report reads schema {SCHEMA}; run the evaluation again")
    for name, kind in SECTIONS.items():
        if page.get(name) is None:
            page[name] = kind()
        _expect(page[name], kind, f"evaluation[{name!r}]")
    for name in ("comparisons", "examples", "steps", "learning_curve", "staleness", "objectives", "rivals"):
        for i, entry in enumerate(page[name]):
            _expect(entry, dict, f"evaluation[{name!r}][{i}]")
    for name, parts in page["systems"].items():
        _expect(parts, dict, f"evaluation['systems'][{name!r}]")
        for part, entry in parts.items():
            _expect(entry, dict, f"evaluation['systems'][{name!r}][{part!r}]")
            parts[part] = _with_intervals(entry, page["intervals"], name, part)
    if not page["systems"]:
        raise ValueError(
            "evaluation['systems'] is missing or empty: there is nothing to report; run the evaluation first"
        )
    return page


def _with_intervals(entry: dict[str, Any], intervals: Any, name: str, part: str) -> dict[str, Any]:
    """One slice of one system, each metric as `value`, `low` and `high`."""
    ends = intervals
    for key in (name, part):
        ends = ends.get(key) or {}
        _expect(ends, dict, f"evaluation['intervals'][{name!r}]")
    out: dict[str, Any] = {}
    for metric, value in entry.items():
        interval = ends.get(metric) or []
        _expect(interval, list, f"evaluation['intervals'][{name!r}][{part!r}][{metric!r}]")
        low, high = [*interval, None, None][:2]
        out[metric] = value if metric == "lists" else {"value": value, "low": low, "high": high}
    return out


def _expect(value: object, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{where} is a {type(value).__name__}, expected a {kind.__name__}")


def value_of(page: Mapping[str, Any], system: str, part: str, metric: str = HEADLINE) -> dict[str, Any]:
    """`value`, `low` and `high` of a metric; empty where it is missing."""
    entry = page["systems"].get(system, {}).get(part, {}).get(metric)
    return entry if isinstance(entry, dict) else {}


def slices(page: Mapping[str, Any]) -> list[str]:
    """Every slice of every system, "all" first."""
    found = dict.fromkeys(part for parts in page["systems"].values() for part in parts)
    return sorted(found, key=lambda part: part != "all")


def entries(rows: object) -> list[dict[str, Any]]:
    """The mappings in a list; empty for any other value."""
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def level(page: Mapping[str, Any]) -> str:
    """The level of the intervals, as "95% "; empty where it is missing."""
    value = page.get("level")
    return f"{100 * value:g}% " if isinstance(value, float) and 0 < value < 1 else ""
