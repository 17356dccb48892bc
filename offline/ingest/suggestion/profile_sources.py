"""Sources of items and of users: tables with a row per ID, their texts by joins, and the columns that say nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from offline.ingest.reading.library import quoted
from offline.ingest.suggestion.currencies import draft_price
from offline.ingest.suggestion.event_sources import EventTable, category_levels
from offline.ingest.suggestion.joins import Link, entity
from offline.ingest.suggestion.kinds import availability
from offline.ingest.suggestion.notes import Noted
from offline.ingest.suggestion.roles import candidates, choose
from offline.ingest.suggestion.tables import Facts, Table, Tables

_ROLES = ("item_id", "title", "description", "category", "brand", "price", "available_from")
_DRAFTED = (*_ROLES, "image_url", "group_id")
_CHOSEN = (*_DRAFTED[1:], "currency")
_KEYLESS = frozenset({"id", "handle", "slug"})
_PRIVATE = frozenset({"email", "name", "hash", "url", "image"})
_COMMA = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+(?:,\d+)?|[+-]?\d+(?:,\d+)?")
_ISO_DAY = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].*)?")
_MOST_LEVELS = 20
_MOST_VARIANTS = 50
"""Rows per group, in the mean, above which a column of groups is rather a category."""


class ItemTable(NamedTuple):
    """A table of items. key: column of their IDs. unique: whether each has one row."""

    table: Table
    key: str
    unique: bool


def find_item_table(tables: Tables, table: Table, events: Sequence[EventTable]) -> ItemTable | None:
    """The key of a table if its rows are items; of several columns, that with the IDs of the events."""
    roles = choose(table, ("item_id", "user_id", "order_id", *_ROLES[1:]))
    if (
        "user_id" in roles
        and roles["user_id"] not in _KEYLESS
        and "email" not in table.columns[roles["user_id"]].name.concepts
    ):
        return None
    if "order_id" in roles and roles["order_id"] not in _KEYLESS:
        return None
    described = {"title", "price", "category", "description", "brand"} & set(roles)
    about_items = "item" in table.topic.concepts or not table.topic.concepts & {"category", "brand", "user", "order"}
    if not described or not about_items:
        return None
    keys = {c.path: c.score for c in candidates(table, "item_id") if "[]" not in c.path}
    for path, facts in table.columns.items():
        if facts.cells and (path.lower() in _KEYLESS or facts.name.concepts == {"id"}):
            keys.setdefault(path, 0.5)
    unique = {
        path: score + _met(tables, table, path, events)
        for path, score in keys.items()
        if tables.is_unique(table.name, path)
    }
    if unique:
        return ItemTable(table, max(unique, key=lambda p: unique[p]), True)
    if keys and "title" in roles and (len(described) > 1 or "item" in table.topic.concepts):
        return ItemTable(table, max(keys, key=lambda p: keys[p] + _met(tables, table, p, events)), False)
    return None


def _met(tables: Tables, table: Table, path: str, events: Sequence[EventTable]) -> float:
    """Twice the largest share of the items of an event table that a column of IDs has."""
    shares = [
        tables.included(e.roles["item_id"].table, e.roles["item_id"].own, table.name, path)
        for e in events
        if e.explode is None and e.table is not table
    ]
    return 2 * max(shares, default=0.0)


def draft_items(tables: Tables, found: ItemTable, links: Sequence[Link]) -> tuple[Any, dict[str, Any]]:
    """An item source of the configuration, and tables that it needs: paths of a category tree."""
    table = found.table
    roles = {**choose(table, _CHOSEN, (found.key,)), "item_id": found.key}
    if "group_id" in roles and not _has_variants(tables, found, roles["group_id"]):
        del roles["group_id"]
    if "title" not in roles and "description" in roles:
        roles["title"] = roles.pop("description")
    columns: dict[str, Any] = {role: roles[role] for role in _DRAFTED if role in roles}
    out: dict[str, Any] = {"from": table.name}
    joins: list[dict[str, Any]] = []
    derived: dict[str, Any] = {}
    keys = set[str]()
    currency = roles.get("currency") if "price" in columns else None
    for link in links:
        about = _looked_up(tables, table, link)
        if about is None:
            continue
        name, path, sql = about
        if sql is not None:
            derived[name] = Noted({"sql": sql}, f"paths of the tree {link.other}, from the top to each row")
        joins.append({"table": name, "keys": {link.path: link.key}})
        role = "category" if "category" in entity(table, table.columns[link.path]) else "brand"
        columns[role] = f"{name}.{path}"
        keys.add(link.path)
    if "category" in roles and isinstance(columns["category"], str) and columns["category"] == roles["category"]:
        levels = category_levels(table.columns, roles["category"])
        if len(levels) > 1:
            cells = ", ".join(f"tidy({tables.column_sql(table.name, p)})" for p in levels)
            columns["category"] = Noted({"sql": f"concat_ws(' > ', {cells})"}, "the levels of the category")
            keys |= set(levels)
    taken = {*keys, *([currency] if currency else ()), *([table.key] if table.key else ())}
    if table.key is not None:
        columns["group_id"] = Noted(table.key, "the rows of a product are its variants")
    sold = availability(tables, table, {*taken, *(p for p in columns.values() if isinstance(p, str))})
    if sold is not None:
        columns["available"] = sold[1]
        taken.add(sold[0])
    rest = [p for p in table.columns if p not in columns.values() and p not in taken and _is_column(table, p)]
    exclude = _excluded(table, rest, keys)
    if sold is not None and sold[1] != sold[0]:
        exclude[sold[0]] = "read as `available`"
    if currency is not None:
        columns["price"] = draft_price(columns["price"], currency)
    if joins:
        out["join"] = joins
    if not found.unique:
        out["merge"] = Noted("first", f"{found.key} is not unique: the first value of each column is kept")
    columns |= {p: how for p in rest if p not in exclude and (how := _attribute(table.columns[p])) is not None}
    out["columns"] = columns
    if exclude:
        out["exclude"] = Noted(list(exclude), "; ".join(f"{p}: {why}" for p, why in exclude.items()))
    return (Noted(out, "; ".join(table.raw.said)) if table.raw.said else out), derived


def _has_variants(tables: Tables, found: ItemTable, path: str) -> bool:
    """True if some items, and not too many, share a value of a column."""
    facts = found.table.columns[path]
    few = len(facts.distinct) * _MOST_VARIANTS < len(facts.cells)
    return found.unique and not few and not tables.is_unique(found.table.name, path)


def _is_column(table: Table, path: str) -> bool:
    """True if a path is a column of the file, and no field of a nested value."""
    return "[]" not in path and ("." not in path or path in table.raw.columns)


def _looked_up(tables: Tables, table: Table, link: Link) -> tuple[str, str, str | None] | None:
    """Table, column and query, if it is a tree, of the name of a category or brand that a link leads to."""
    if link.table != table.name or link.other == table.name:
        return None
    about = entity(table, table.columns[link.path])
    if about not in (frozenset({"category"}), frozenset({"brand"})):
        return None
    other = tables.tables[link.other]
    title = choose(other, ("title", "category"), (link.key,))
    path = title.get("title") or title.get("category")
    if path is None:
        return None
    parent = _parent(other, link.key)
    if parent is None:
        return other.name, path, None
    return f"{other.name}_paths", "path", _tree(other, link.key, path, parent)


def _parent(table: Table, key: str) -> str | None:
    return next(
        (p for p, f in table.columns.items() if p != key and "parent" in f.name.concepts and f.cells and f.spaced < 1),
        None,
    )


def _tree(table: Table, key: str, title: str, parent: str) -> str:
    """Query of each row's key and the path of its names; a loop ends after `_MOST_LEVELS`."""
    name, k, t, p = quoted(table.name), quoted(key), quoted(title), quoted(parent)
    return (
        f"WITH RECURSIVE tree AS (SELECT join_key(tidy({k}::VARCHAR)) AS leaf, join_key(tidy({p}::VARCHAR)) AS above,"
        f" {t}::VARCHAR AS path, 1 AS depth FROM {name} UNION ALL SELECT leaf, join_key(tidy({p}::VARCHAR)),"
        f" {t} || ' > ' || path, depth + 1 FROM tree JOIN {name} ON above = join_key(tidy({k}::VARCHAR))"
        f" WHERE depth < {_MOST_LEVELS})"
        f" SELECT leaf AS {k}, arg_max(path, depth) AS path FROM tree GROUP BY leaf"
    )


def _excluded(table: Table, rest: Sequence[str], keys: set[str]) -> dict[str, str]:
    """Columns that describe nothing, each with the reason."""
    out = {}
    for path in rest:
        facts = table.columns[path]
        concepts = facts.name.concepts
        if not facts.cells:
            out[path] = "empty"
        elif facts.is_constant:
            out[path] = f"always {facts.cells[0][:30]!r}"
        elif "hash" in concepts or facts.hashes > 0.9:
            out[path] = "a hash"
        elif concepts & {"url", "image"}:
            out[path] = "a link"
        elif "updated" in concepts and facts.moments > 0.9:
            out[path] = "when the row was changed"
    return (
        {**out, **dict.fromkeys((k for k in keys if k in table.columns), "read through a join or path")}
        if keys
        else out
    )


def _attribute(facts: Facts) -> Any:
    """Settings to read an attribute whose values its plain path would leave as text, None if it needs no entry."""
    cells = facts.distinct[:300]
    if any("," in c for c in cells) and facts.share(_COMMA) == 1 and facts.filled:
        return Noted({"path": facts.path, "type": "number", "decimal": ","}, "a decimal comma")
    if facts.moments > 0.9 and facts.share(_ISO_DAY) < 1 and not all(c.isdigit() for c in cells):
        return {"path": facts.path, "type": "date"}
    for separator in ("|", ";"):
        parts = [part.strip() for c in cells for part in c.split(separator)]
        lists = sum(separator in c for c in cells)
        if lists >= 0.3 * len(cells) > 0 and (separator == "|" or len(set(parts)) < 0.8 * len(parts)):
            return {"path": facts.path, "split": separator}
    return None


def find_user_key(tables: Tables, table: Table, links: Sequence[Link]) -> str | None:
    """The key of a table if its rows are users with attributes, else None."""
    roles = choose(table, ("user_id", "item_id", "order_id"))
    if "user_id" not in roles or "item_id" in roles or "order_id" in roles:
        return None
    key = next((link.key for link in links if link.other == table.name), roles["user_id"])
    return key if tables.is_unique(table.name, key) else None


def draft_users(table: Table, key: str) -> Any:
    """A user source of the configuration. Names and addresses say who a shopper is, not what they like."""
    rest = [p for p in table.columns if p != key and _is_column(table, p)]
    exclude = _excluded(table, rest, set())
    for path in rest:
        if path not in exclude and table.columns[path].name.concepts & _PRIVATE:
            exclude[path] = "says who the shopper is"
    out: dict[str, Any] = {"from": table.name, "columns": {"user_id": key}}
    out["columns"] |= {p: how for p in rest if p not in exclude and (how := _attribute(table.columns[p])) is not None}
    if exclude:
        out["exclude"] = Noted(list(exclude), "; ".join(f"{p}: {why}" for p, why in exclude.items()))
    return Noted(out, "; ".join(table.raw.said)) if table.raw.said else out


def without_digit(ids: Sequence[str]) -> str:
    """Regular expression of some IDs."""
    return "|".join(re.escape(i).replace(r"\ ", " ") for i in ids)


def unused(columns: Mapping[str, Facts], used: set[str]) -> list[str]:
    """Columns that a source does not read, each with what it holds, for a comment."""
    out = []
    for path, facts in columns.items():
        if path in used:
            continue
        what = "empty" if not facts.cells else f"always {facts.cells[0][:20]!r}" if facts.is_constant else ""
        out.append(f"{path} ({what})" if what else path)
    return out
