"""Facts that stand beside the figures of an evaluation: what the data holds and lacks, and lists as people saw them."""

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
"""By gain, in words."""
_EXAMPLES, _PLACES, _LIKED, _KNOWN = 3, 8, 6, 3


def iso(at: float) -> str:
    """A moment, Unix seconds, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def data_facts(data: Dataset) -> dict[str, Any]:
    """What a data set holds: `items`, `events`, `users`, `from`, `to`; `kinds` of events; columns items have `filled`.

    An event of an item outside the catalogue counts under `kinds` as `of unknown items` as well.
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
    """Texts without a letter."""
    kind = str(column.type)
    return int(pc.sum(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py() or 0) if kind == "string" else 0


def import_facts(directory: Path) -> list[list[object]]:
    """What happened to every row read: file, `accepted` or `quarantined`, reason, rows; empty if not imported."""
    account = directory / "import.json"
    sources = json.loads(account.read_text("utf-8"))["sources"] if account.exists() else []
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
    """The first test lists of people we know, one a person: what they liked, the popular order, and the ranker's."""
    titles = data.catalogue.titles
    out: list[dict[str, Any]] = []
    shown: set[int] = set()
    for g in np.flatnonzero(warm).tolist():
        user, at = int(tested.user[g]), slice(int(tested.start[g]), int(tested.start[g + 1]))
        history = histories.read(user, float(tested.at[g]))
        if user in shown or len(history.item) < _KNOWN or tested.gain[at].min(initial=1) > 0:
            continue
        gain = dict(zip(tested.item[at].tolist(), tested.gain[at].tolist(), strict=True))
        before, after = (_with_titles(orders[system][g], gain, titles) for system in ("popularity", "ranker"))
        liked = [titles[i] for i in dict.fromkeys(history.item.tolist()) if i >= 0][:_LIKED]
        out.append({"user": data.events.user_ids[user], "liked": liked, "before": before, "after": after})
        shown.add(user)
        if len(out) == _EXAMPLES:
            break
    return out


def _with_titles(order: I32, gain: Mapping[int, int], titles: Sequence[str]) -> list[list[str]]:
    return [[titles[i], _GAIN_WORDS[gain.get(i, 0)]] for i in order[:_PLACES].tolist() if i >= 0]
