"""Sums over the users of one file after another: figures of groups of lists, and of all purchases."""

from __future__ import annotations

import numpy as np

from features.arrays import F64, I64, U64
from offline.data import DAY_US
from offline.earnings.cells import Breakdown
from offline.earnings.rows import RowKind, Rows

FIGURES = (
    "lists",
    "users",
    "clicks",
    "carts",
    "purchases",
    "returns",
    "revenue",
    "margin",
    "without_revenue",
    "without_margin",
)
"""Figures of a group of lists, or of all purchases.

without_revenue, without_margin: purchases and returns whose revenue or margin is unknown, which the sums leave out.
"""
OUTCOMES = ("revenue", "margin")
_OF_KIND = {RowKind.CLICK: "clicks", RowKind.CART: "carts", RowKind.PURCHASE: "purchases", RowKind.RETURN: "returns"}


class FigureSums:
    """Sums of `FIGURES` by key. Users are distinct within a key; each user must be in one call of `add` only."""

    def __init__(self) -> None:
        self._key = np.empty(0, np.int64)
        self._value = np.empty((0, len(FIGURES)))

    def add(self, lists: I64, user: U64, actions: I64, rows: Rows) -> None:
        """lists, user: the key and user (0: none) of each list. actions, rows: the key of each action, and its row.

        A key of `-1` does not count.
        """
        user, lists = user[lists >= 0], lists[lists >= 0]
        rows, actions = rows[actions >= 0], actions[actions >= 0]
        columns: list[tuple[str, I64, F64 | None]] = [("lists", lists, None), ("users", _once(lists, user), None)]
        for kind, name in _OF_KIND.items():
            columns.append((name, actions[rows["kind"] == kind], None))
        paid = rows["kind"] >= RowKind.PURCHASE
        for name in OUTCOMES:
            known = ~np.isnan(rows[name])
            columns.append((name, actions[paid & known], rows[name][paid & known]))
            columns.append((f"without_{name}", actions[paid & ~known], None))
        keys = np.unique(np.concatenate((self._key, lists, actions)))
        value = np.zeros((len(keys), len(FIGURES)))
        value[np.searchsorted(keys, self._key)] = self._value
        for name, key, weight in columns:
            value[:, FIGURES.index(name)] += np.bincount(np.searchsorted(keys, key), weight, len(keys))
        self._key, self._value = keys, value

    def items(self) -> list[tuple[int, dict[str, float]]]:
        """The figures by key, ascending."""
        rows = zip(self._key.tolist(), self._value.tolist(), strict=True)
        return [(key, dict(zip(FIGURES, row, strict=True))) for key, row in rows]


def _once(key: I64, user: U64) -> I64:
    """The keys of the distinct pairs of key and user, without those of no user."""
    key, user = key[user != 0], user[user != 0]
    order = np.lexsort((user, key))
    key, user = key[order], user[order]
    new = np.append(True, (key[1:] != key[:-1]) | (user[1:] != user[:-1])) if len(key) else np.empty(0, bool)
    out: I64 = key[new]
    return out


class GroupSums:
    """Figures of the groups of a breakdown, by the day of the list (UTC) and over all days."""

    def __init__(self, breakdown: Breakdown, first_day: int, days: int) -> None:
        """first_day: days since 1970."""
        self.breakdown, self.first_day, self._days = breakdown, first_day, days
        self._daily, self._total = FigureSums(), FigureSums()

    def add(self, lists: Rows, actions: Rows) -> None:
        """lists: of all users of a file. actions: their attributed actions."""
        of_lists, of_actions = self._keys(lists), self._keys(actions)
        self._daily.add(of_lists, lists["user"], of_actions, actions)
        codes = [np.where(key >= 0, key // self._days, -1) for key in (of_lists, of_actions)]
        self._total.add(codes[0], lists["user"], codes[1], actions)

    def _keys(self, rows: Rows) -> I64:
        """int64[n]: number of group and day of the lists of these rows, `-1` for those outside of both."""
        code, day = self.breakdown.code[rows["cell"]], rows["list_at"] // DAY_US - self.first_day
        inside = (rows["cell"] >= 0) & (code >= 0) & (day >= 0) & (day < self._days)
        return np.where(inside, code * self._days + day, -1)

    def total(self) -> dict[int, dict[str, float]]:
        """The figures of each group."""
        return dict(self._total.items())

    def daily(self) -> dict[int, dict[int, dict[str, float]]]:
        """The figures of each group by day, in days since 1970."""
        out: dict[int, dict[int, dict[str, float]]] = {}
        for key, figures in self._daily.items():
            out.setdefault(key // self._days, {})[self.first_day + key % self._days] = figures
        return out
