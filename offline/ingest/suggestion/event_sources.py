"""Event sources: tables whose rows say who did something with which item, and when, by themselves or by joins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offline.config import DROP
from offline.ingest.reading.library import literal
from offline.ingest.suggestion.currencies import draft_price
from offline.ingest.suggestion.event_ids import draft_event_id
from offline.ingest.suggestion.joins import Link, Reach, reach
from offline.ingest.suggestion.kinds import (
    MOST_KINDS,
    fixed_kind,
    flag_condition,
    kind_column,
    kinds_of,
    status_condition,
)
from offline.ingest.suggestion.notes import Noted
from offline.ingest.suggestion.roles import candidates, choose
from offline.ingest.suggestion.tables import Facts, Table, Tables
from offline.ingest.suggestion.vocabulary import is_nobody

ITEM_TEXTS = ("title", "description", "category", "brand", "price")
_ROLES = (
    *("item_id", "user_id", "timestamp", "clock", "event", "session_id", "order_id", "quantity", "rating", "position"),
    *("device", "query", "request_id", "event_id", "list", "status", "flag", *ITEM_TEXTS, "currency"),
)
_JOINED_ROLES = (
    *("user_id", "timestamp", "clock", "session_id", "order_id", "device", "status", "flag", "query"),
    "currency",
)
_FOR_ITEMS = (*ITEM_TEXTS, "currency")
_COPIED = ("position", "device", "query", "request_id")
_LIST_WINDOW_S = 1800
_ALSO = ", also not in a table that it leads to"


@dataclass(frozen=True)
class Place:
    """A column that has a role. path: as the mapping names it. table: that it belongs to, with its own path."""

    path: str
    table: str
    own: str


@dataclass(frozen=True)
class EventTable:
    """A table of events: its roles, the tables that it is joined to, and the list that is exploded, if any."""

    table: Table
    roles: Mapping[str, Place]
    reach: Reach
    explode: str | None


def find_event_table(tables: Tables, table: Table, links: Sequence[Link]) -> EventTable | str:
    """The roles of a table if its rows are events, else what it lacks."""
    explode = _list_of_items(table)
    own = _own_roles(table, explode)
    if "item_id" not in own and (path := _item_by_link(tables, table, links)) is not None:
        own = {**{role: p for role, p in own.items() if p != path}, "item_id": path}
    if "item_id" not in own:
        return "has no column of item IDs"
    roles = {role: Place(path, table.name, path) for role, path in own.items()}
    reached = reach(links, table.name)
    for name in list(reached.prefix)[1:]:
        other = tables.tables[name]
        if len([r for r in ("user_id", "timestamp") if r in roles]) == 2 and "item_id" in choose(other, ("item_id",)):
            continue  # the catalogue, whose other columns describe the item and not the event
        key = {link.key for link in reached.links if link.other == name}
        for role, path in choose(other, _JOINED_ROLES).items():
            if role not in roles and not (path in key and role != "user_id"):
                roles[role] = Place(reached.path(name, path), name, path)
    if "user_id" not in roles and "session_id" in roles:
        roles["user_id"] = roles["session_id"]
    if "user_id" not in roles:
        return "has no column of shopper IDs" + ("" if "timestamp" in roles else " and none of times") + _ALSO
    if "timestamp" not in roles:
        return f"has no column of times{_ALSO}"
    needed = {place.table for role, place in roles.items() if role not in _FOR_ITEMS}
    reached = _without_needless(reached, needed, links)
    return EventTable(table, {r: p for r, p in roles.items() if p.table in reached.prefix}, reached, explode)


def _item_by_link(tables: Tables, table: Table, links: Sequence[Link]) -> str | None:
    """A column whose name does not say so, but whose values are the key of a table that describes items."""
    for link in links:
        other = choose(tables.tables[link.other], ("user_id", "title", "category", "price"), (link.key,))
        if (
            link.table == table.name != link.other
            and "title" in other
            and {"price", "category"} & set(other)
            and "user_id" not in other
        ):
            return link.path
    return None


def _list_of_items(table: Table) -> str | None:
    """Path of a nested list whose elements are items, None if the rows are."""
    best = next(iter(candidates(table, "item_id")), None)
    return best.path[: best.path.rindex("[]") + 2] if best is not None and "[]" in best.path else None


def _own_roles(table: Table, explode: str | None) -> dict[str, str]:
    inside = [p for p in table.columns if "[]" not in p or (explode and p.startswith(explode))]
    seen = Table(table.name, table.files, table.part, table.raw, {p: table.columns[p] for p in inside}, table.topic)
    return choose(seen, _ROLES)


def _without_needless(reached: Reach, needed: Iterable[str], links: Sequence[Link]) -> Reach:
    """Only the joins that lead to a needed table."""
    kept = set(needed)
    for link in reversed(reached.links):
        if link.other in kept:
            kept.add(link.table)
    used = [link for link in reached.links if link.other in kept]
    return Reach({name: p for name, p in reached.prefix.items() if name in kept or not p}, used)


def draft_events(tables: Tables, found: EventTable, described: bool) -> Any:
    """An event source of the configuration. described: whether another table describes the items."""
    roles = {role: place.path for role, place in found.roles.items()}
    event, impressions = _event(tables, found)
    columns: dict[str, Any] = {"event": event}
    columns["user_id"] = _user(tables, found)
    columns["item_id"] = roles["item_id"]
    columns["timestamp"] = _moment(tables, found)
    session = next((roles[r] for r in ("session_id", "order_id") if r in roles), None)
    if session and session != roles["user_id"]:
        columns["session_id"] = session
    kind = event.value.get("value") if isinstance(event, Noted) else None
    value = (
        roles.get("rating")
        if kind == "rating"
        else roles.get("quantity") or (roles.get("rating") if not kind else None)
    )
    if value:
        columns["value"] = value
    # The number of a line in an order is no place in a list that was shown.
    copied = [role for role in _COPIED if role in roles and (role != "position" or kind not in ("purchase", "rating"))]
    columns |= {role: roles[role] for role in copied}
    own = {role: place.own for role, place in found.roles.items() if place.table == found.table.name}
    if (event_id := draft_event_id(tables, found.table, own, found.explode)) is not None:
        columns["event_id"] = event_id
    out: dict[str, Any] = {"from": found.table.name}
    if found.reach.links:
        out["join"] = found.reach.joins
    if found.explode:
        out["explode"] = found.explode
    if where := _where(tables, found):
        out["where"] = where
    if impressions and "request_id" not in columns:
        columns["request_id"] = _lists(tables, found, impressions)
        out["find_list_within_s"] = Noted(_LIST_WINDOW_S, "a click belongs to the list that showed the item")
    if not described and set(ITEM_TEXTS) & set(roles):
        out["items_from_events"] = Noted(True, "no other table describes items: they are created from their events")
        columns |= {role: _item_text(tables, found, role) for role in ITEM_TEXTS if role in roles}
        if "price" in columns:
            columns["price"] = draft_price(columns["price"], roles.get("currency"))
        if "title" not in columns and "description" in columns:
            columns["title"] = columns.pop("description")
    out["columns"] = columns
    notes = [*found.table.raw.said]
    return Noted(out, "; ".join(notes)) if notes else out


def _event(tables: Tables, found: EventTable) -> tuple[Any, list[str]]:
    """The `event` column, and the words that mean an impression."""
    roles = {role: place.path for role, place in found.roles.items()}
    place = found.roles.get("event")
    if place is not None and "[]" not in place.path:
        words = tables.distinct(place.table, place.own, MOST_KINDS)
        kinds = kinds_of(words)
        if len(words) <= MOST_KINDS and any(k not in (None, DROP) for k in kinds.values()):
            return kind_column(place.path, kinds), [w for w, k in kinds.items() if k == "impression"]
        fixed = fixed_kind(found.table, roles)
        if len(words) <= MOST_KINDS and "PLEASE" in fixed.note:
            return kind_column(place.path, kinds), []
        return fixed, []
    return fixed_kind(found.table, roles), []


def _user(tables: Tables, found: EventTable) -> Any:
    place = found.roles["user_id"]
    if place == found.roles.get("session_id"):
        return Noted(place.path, "no column of shoppers: each session counts as one")
    facts = tables.tables[place.table].columns[place.own]
    nobody = [w for w in facts.distinct if is_nobody(w)]
    if nobody:
        share = sum(c in nobody for c in facts.cells) / facts.rows
        value = {"path": place.path, "values": dict.fromkeys(nobody, "")}
        return Noted(value, f"{', '.join(nobody)} stands for no shopper in {share:.0%} of the rows, which are rejected")
    other = _anonymous(tables, place)
    if other is not None:
        return Noted({"first": [place.path, other]}, f"{other} where {place.own} is empty")
    return _needed(place.path, facts)


def _anonymous(tables: Tables, place: Place) -> str | None:
    """A column of anonymous visitors, such as a cookie's, that has cells where the column of shoppers has none."""
    columns = tables.tables[place.table].columns
    facts = columns[place.own]
    if facts.filled >= 0.999 or "[]" in place.own or "pseudo" in facts.name.concepts:
        return None
    fuller = [
        c.path
        for c in candidates(tables.tables[place.table], "user_id")
        if "pseudo" in columns[c.path].name.concepts and columns[c.path].filled > facts.filled and "[]" not in c.path
    ]
    return place.path.removesuffix(place.own) + fuller[0] if fuller else None


def _needed(path: str, facts: Facts) -> Any:
    empty = 1 - facts.filled
    return path if empty < 0.001 else Noted(path, f"empty in {empty:.1%} of the rows, which are rejected")


def _moment(tables: Tables, found: EventTable) -> Any:
    place, clock = found.roles["timestamp"], found.roles.get("clock")
    if clock is None or clock.table != place.table or clock.own == place.own:
        return place.path
    day, time = tables.column_sql(place.table, place.own), tables.column_sql(clock.table, clock.own)
    return Noted({"sql": f"{day} || ' ' || coalesce({time}, '0:00')"}, "day and time of day are two columns")


def _where(tables: Tables, found: EventTable) -> Any:
    """Condition without cancelled rows, by every status and flag of the table and of those it leads to."""
    kind = found.roles.get("event")
    conditions = [
        condition(tables, name, candidate.path)
        for name in found.reach.prefix
        for role, condition in (("status", status_condition), ("flag", flag_condition))
        for candidate in candidates(tables.tables[name], role)
        if "[]" not in candidate.path and (kind is None or (name, candidate.path) != (kind.table, kind.own))
    ]
    known = [c for c in conditions if c is not None]
    if not known:
        return None
    return Noted(
        " AND ".join(c for c, _ in known), f"without cancelled and returned rows, {'; '.join(n for _, n in known)}"
    )


def _lists(tables: Tables, found: EventTable, impressions: Sequence[str]) -> Any:
    """The items that a shopper was shown at one moment in one place are one list."""
    parts = [found.roles[r] for r in ("user_id", "timestamp", "list", "query") if r in found.roles]
    cells = ", ".join(tables.column_sql(p.table, p.own) for p in parts)
    event = found.roles["event"]
    words = ", ".join(map(literal, impressions))
    sql = f"CASE WHEN {tables.column_sql(event.table, event.own)} IN ({words}) THEN concat_ws('/', {cells}) END"
    return Noted({"sql": sql}, "what a shopper is shown at one moment is one list")


def _item_text(tables: Tables, found: EventTable, role: str) -> Any:
    """A text of the item; categories in several numbered columns become one path."""
    place = found.roles[role]
    levels = category_levels(found.table.columns, place.own) if role == "category" else [place.own]
    if len(levels) < 2:
        return place.path
    cells = ", ".join(f"tidy({tables.column_sql(place.table, p)})" for p in levels)
    return Noted({"sql": f"concat_ws(' > ', {cells})"}, "the levels of the category, from wide to narrow")


def category_levels(columns: Mapping[str, Facts], path: str) -> list[str]:
    """Columns of the levels of a category, such as `category`, `category2`, `category3`."""
    first = columns[path].name
    same = {
        f.name.level or 1: p
        for p, f in columns.items()
        if f.cells and f.name.concepts == first.concepts and f.name.unknown == first.unknown
    }
    return [same[level] for level in sorted(same)]
