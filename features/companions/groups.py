"""Baskets and sessions of a log: groups of items, each item once, in order.

A basket is what a user put into the cart or bought in one session (see `session_numbers`). A session has everything
that the user engaged with.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.arrays import F64, I32, I64, U64, Bool
from features.log import Events, Kind
from features.neighbours import MAX_PER_USER, session_numbers

MAX_PER_GROUP = 100
"""Items of a basket or session that count: the newest. Of items at the same moment, which count depends on the item and
the moment alone, so that in a large order without times of its lines it is not those with the first ids."""


class Groups(NamedTuple):
    """Groups of at least two items, one row per group and item; sorted by group, then by place.

    group: int64[r], from 0 and without gaps. item: int32[r]. place: int32[r], number of the moment in the group at
    which the user first engaged with the item, from 0; items of one moment share it. start: int64[groups + 1], rows of
    each group. at: float64[groups], Unix seconds of the last event.
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
    engaged = events.take(events.kind != Kind.IMPRESSION)
    selected = selected[events.kind != Kind.IMPRESSION] & (engaged.item >= 0)
    group = session_numbers(engaged)[selected]
    user, item, at = engaged.user[selected], engaged.item[selected], engaged.at[selected]
    row = _newest(user.astype(np.int64), at, item, MAX_PER_USER)
    row = row[_first_of_pair(group[row], item[row], at[row])]
    row = row[_newest(group[row], at[row], item[row], MAX_PER_GROUP)]
    row = row[np.bincount(group[row])[group[row]] > 1] if len(row) else row
    row = row[np.lexsort((item[row], at[row], group[row]))]
    _, number = np.unique(group[row], return_inverse=True)
    new_group = np.diff(number, prepend=-1) != 0
    start = np.append(np.flatnonzero(new_group), len(row)).astype(np.int64)
    moment = np.cumsum(new_group | (np.diff(at[row], prepend=-np.inf) != 0)) - 1
    place = (moment - moment[start[number]]).astype(np.int32) if len(row) else np.empty(0, np.int32)
    return Groups(number.astype(np.int64), item[row], place, start, at[row][start[1:] - 1])


def _first_of_pair(group: I64, item: I32, at: F64) -> I64:
    """Rows, in no particular order, of the first event on each item of a group."""
    order = np.lexsort((at, item, group))
    new = (np.diff(group[order], prepend=-1) != 0) | (np.diff(item[order], prepend=-1) != 0)
    rows: I64 = order[new]
    return rows


def _newest(owner: I64, at: F64, item: I32, most: int) -> I64:
    """Rows, in no particular order, of the newest `most` events of each owner."""
    if not len(owner):
        return np.empty(0, np.int64)
    order = np.lexsort((item, _mixed(item, at), -at, owner))
    sorted_owner = owner[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_owner, sorted_owner)
    rows: I64 = order[rank < most]
    return rows


def _mixed(item: I32, at: F64) -> U64:
    """uint64: numbers that look random and depend on item and time alone."""
    x = at.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ item.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    mixed: U64 = x ^ (x >> np.uint64(32))
    return mixed
