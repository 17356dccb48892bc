"""Context for the metrics of an evaluation: contents of the data set, import results, and example lists."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from features.arrays import I32
from features.history import Histories
from features.log import KINDS, Lists
from offline.data import Dataset

_GAIN_WORDS = ("", "clicked", "put in cart", "bought")
"""Label of an item by its gain."""
_EXAMPLES, _PLACES, _LIKED, _KNOWN = 3, 8, 6, 3
"""Numbers of example users, of items shown per ranking and per history, and of engagements that a user must have."""


def iso(at: float) -> str:
    """A time in Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def data_facts(data: Dataset) -> dict[str, Any]:
    """Contents of a data set: counts of `items`, `events` and `users`, first and last event (`from`, `to`), events by
    kind (`kinds`), and the share of items with a value by column (`filled`).

    An event of an item outside the catalogue also counts in `kinds` as `of unknown items`.
    """
    events = data.events
    count = np.zeros(len(KINDS), np.int64)
    for part in events.parts():
        count += np.bincount(part.kind, minlength=len(KINDS))
    kinds = {kind: n for kind, n in zip(KINDS, count.tolist(), strict=True) if n}
    outside = sum(int((part.item < 0).sum()) for part in events.parts())
    table = data.items
    return {
        "items": len(data.catalogue),
        "events": len(events),
        "users": events.n_users,
        "from": iso(float(events.at[0])),
        "to": iso(float(events.at[-1])),
        "kinds": kinds | ({"of unknown items": outside} if outside else {}),
        "filled": {
            name: (len(table) - table[name].null_count - _empty(table[name])) / max(len(table), 1)
            for name in table.column_names
            if name != "item_id"
        },
    }


def _empty(column: Any) -> int:
    """Number of texts that are empty or whitespace."""
    kind = str(column.type)
    return int(pc.sum(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py() or 0) if kind == "string" else 0


def import_facts(directory: Path) -> list[list[object]]:
    """Import results: file, `accepted` or `quarantined`, reason, and number of rows. Empty if nothing was imported."""
    summary = directory / "import.json"
    sources = json.loads(summary.read_text("utf-8"))["sources"] if summary.exists() else []
    return [
        row
        for s in sources
        for row in (
            [s["file"], "accepted", "", s["accepted"]],
            *([s["file"], "quarantined", reason, n] for reason, n in s["quarantined"].items()),
        )
    ]


def examples(
    data: Dataset, histories: Histories, tested: Lists, orders: Mapping[str, I32], warm: np.ndarray
) -> list[dict[str, Any]]:
    """The first test lists of users with a history, one per user, ranked by popularity and by the ranker.

    Each has `user`, `liked` (titles of their latest items), and `before` and `after` (titles by popularity and by the
    ranker, each with what the user did). Lists in which every item has gain are skipped.
    """
    titles = data.catalogue.titles
    out: list[dict[str, Any]] = []
    shown: set[int] = set()
    for g in np.flatnonzero(warm).tolist():
        user, rows = int(tested.user[g]), slice(int(tested.start[g]), int(tested.start[g + 1]))
        history = histories.read(user, float(tested.at[g]))
        if user in shown or len(history.item) < _KNOWN or tested.gain[rows].min(initial=1) > 0:
            continue
        gain = dict(zip(tested.item[rows].tolist(), tested.gain[rows].tolist(), strict=True))
        before, after = (_with_titles(orders[system][g], gain, titles) for system in ("popularity", "ranker"))
        liked = [titles[i] for i in dict.fromkeys(history.item.tolist()) if i >= 0][:_LIKED]
        out.append({"user": data.events.user_ids[user], "liked": liked, "before": before, "after": after})
        shown.add(user)
        if len(out) == _EXAMPLES:
            break
    return out


def _with_titles(order: I32, gain: Mapping[int, int], titles: Sequence[str]) -> list[list[str]]:
    """[title, what the user did with it] of the first items of a ranking."""
    return [[titles[i], _GAIN_WORDS[gain.get(i, 0)]] for i in order[:_PLACES].tolist() if i >= 0]
