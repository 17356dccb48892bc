"""Links between tables: a column whose values are the key of another table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from offline.ingest.suggestion.tables import Facts, Table, Tables
from offline.ingest.suggestion.vocabulary import fold

_ENTITIES = frozenset(
    {
        "user",
        "item",
        "order",
        "category",
        "brand",
        "session",
        "event",
        "kind",
        "bought",
        "query",
        "request",
        "variant",
        "sku",
    }
)
_ID_LIKE = frozenset({"id", "sku", "email", "name", "barcode"})
_LEAST_SHARE = 0.3
_SAME_VALUES = 0.9
_FEWEST_VALUES = 5
_MOST_JOINS = 3


class Link(NamedTuple):
    """A column of a table whose values are in a unique column of another. share: of its distinct values that are."""

    table: str
    path: str
    other: str
    key: str
    share: float


@dataclass(frozen=True)
class Reach:
    """Tables that each row of a table leads to. prefix: of paths into each, "" for the own table. links: in order."""

    prefix: Mapping[str, str]
    links: Sequence[Link]

    def path(self, table: str, path: str) -> str:
        """A path as the mapping of the own table names it."""
        return f"{self.prefix[table]}{path}"

    @property
    def joins(self) -> list[dict[str, object]]:
        """The joins as the configuration has them."""
        out: dict[str, dict[str, str]] = {}
        for link in self.links:
            out.setdefault(link.other, {})[self.path(link.table, link.path)] = link.key
        return [{"table": name, "keys": keys} for name, keys in out.items()]


def find_links(tables: Tables) -> list[Link]:
    """All links: by names that are about the same, or by values alone if they are texts that hardly fit by chance."""
    out = []
    keys = [
        (t, f)
        for t in tables.tables.values()
        for f in t.columns.values()
        if _may_be_key(t, f) and tables.is_unique(t.name, f.path)
    ]
    for table in tables.tables.values():
        for facts in table.columns.values():
            if "[]" in facts.path or not facts.cells or (facts.moments > 0.9 and "id" not in facts.name.concepts):
                continue
            out += [link for other, key in keys if (link := _link(tables, table, facts, other, key)) is not None]
    return _best(out)


def _may_be_key(table: Table, facts: Facts) -> bool:
    if "[]" in facts.path or facts.filled < 1 or not facts.cells or len(facts.distinct) < len(facts.cells):
        return False
    concepts = facts.name.concepts
    return bool(concepts & (_ID_LIKE | _ENTITIES)) and not concepts & {"moment", "date", "price", "quantity"}


def _link(tables: Tables, table: Table, facts: Facts, other: Table, key: Facts) -> Link | None:
    if table is other and (facts is key or "parent" not in facts.name.concepts):
        return None
    mine, theirs = entity(table, facts), entity(other, key)
    if table is other:
        named = mine - {"parent"} <= theirs or mine <= {"parent"}
    else:
        same = fold(facts.path) == fold(key.path) and facts.path.lower() not in ("id", "name", "title")
        named = (same or (bool(mine) and mine == theirs)) and _is_id(facts) and "parent" not in facts.name.concepts
    if not named and not _could_only_be_ids(facts):
        return None
    share = tables.included(table.name, facts.path, other.name, key.path)
    enough = _LEAST_SHARE if named else _SAME_VALUES
    return Link(table.name, facts.path, other.name, key.path, share) if share >= enough else None


def _is_id(facts: Facts) -> bool:
    concepts = facts.name.concepts
    return bool(concepts & _ID_LIKE) or len(concepts) == 1


def _could_only_be_ids(facts: Facts) -> bool:
    """True if cells are several long codes, not numbers: small numbers fit any key by chance."""
    cells = facts.distinct[:300]
    return (
        len(cells) >= _FEWEST_VALUES
        and facts.length >= 4
        and facts.spaced < 0.1
        and facts.numbers < 0.5
        and facts.moments < 0.5
    )


def entity(table: Table, facts: Facts) -> frozenset[str]:
    """The entity that a column identifies: that of its name, or of its table if it is only called `id`."""
    said = facts.name.concepts & _ENTITIES | facts.name.concepts & {"parent"}
    if said:
        return frozenset(_SAME.get(c, c) for c in said)
    topic = table.topic.concepts & _ENTITIES
    return (
        frozenset(_SAME.get(c, c) for c in topic) if facts.name.concepts <= {"id"} and len(topic) == 1 else frozenset()
    )


_SAME = {"bought": "order", "sku": "item"}
"""Concepts that identify the same thing."""


def _best(links: Sequence[Link]) -> list[Link]:
    """One link for each column and table, and one direction for two keys that have each other's values."""
    out: dict[tuple[str, str, str], Link] = {}
    for link in sorted(links, key=lambda k: -k.share):
        out.setdefault((link.table, link.path, link.other), link)
    return list(out.values())


def reach(links: Sequence[Link], table: str) -> Reach:
    """All tables that each row of a table leads to, by at most `_MOST_JOINS` links."""
    prefix, used = {table: ""}, list[Link]()
    frontier = [table]
    for _ in range(_MOST_JOINS):
        frontier = [link.other for link in _next(links, frontier, prefix, used)]
    return Reach(prefix, used)


def _next(links: Sequence[Link], frontier: Sequence[str], prefix: dict[str, str], used: list[Link]) -> Iterator[Link]:
    for link in links:
        if link.table in frontier and link.other not in prefix:
            prefix[link.other] = f"{link.other}."
            used.append(link)
            yield link
