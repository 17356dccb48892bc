"""Roles of a table's columns: which could be the shopper, the item, the moment, by name and by content."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from offline.ingest.suggestion.tables import Facts, Table

LEAST = 0.35
"""Scores below it are no candidates."""


@cache
def _names() -> Mapping[str, Mapping[str, float]]:
    """Score by role and concepts of the name."""
    out: Mapping[str, Mapping[str, float]] = yaml.safe_load((Path(__file__).parent / "roles.yaml").read_text("utf-8"))
    return out


_STRONG = frozenset(
    {
        "hash",
        "parent",
        "url",
        "image",
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
    is_date = bool(facts.name.concepts & {"date", "moment", "created"})
    return facts.moments >= 0.5 or (is_date and facts.serial_days >= 0.9)


def _is_number(facts: Facts) -> bool:
    return facts.numbers >= 0.5 and facts.moments < 0.9


def _is_rating(facts: Facts) -> bool:
    return facts.numbers >= 0.9 and len(facts.distinct) <= 101


_ADDRESS = re.compile(r"(https?:)?//[^\s/]+\.\S+.*")


def _is_kind(facts: Facts) -> bool:
    return len(facts.distinct) <= 60 and facts.moments < 0.5 and facts.hashes < 0.5


def _is_date(facts: Facts) -> bool:
    return facts.moments >= 0.5


def _is_text(facts: Facts) -> bool:
    return facts.numbers < 0.9 and facts.hashes < 0.5 and facts.links < 0.5


def _is_id(facts: Facts) -> bool:
    written = facts.moments >= 0.9 and not all(c.isdigit() for c in facts.distinct[:50])
    return not written and facts.clocks < 0.5 and facts.length <= 128 and not _is_spoilt(facts)


def _is_spoilt(facts: Facts) -> bool:
    """True if a spreadsheet has rounded long numbers: `4,00638E+12`."""
    cells = facts.distinct[:50]
    return bool(cells) and sum("E+" in c for c in cells) * 2 >= len([c for c in cells if not c.startswith("#")])


def _is_currency(facts: Facts) -> bool:
    return facts.share(re.compile(r"[A-Za-z]{3}|\W|[€£]\S?")) >= 0.9


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
    "currency": _is_currency,
    "available_from": _is_date,
    "image_url": lambda f: f.share(_ADDRESS) >= 0.9,
    "group_id": _is_id,
}

# Entity of a bare `id`, `name` or `title`, by the topic of its table.
_KEY_OF = {"user_id": "user", "item_id": "item", "order_id": "order"}


class Candidate(NamedTuple):
    """A column that may have a role. score: 0 to 1."""

    path: str
    score: float


def candidates(table: Table, role: str, paths: Iterable[str] | None = None) -> list[Candidate]:
    """Columns that may have a role, the likeliest first. paths: the only ones to look at."""
    fits = _CONTENT.get(role)
    out = []
    for path, facts in table.columns.items():
        if (paths is not None and path not in paths) or not facts.cells or (fits and not fits(facts)):
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
    for known, score in _names()[role].items():
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
