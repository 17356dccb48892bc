"""Roles of a table's columns: which could be the shopper, the item, the moment, by name and by content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from offline.ingest.suggestion.tables import Facts, Table

LEAST = 0.35
"""Scores below it are no candidates."""

_NAMES: Mapping[str, Mapping[str, float]] = {
    "user_id": {
        "user id": 1.0, "user": 0.8, "email": 0.65, "user email": 0.7, "user email id": 0.7, "pseudo id": 0.6,
        "pseudo": 0.5, "user pseudo id": 0.85, "user name": 0.4,
    },
    "item_id": {
        "sku": 1.0, "item id": 1.0, "item sku": 1.0, "item": 0.75, "item kind id": 0.8, "item barcode": 0.6, "item variant id": 0.8,
        "variant id": 0.5, "barcode": 0.5, "item list": 0.4,
    },
    "order_id": {
        "order id": 1.0, "order": 0.7, "bought id": 0.8, "order name": 0.5, "order bought id": 0.9, "request id": 0.3,
    },
    "session_id": {"session id": 1.0, "session": 0.8, "user session": 0.9, "user session id": 0.95},
    "timestamp": {
        "moment": 1.0, "event moment": 1.0, "kind moment": 0.95, "order moment": 1.0, "bought moment": 1.0, "date": 0.8, "event date": 0.9,
        "kind date": 0.85, "order date": 0.95, "bought date": 0.95, "created moment": 0.95, "created": 0.85, "created date": 0.9,
        "order created moment": 1.0, "order created date": 0.95, "order created": 0.9, "date moment": 1.0, "order date moment": 1.0,
        "bought date moment": 1.0, "event date moment": 1.0, "rating moment": 0.95, "rating date": 0.9, "review moment": 0.95,
        "review date": 0.9, "seen moment": 0.95, "clicked moment": 0.95, "clicked date": 0.9, "seen date": 0.9, "bought": 0.5, "clock moment": 0.8,
        "updated moment": 0.45, "updated": 0.4, "updated date": 0.4, "created updated moment": 0.6, "event": 0.3,
        "session moment": 0.6, "session date": 0.6, "moment id": 0.5, "item moment": 0.6,
    },
    "clock": {
        "clock": 1.0, "moment": 0.9, "order moment": 0.9, "order clock": 1.0, "bought clock": 1.0, "bought moment": 0.9,
        "event moment": 0.9, "event clock": 1.0, "kind moment": 0.9,
    },
    "event": {
        "event kind": 1.0, "kind": 0.85, "event name": 0.95, "event": 0.85, "user kind": 0.95, "kind name": 0.9,
        "event kind name": 0.95, "kind id": 0.6, "event kind id": 0.6, "event id": 0.4, "bought": 0.4,
    },
    "status": {"status": 1.0, "order status": 1.0, "line status": 0.9, "order line status": 0.9, "item status": 0.6, "bought status": 0.9, "kind": 0.4},
    "flag": {"cancelled": 1.0, "order cancelled": 1.0, "bought cancelled": 0.9, "item cancelled": 0.9, "deleted": 1.0, "order deleted": 1.0, "line cancelled": 0.9},
    "quantity": {"quantity": 1.0, "item quantity": 0.95, "order quantity": 0.95, "bought quantity": 0.95, "line quantity": 0.9, "quantity unit": 0.9, "item id quantity": 0.7},
    "rating": {"rating": 1.0, "user rating": 0.95, "review rating": 0.95, "item rating": 0.6, "quantity rating": 0.0},
    "position": {"position": 1.0, "list position": 1.0, "item list position": 1.0, "item position": 0.95},
    "device": {"device": 1.0, "device kind": 1.0, "device category": 1.0, "device name": 0.5},
    "query": {"query": 1.0, "query text": 1.0, "query name": 0.8, "description query": 0.8},
    "request_id": {"request id": 1.0, "list id": 0.9, "request": 0.6, "query id": 0.5},
    "event_id": {"event id": 1.0},
    "title": {
        "item title": 1.0, "item name": 1.0, "title": 0.95, "name": 0.85, "line item name": 0.9, "line name": 0.6,
        "item": 0.5, "description item name": 0.7, "name title": 0.9,
    },
    "description": {"description": 1.0, "item description": 1.0, "line description": 0.7, "item line description": 0.7, "name description": 0.7},
    "category": {
        "category": 1.0, "item category": 1.0, "category path": 1.0, "item category path": 1.0, "category name": 1.0,
        "item category name": 1.0, "item group": 0.8, "item group name": 0.8, "item kind": 0.7, "category group": 0.8, "group": 0.4,
        "item kind name": 0.7, "path": 0.4, "category title": 0.9, "category id": 0.45, "item category id": 0.45,
    },
    "brand": {"brand": 1.0, "brand name": 1.0, "item brand": 1.0, "item brand name": 1.0, "brand title": 0.9, "brand id": 0.4, "item brand id": 0.4},
    "price": {
        "unit_price": 1.0, "price unit": 1.0, "price": 0.95, "item price": 0.95, "gross price": 0.97, "sale price": 0.95,
        "unit item price": 1.0, "gross price unit": 1.0, "line price unit": 0.9, "list_price": 0.6, "list price": 0.6,
        "gross unit_price": 1.0, "tax price": 0.8, "price tax": 0.8, "line price": 0.6, "amount": 0.0,
    },
    "available_from": {
        "available": 0.9, "available from": 1.0, "available moment": 1.0, "available date": 1.0, "available from date": 1.0,
        "item available date": 1.0, "created moment": 0.6, "created": 0.5, "created date": 0.6, "from date": 0.6,
    },
    "list": {"list name": 1.0, "item list name": 1.0, "list id": 0.9, "item list id": 0.9, "list": 0.6},
}  # fmt: skip
"""Score by role and concepts of the name. Further concepts of a name lower its score."""

_STRONG = frozenset(
    {
        "hash",
        "parent",
        "url",
        "total",
        "tax",
        "cost",
        "currency",
        "user",
        "device",
        "shipped",
        "updated",
        "language",
        "review",
        "list",
        "remark",
        "position",
    }
)
"""Concepts that make a name about something else."""


def _is_moment(facts: Facts) -> bool:
    return facts.moments >= 0.5


def _is_number(facts: Facts) -> bool:
    return facts.numbers >= 0.5 and facts.moments < 0.9


def _is_rating(facts: Facts) -> bool:
    return facts.numbers >= 0.9 and len(facts.distinct) <= 101


def _is_kind(facts: Facts) -> bool:
    return len(facts.distinct) <= 60 and facts.moments < 0.5 and facts.hashes < 0.5


def _is_date(facts: Facts) -> bool:
    return facts.moments >= 0.5


def _is_text(facts: Facts) -> bool:
    return facts.numbers < 0.9 and facts.hashes < 0.5


def _is_id(facts: Facts) -> bool:
    written = facts.moments >= 0.9 and not all(c.isdigit() for c in facts.distinct[:50])
    return not written and facts.clocks < 0.5 and facts.length <= 128 and not _is_spoilt(facts)


def _is_spoilt(facts: Facts) -> bool:
    """Whether a spreadsheet has rounded long numbers: `4,00638E+12`."""
    cells = facts.distinct[:50]
    return bool(cells) and sum("E+" in c for c in cells) * 2 >= len([c for c in cells if not c.startswith("#")])


_CONTENT: Mapping[str, Callable[[Facts], bool]] = {
    "user_id": _is_id,
    "item_id": _is_id,
    "order_id": _is_id,
    "session_id": _is_id,
    "timestamp": _is_moment,
    "clock": lambda f: f.clocks >= 0.5,
    "event": _is_kind,
    "status": _is_kind,
    "flag": _is_kind,
    "quantity": _is_number,
    "rating": _is_rating,
    "position": _is_number,
    "device": _is_kind,
    "title": _is_text,
    "description": _is_text,
    "price": _is_number,
    "available_from": _is_date,
}

# What a bare `id`, `name` or `title` is about, by the topic of its table.
_KEY_OF = {"user_id": "user", "item_id": "item", "order_id": "order"}


class Candidate(NamedTuple):
    """A column that may have a role. score: 0 to 1."""

    path: str
    score: float


def candidates(table: Table, role: str, paths: Iterable[str] | None = None) -> list[Candidate]:
    """Columns that may have a role, the likeliest first. paths: the only ones to look at."""
    fits = _CONTENT.get(role, lambda _: True)
    out = []
    for path, facts in table.columns.items():
        if (paths is not None and path not in paths) or not facts.cells or not fits(facts):
            continue
        score = _score(table, role, facts)
        if score >= LEAST:
            out.append(Candidate(path, score))
    return sorted(out, key=lambda c: -c.score)


def _score(table: Table, role: str, facts: Facts) -> float:
    name = facts.name
    score = _by_name(role, name.concepts)
    if (
        role in _KEY_OF
        and name.concepts <= {"id"}
        and name.concepts
        and table.topic.concepts & set(_KEY_OF.values()) == {_KEY_OF[role]}
    ):
        score = 0.9
    if role == "item_id" and name.concepts == {"item"} and facts.spaced > 0.5:
        score -= 0.2  # a product's name in place of its ID
    score -= 0.15 * min(name.unknown, 2)
    if name.level not in (None, 1):
        score -= 0.2
    if role in _KEY_OF and facts.hashes >= 0.5:
        score -= 0.2
    # Of two that are equal by name, the one with more cells, and the first.
    return score + 0.1 * (facts.filled - 1)


def _by_name(role: str, concepts: frozenset[str]) -> float:
    best = 0.0
    for known, score in _NAMES[role].items():
        wanted = set(known.split())
        if wanted <= concepts:
            more = concepts - wanted
            best = max(best, score - sum(0.6 if c in _STRONG else 0.3 if c != "master" else 0.0 for c in more))
    return best


def choose(table: Table, roles: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Path of each role that a column has. A column has one role: that for which it is the best of all."""
    used = set(taken)
    out: dict[str, str] = {}
    every = sorted(
        ((c.score, -i, role, c.path) for i, role in enumerate(roles) for c in candidates(table, role)), reverse=True
    )
    for _, _, role, path in every:
        if role not in out and path not in used:
            out[role] = path
            used.add(path)
    return out
