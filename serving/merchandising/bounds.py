"""Bounds of the document, so that neither its size nor the work that it adds to a request can grow without limit."""

from __future__ import annotations

import msgspec
import numpy as np

from features.arrays import F64
from serving.merchandising.document import Document, MerchandisingRule
from serving.rules import MOST_CONDITIONS, MOST_VALUES, Condition

MOST_RULES = 200
MOST_BYTES = 200_000
"""Maximum size of the document, as JSON."""
_MOST_AT_ONCE = {
    "conditions": MOST_CONDITIONS,
    "values of `in`": MOST_VALUES,
    "exclusions": 8,
    "boosts and buries": 40,
    "caps": 8,
    "pins": 50,
}
"""Maximum of each over the rules that apply to a list at the same time, which are those of a single request."""


class BoundError(ValueError):
    """The document would exceed a bound; the message says which, and what to do."""


def check_bounds(document: Document) -> None:
    """Raise BoundError if a document has too many rules, is too large, or if too many rules apply to a list at once."""
    if len(document.rules) > MOST_RULES:
        raise BoundError(f"there would be more than {MOST_RULES} rules: delete some that have expired")
    if (size := len(msgspec.json.encode(document))) > MOST_BYTES:
        raise BoundError(f"all rules together would be {size} bytes, more than {MOST_BYTES}: delete some")
    for placement in {r.placement for r in document.rules} or {None}:
        _check_list([r for r in document.rules if r.placement in (None, placement)], placement)


def _check_list(rules: list[MerchandisingRule], placement: str | None) -> None:
    # The sums are largest at the start of some rule.
    start = np.array([-np.inf if r.start is None else r.start for r in rules])
    end = np.array([np.inf if r.end is None else r.end for r in rules])
    moments = np.unique(start)
    applies = (start <= moments[:, None]) & (moments[:, None] < end)
    most = (applies @ np.array([_amounts(r) for r in rules]).reshape(-1, len(_MOST_AT_ONCE))).max(axis=0, initial=0.0)
    for (name, bound), amount in zip(_MOST_AT_ONCE.items(), most.tolist(), strict=True):
        if amount > bound:
            where = "all lists" if placement is None else f"placement {placement!r}"
            raise BoundError(
                f"for {where}, {amount:.0f} {name} would apply at the same time, more than {bound}: use fewer, or give "
                "rules an end"
            )


def _amounts(rule: MerchandisingRule) -> F64:
    r = rule.rules
    conditions = [c for c in (r.filter, *(lift.when for lift in (*r.boost, *r.bury))) if c is not None]
    counts = [_count(c) for c in conditions]
    values = (sum(n for n, _ in counts), sum(n for _, n in counts))
    return np.array([*values, len(r.exclude), len(r.boost) + len(r.bury), len(r.cap), len(r.pin)], np.float64)


def _count(condition: Condition) -> tuple[int, int]:
    """(number of conditions, number of values of `in`) of a condition with all its parts."""
    parts = [_count(c) for c in (*(condition.all or ()), *(condition.any or ()))]
    if condition.not_ is not None:
        parts.append(_count(condition.not_))
    return 1 + sum(n for n, _ in parts), len(condition.in_ or ()) + sum(n for _, n in parts)
