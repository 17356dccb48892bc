"""Event kinds: from the words of a column, else from what the table is about; rows and products that are void."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from features.log import GA4, KINDS
from offline.config import DROP
from offline.ingest.reading.library import literal
from offline.ingest.suggestion.notes import Noted
from offline.ingest.suggestion.tables import Table, Tables
from offline.ingest.suggestion.vocabulary import fold, is_cancelled, is_not_sold, kind_of

MOST_KINDS = 60
"""A column with more distinct values than this is neither an event kind nor a status."""
_TOPICS = {
    "rating": "rating",
    "review": "rating",
    "carted": "cart",
    "clicked": "click",
    "seen": "view",
    "bought": "purchase",
    "order": "purchase",
}
_CHOICES = f"{', '.join(KINDS)}, or {DROP}"
_FLAGS = ("true", "false", "1", "0", "yes", "no", "y", "n", "t", "f")
"""Words that the importer reads as true or false."""
_TRUE = ("true", "1", "yes", "y", "t", "ja", "oui", "si", "x")


def kinds_of(words: Sequence[str]) -> Mapping[str, str | None]:
    """Event kind of each event name, None if it is not known."""
    return {word: kind_of(word) for word in words}


def kind_column(path: str, kinds: Mapping[str, str | None]) -> Any:
    """The `event` column of a draft."""
    if all(word.lower() in KINDS or word.lower() in GA4 for word in kinds):
        return path
    unknown = f"not known: use one of {_CHOICES}"
    values = {w: k if k not in (None, DROP) else Noted(DROP, unknown) if k is None else DROP for w, k in kinds.items()}
    return {"path": path, "values": values}


def fixed_kind(table: Table, has: Mapping[str, str]) -> Any:
    """The `event` column for a table without event names. has: path of each role."""
    topic = next((kind for concept, kind in _TOPICS.items() if concept in table.topic.concepts), None)
    if topic == "purchase" and "rating" in has and "quantity" not in has:
        topic = "rating"
    if topic is not None:
        return Noted({"value": topic}, f"the kind of every row, by the name of the file; or {_CHOICES}")
    if "rating" in has and "quantity" not in has:
        return Noted({"value": "rating"}, f"{has['rating']} looks like a rating; or use one of {_CHOICES}")
    if bought := next((has[role] for role in ("quantity", "order_id", "price") if role in has), None):
        return Noted({"value": "purchase"}, f"the kind of every row, because of {bought}; or {_CHOICES}")
    note = f"PLEASE CHECK: nothing says what the rows are, so views are assumed; use one of {_CHOICES}"
    return Noted({"value": "view"}, note)


def status_condition(tables: Tables, table: str, path: str) -> tuple[str, str] | None:
    """Condition that leaves out rows of a status such as `cancelled`, and its note. None if there is no such status."""
    words = tables.distinct(table, path, MOST_KINDS)
    bad = [word for word in words if is_cancelled(word)]
    if not bad or len(words) > MOST_KINDS or len(bad) == len(words):
        return None
    kept = ", ".join(word for word in words if word not in bad)
    listed = ", ".join(map(literal, bad))
    column = tables.column_sql(table, path)
    return f"({column} IS NULL OR trim({column}) NOT IN ({listed}))", f"by {path}; kept: {kept}"


def flag_condition(tables: Tables, table: str, path: str) -> tuple[str, str] | None:
    """Condition that leaves out rows with a flag or a date of cancellation, and its note. None if it is neither."""
    words = tables.distinct(table, path, MOST_KINDS)
    column = tables.column_sql(table, path)
    facts = tables.tables[table].columns[path]
    if facts.moments > 0.9:
        return f"{column} IS NULL", f"a row with {path} was cancelled"
    if not words or len(words) > 2 or not any(w.lower() in _TRUE for w in words):
        return None
    bad = ", ".join(literal(word) for word in words if word.lower() in _TRUE)
    return f"({column} IS NULL OR CAST({column} AS VARCHAR) NOT IN ({bad}))", f"by the flag {path}"


def availability(tables: Tables, table: Table, taken: Set[str]) -> tuple[str, Any] | None:
    """Column that tells which products are for sale, with the `available` column of a draft; None if there is none.

    taken: columns that are read as something else.
    """
    for path, facts in table.columns.items():
        if not facts.name.concepts & {"status", "active", "available"} or facts.is_constant or path in taken:
            continue
        words = tables.distinct(table.name, path, MOST_KINDS)
        if not words or len(words) > MOST_KINDS:
            continue
        column = f"CAST({tables.column_sql(table.name, path)} AS VARCHAR)"
        if bad := [word for word in words if is_not_sold(word)]:
            listed = ", ".join(map(literal, bad))
            sql = f"coalesce(trim({column}) NOT IN ({listed}), true)"
            return path, Noted({"sql": sql}, f"products with the {path} {', '.join(bad)} are never recommended")
        if "active" in facts.name.concepts and {word.lower() for word in words} <= set(_FLAGS):
            return path, {"sql": f"NOT flag({column})"} if "hidden" in fold(path) else path
    return None
