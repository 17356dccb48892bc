"""Event IDs: what names each row of a table of events, so that a row that is exported again counts once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from offline.ingest.suggestion.notes import Noted
from offline.ingest.suggestion.tables import Table, Tables
from offline.ingest.suggestion.vocabulary import fold

_KEYS = frozenset({"id", "uuid", "guid"})
_KEY_CONCEPTS = (
    frozenset({"event", "id"}),
    frozenset({"line", "id"}),
    frozenset({"order", "line", "id"}),
    frozenset({"line", "item", "id"}),
)
_NUMBER_CONCEPTS = (
    frozenset({"line"}),
    frozenset({"position"}),
    *_KEY_CONCEPTS[1:],
    frozenset({"order", "line"}),
    frozenset({"order", "position"}),
    frozenset({"line", "position"}),
    frozenset({"item", "position"}),
    frozenset({"order", "item", "id"}),
)
"""Concepts of a line's number within its order."""


def draft_event_id(tables: Tables, table: Table, roles: Mapping[str, str], explode: str | None) -> Any:
    """The `event_id` column of a draft, None if nothing names the rows. roles: path of each role in the own table."""
    order = roles.get("order_id")
    if "event_id" in roles and tables.is_unique(table.name, roles["event_id"]):
        return roles["event_id"]
    if explode:
        # Two lines of one item in an order are two events, which only their place in the list tells apart.
        return order if order and "[]" not in order and tables.is_unique(table.name, order) else None
    if (key := next(_keys(tables, table, roles), None)) is not None:
        return key
    if order is None:
        return None
    for path in (*_line_numbers(table), roles["item_id"]):
        if path != order and tables.are_unique(table.name, (order, path)):
            sql = " || ':' || ".join(tables.column_sql(table.name, p) for p in (order, path))
            return Noted(
                {"sql": sql}, f"no two rows have the same {order} and {path}: a row that is read again counts once"
            )
    return None


def _keys(tables: Tables, table: Table, roles: Mapping[str, str]) -> Iterator[str]:
    """Columns that hold an ID of the row."""
    used = {path for role, path in roles.items() if role != "event_id"}
    for path, facts in table.columns.items():
        named = fold(path) in _KEYS or facts.name.concepts in _KEY_CONCEPTS
        if named and facts.filled == 1 and path not in used and tables.is_unique(table.name, path):
            yield path


def _line_numbers(table: Table) -> Iterator[str]:
    """Columns that number the lines of an order."""
    for path, facts in table.columns.items():
        if facts.name.concepts in _NUMBER_CONCEPTS and facts.filled == 1 and facts.numbers == 1:
            yield path
