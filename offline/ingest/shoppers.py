"""Shopper IDs that cannot be one person: words for a missing ID, and IDs with an unlikely share of the events."""

from __future__ import annotations

from offline.ingest.lists import EventChecks
from offline.ingest.reading.library import literal
from offline.ingest.suggestion.vocabulary import is_nobody

_FEWEST_EVENTS = 20
_WORD_SHARE = 0.01
"""A word such as NA with at least this share of the events is no shopper; below it, it may be an actual ID."""
_SHARE = 0.1
_FEWEST_USERS = 20


def check_shoppers(checks: EventChecks) -> list[str]:
    """Refuse events of words that stand for no shopper. Returns a note on each other ID with an unlikely share."""
    total, users = checks.library.rows("SELECT count(*), count(DISTINCT user_id) FROM shop.events")[0]
    large = checks.library.rows(
        "SELECT user_id, count(*) AS n FROM shop.events GROUP BY user_id"
        f" HAVING n >= {max(_FEWEST_EVENTS, _WORD_SHARE * total):.0f} ORDER BY n DESC, user_id"
    )
    nobody = [user for user, _ in large if is_nobody(user)]
    if nobody:
        words = ", ".join(map(literal, nobody))
        checks.refuse(f"SELECT seq FROM shop.events WHERE user_id IN ({words})", "user_id", "placeholder_id")
    return [
        f"user {user!r} has {n / total:.0%} of the events: if it stands for shoppers without an ID, add it to `missing`"
        for user, n in large
        if user not in nobody and users >= _FEWEST_USERS and n >= _SHARE * total
    ]
