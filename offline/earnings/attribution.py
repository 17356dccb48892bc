"""Attribution by last touch: the list that each click, cart and purchase counts for.

An action counts for the list it names. If it names none, or one that is not in the log or was shown longer ago than the
window, it counts for the last list within the window that showed its item to its user. A return counts for the list of
the purchase before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.arrays import I64, Bool
from offline.earnings.cells import Cells
from offline.earnings.rows import FIRST_ACTION, RowKind, Rows, first_rows, make_rows


class NamedLists(NamedTuple):
    """The lists of some requests, and their rows by user.

    rows: a row of kind LIST or SILENT per list; SHOWN, or LISTED of a silent list, per item; and the actions, with the
    cell and time of the list they name, if they count for it. seen, silent: lists by placement number.
    """

    rows: Rows
    seen: I64
    silent: I64


def named_lists(rows: Rows, cells: Cells, window: int) -> NamedLists:
    """Match lists with the impressions and actions that name them.

    rows: of whole requests, of any order. window: microseconds. A list is silent if it was served, and neither an
    impression nor an action names it. It starts at its first impression, or when it was served.
    """
    rows = rows[np.lexsort((rows["at"], rows["kind"], rows["request"]))]
    start = first_rows(rows["request"])
    group = np.repeat(np.arange(len(start)), np.diff(np.append(start, len(rows))))
    kind = rows["kind"]
    served, shown = (_first_of(group, kind == k, len(start)) for k in (RowKind.LIST, RowKind.SHOWN))
    known, was_shown = (served >= 0) | (shown >= 0), shown >= 0
    list_at = rows["at"][np.where(was_shown, shown, served)]
    user = np.where(served >= 0, rows["user"][served], np.uint64(0))
    user = np.where((user == 0) & was_shown, rows["user"][shown], user)
    cell = cells.combined(np.where(served >= 0, rows["cell"][served], -1), np.where(was_shown, rows["cell"][shown], -1))
    delay = rows["at"] - list_at[group]
    counts = (kind >= FIRST_ACTION) & (kind != RowKind.RETURN) & known[group] & (delay >= 0) & (delay <= window)
    silent = known & ~was_shown & ~np.isin(np.arange(len(start)), group[counts])

    lists = make_rows(int(known.sum()))
    lists["request"], lists["user"], lists["cell"] = rows["request"][start][known], user[known], cell[known]
    lists["at"] = lists["list_at"] = list_at[known]
    lists["kind"] = np.where(silent, RowKind.SILENT, RowKind.LIST)[known]
    touched = known[group] & ((kind == RowKind.SHOWN) | ((kind == RowKind.LISTED) & ~was_shown[group]))
    touches, of = rows[touched], group[touched]
    touches["cell"], touches["at"], touches["list_at"] = cell[of], list_at[of], list_at[of]
    # The items of a list that an action names were shown, but for those of a silent list that is not known.
    touches["kind"] = np.where(silent[of], RowKind.LISTED, RowKind.SHOWN)
    unnamed = touches["user"] == 0
    touches["user"][unnamed] = user[of[unnamed]]
    is_action = kind >= FIRST_ACTION
    actions, of = rows[is_action], group[is_action]
    actions["cell"] = np.where(counts[is_action], cell[of], -1)
    actions["list_at"] = list_at[of]
    placement = cells.placement_codes()[cell[known]]
    size = len(cells.placements)
    heard, unheard = (
        np.bincount(placement[mask[known] & (served >= 0)[known]], minlength=size) for mask in (was_shown, silent)
    )
    return NamedLists(np.concatenate((lists, touches, actions)), heard, unheard)


def _first_of(group: I64, rows: Bool, count: int) -> I64:
    """int64[groups]: the first of these rows in each group, `-1` if there is none."""
    out = np.full(count, -1)
    numbers = np.flatnonzero(rows)[::-1]
    out[group[numbers]] = numbers
    return out


def last_touches(rows: Rows, window: int) -> Rows:
    """The actions of some users, each with the cell and time of its list; cell `-1` if it counts for none.

    rows: of whole users: touches of kind SHOWN or LISTED, and actions. The result is sorted by user, item and time.
    """
    rows = rows[(rows["kind"] >= RowKind.SHOWN)]
    rows = rows[np.lexsort((rows["kind"], rows["at"], rows["item"], rows["user"]))]
    kind = rows["kind"]
    action = kind >= FIRST_ACTION
    touch = _previous(rows, ~action)
    late = rows["at"] - rows["at"][touch] > window
    found = action & (rows["cell"] < 0) & (touch >= 0) & ~late & (kind != RowKind.RETURN)
    rows["cell"][found], rows["list_at"][found] = rows["cell"][touch[found]], rows["at"][touch[found]]
    bought = _previous(rows, kind == RowKind.PURCHASE)
    returned = (kind == RowKind.RETURN) & (bought >= 0)
    rows["cell"][returned], rows["list_at"][returned] = (
        rows["cell"][bought[returned]],
        rows["list_at"][bought[returned]],
    )
    rows["cell"][(kind == RowKind.RETURN) & ~returned] = -1
    return rows[action]


def _previous(rows: Rows, marked: Bool) -> I64:
    """int64[n]: the last marked row of the same user and item at or before each row, `-1` if there is none."""
    last: I64 = (
        np.maximum.accumulate(np.where(marked, np.arange(len(rows)), -1)) if len(rows) else np.empty(0, np.int64)
    )
    same = (rows["user"][last] == rows["user"]) & (rows["item"][last] == rows["item"]) & (last >= 0)
    return np.where(same, last, -1)
