"""When an item is bought again: the typical time between two purchases of a user, and how due an item is now.

The purchases of a user are taken as a Poisson process whose rate has a gamma prior from the item: the Poisson-gamma
model of Bhagat et al., "Buy It Again: Modeling Repeat Purchase Recommendations", KDD 2018. The rate of an item is its
repeats over the time in which they could have happened, so users who never came back count as well.
"""

from __future__ import annotations

import numpy as np

from features.arrays import F32, F64, I32, Bool
from features.history import SESSION_S, History
from features.log import Events, Kind

STRENGTH = 30.0
"""Repeats at which those of an item count as much as those of its category, and of a category as those of the shop."""
PRIOR_TIMES = 2.0
"""Purchases that the prior of an item counts for, beside those of the user."""
UNKNOWN_S = 365 * 86400.0
"""Time between purchases in a shop in which nobody has bought anything twice."""
_DAY_S = 86400.0


def repurchase_seconds(events: Events, category: I32, at: float) -> F32:
    """float32[n + 1]: typical seconds until a user who bought an item buys it again; NaN if nobody bought any twice.

    The time since each purchase, until the user's next or until `at`, over the number of repeats: the estimate for an
    exponential time of which some are not over yet. Shrunk to the category of the item, and that to the shop. Purchases
    at or after `at` do not count, and those at most `SESSION_S` apart are one. category: int32[n + 1], of each item.
    """
    past = events.before(at)
    past = past.take((past.kind == Kind.PURCHASE) & (past.item >= 0))
    order = np.lexsort((past.at, past.item, past.user))
    user, item, moment = past.user[order], past.item[order], past.at[order]
    last = np.append((np.diff(user) != 0) | (np.diff(item) != 0), True)[: len(order)]
    wait = np.where(last, at, np.append(moment[1:], at)[: len(order)]) - moment
    repeat = ~last & (wait > SESSION_S)
    if not repeat.any():
        return np.full(len(category), np.nan, np.float32)
    # Whole seconds, so that the sums are exact and do not depend on the numbering of users.
    wait = np.rint(wait)
    shop = repeat.sum() / wait.sum()
    categories = int(category.max()) + 1
    of_category = _rates(category[item], categories, repeat, wait, np.full(categories, shop))
    return (1.0 / _rates(item, len(category), repeat, wait, of_category[category])).astype(np.float32)


def _rates(owner: I32, owners: int, repeat: Bool, wait: F64, prior: F64) -> F64:
    """float64[owners]: repeats per second of each owner, shrunk to `prior`, float64[owners]."""
    repeats = np.bincount(owner, repeat, minlength=owners)
    out: F64 = (repeats + STRENGTH) / (np.bincount(owner, wait, minlength=owners) + STRENGTH / prior)
    return out


def buy_again_scores(history: History, at: float, repurchase_s: F32) -> tuple[I32, F64]:
    """(int32[m], float64[m]): the items that the user has bought, ascending, and how due each is.

    How due: the expected purchases per day, `(p - 1 + PRIOR_TIMES) / (t + PRIOR_TIMES * r)`, for p purchases, the first
    t days ago, and r the item's typical time between purchases, always above 0. repurchase_s: float32[n + 1], as from
    `repurchase_seconds`. Purchases of one item at one time are one.
    """
    bought = (history.kind == Kind.PURCHASE) & (history.item >= 0)
    item, moment = history.item[bought], history.at[bought]
    distinct, index = np.unique(item, return_inverse=True)
    # One list is in time order, so purchases of an item at one time are next to each other after sorting by item.
    order = np.lexsort((moment, index))
    index, moment = index[order], moment[order]
    new = (np.diff(index, prepend=-1) != 0) | (np.diff(moment, prepend=-np.inf) != 0)
    times = np.bincount(index[new], minlength=len(distinct))
    first = moment[np.searchsorted(index, np.arange(len(distinct)))]
    typical = repurchase_s[distinct].astype(np.float64)
    typical = np.where(np.isnan(typical), UNKNOWN_S, typical)
    due = (times - 1 + PRIOR_TIMES) / (np.maximum(at - first, 0.0) + PRIOR_TIMES * typical) * _DAY_S
    return distinct.astype(np.int32), due
