"""Baskets and sessions of a log: groups of items, each item once, in order.

A basket has what a user put into the cart or bought in one session (see `session_numbers`). A session has everything
that the user engaged with.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.arrays import F64, I32, I64, U64, Bool
from features.log import Events, Kind
from features.neighbours import session_numbers

MAX_PER_GROUP = 100
"""Items of a basket or session that count: the newest. Of those at one moment, such as the lines of a large order, a
selection that depends on item and moment alone, because the first by ID would be the same in every order."""


class Groups(NamedTuple):
    """Groups of at least two items, one row per group and item; sorted by group, then by place, then by item.

    group: int64[r], from 0 and without gaps. item: int32[r]. place: int32[r], number of the moment in the group at
    which the user first engaged with the item, from 0; items of one moment share it. start: int64[groups + 1], rows of
    each group. at: float64[groups], Unix seconds of its last row.
    """

    group: I64
    item: I32
    place: I32
    start: I64
    at: F64


def baskets(events: Events) -> Groups:
    """The baskets of a log: carts and purchases."""
    return _groups(events, (events.kind == Kind.CART) | (events.kind == Kind.PURCHASE))


def sessions(events: Events) -> Groups:
    """The sessions of a log: all engagements."""
    return _groups(events, events.kind != Kind.IMPRESSION)


def _groups(events: Events, selected: Bool) -> Groups:
    # Sessions end by the gaps between all engagements, also where only carts and purchases are paired.
    engaged = events.kind != Kind.IMPRESSION
    row = np.flatnonzero(selected[engaged] & (events.item[engaged] >= 0))
    group = session_numbers(events.take(engaged))[row]
    item, at = events.item[engaged][row], events.at[engaged][row]
    kept = _first_of_pair(group, item, at)
    kept = kept[_newest(group[kept], at[kept], item[kept])]
    kept = kept[np.bincount(group[kept])[group[kept]] > 1] if len(kept) else kept
    kept = kept[np.lexsort((item[kept], at[kept], group[kept]))]
    group, item, at = group[kept], item[kept], at[kept]
    first = np.flatnonzero(np.diff(group, prepend=-1))
    start = np.append(first, len(group)).astype(np.int64)
    number = np.repeat(np.arange(len(first)), np.diff(start))
    moment = np.cumsum((np.diff(group, prepend=-1) != 0) | (np.diff(at, prepend=-np.inf) != 0))
    return Groups(number, item, (moment - moment[start[number]]).astype(np.int32), start, at[start[1:] - 1])


def _first_of_pair(group: I64, item: I32, at: F64) -> I64:
    """Rows, in no particular order, of the first event on each item of a group."""
    order = np.lexsort((at, item, group))
    rows: I64 = order[(np.diff(group[order], prepend=-1) != 0) | (np.diff(item[order], prepend=-1) != 0)]
    return rows


def _newest(group: I64, at: F64, item: I32) -> I64:
    """Rows, in no particular order, of the newest `MAX_PER_GROUP` of each group."""
    order = np.lexsort((item, _mixed(item, at), -at, group))
    ordered = group[order]
    rows: I64 = order[np.arange(len(order)) - np.searchsorted(ordered, ordered) < MAX_PER_GROUP]
    return rows


def _mixed(item: I32, at: F64) -> U64:
    """Numbers that look random, and depend on item and time alone (the mixing function of splitmix64)."""
    x = at.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ item.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = x ^ x >> np.uint64(31)
    return mixed
