"""Parts of a test that are reported on their own: which lists, or which of the items that were engaged with.

A slice of lists (people known and not, by how much) keeps whole lists. A slice of targets (new items and old, head and
tail) asks how well an order finds *those*: other items engaged with in the same list are neither hits nor in the way,
so a basket of old and new is judged on each (as repetition and exploration are in Li et al., TOIS 2023). Other
candidates stay in the way: where people come back to what they had, that fills the top, and new items seem worse found
than by chance. `new_only` therefore takes what the user had before out of the order too: a list of new items alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.catalogue import Catalogue
from features.log import F64, I32, I64, Events, Lists
from offline.baselines import Running, Tally, pairs
from offline.lists import Targets
from offline.windows import Windows

Mask = NDArray[np.bool_]

BY_HISTORY = {"1_4": (1, 5), "5_19": (5, 20), "20_49": (20, 50), "50_plus": (50, np.inf)}
"""Engagements of the user before the list: from, up to but not including."""
BY_SEEN = {"1_4": (1, 5), "5_19": (5, 20), "20_plus": (20, np.inf)}
"""Engagements of anyone with the item before the list."""
HEAD = 0.2
"""The share of the catalogue, most engaged with first, that is the head."""
CATEGORIES = 5


def of_lists(events: Events, lists: Lists, warm: Mask) -> dict[str, Mask]:
    """bool[lists] by name: `all`, `warm_users`, `cold_users`, `history_1_4` and so on.

    warm: whether anything was known of the user. A user's history is counted in engagements; impressions are none.
    """
    known = Tally(events, lambda e: e.user.astype(np.int64)).before(lists.user.astype(np.int64), lists.at)
    out = {"all": np.ones(len(lists), bool), "warm_users": warm, "cold_users": ~warm}
    return out | {f"history_{name}": (known >= low) & (known < high) for name, (low, high) in BY_HISTORY.items()}


def of_targets(events: Events, lists: Lists, targets: Targets, catalogue: Catalogue, count: F64) -> dict[str, Mask]:
    """bool[targets] by name: `warm_items`, `cold_items`, `seen_1_4` and so on, `repeats`, `new_items`, `head`, `tail`,
    and `category:NAME` of those most engaged with here.

    Cold, seen and repeat are as of the list's moment: engaged with by nobody before, by so many, by this user. count:
    float64[items], of `known_engagements`, for head and tail.
    """
    at, item = lists.at[targets.of], targets.item.astype(np.int64)
    seen = Tally(events, lambda e: e.item.astype(np.int64)).before(item, at)
    again = Tally(events, _pairs).before(pairs(lists.user[targets.of], targets.item), at) > 0
    head = np.zeros(len(count), bool)
    head[np.argsort(-count, kind="stable")[: int(np.ceil(HEAD * len(count)))]] = True
    out = {"warm_items": seen > 0, "cold_items": seen == 0}
    out |= {f"seen_{name}": (seen >= low) & (seen < high) for name, (low, high) in BY_SEEN.items()}
    out |= {"repeats": again, "new_items": ~again, "head": head[item], "tail": ~head[item]}
    category, names = catalogue.category[item], catalogue.category_names
    most = np.argsort(-np.bincount(category, minlength=len(names) + 1)[: len(names)], kind="stable")[:CATEGORIES]
    return out | {f"category:{names[c]}": category == c for c in most.tolist()}


def had_before(events: Events, lists: Lists, order: I32) -> Mask:
    """bool, like `order` (int32[lists, depth], `-1` for none): whether the list's user had engaged with it before."""
    user, at = np.broadcast_to(lists.user[:, None], order.shape), np.broadcast_to(lists.at[:, None], order.shape)
    some, out = order >= 0, np.zeros(order.shape, bool)
    out[some] = Tally(events, _pairs).before(pairs(user[some], order[some]), at[some]) > 0
    return out


def _pairs(events: Events) -> I64:
    return pairs(events.user, events.item)


def known_engagements(events: Events, windows: Windows, targets: Targets, n_items: int) -> F64:
    """float64[items]: engagements with each item that are no part of the test."""
    whole = windows.protocol == "leave-last-out"
    every = Running(events, n_items).before(np.arange(n_items, dtype=np.int32), np.inf if whole else windows.test)
    return (every - np.bincount(targets.item, minlength=n_items)).clip(0) if whole else every
