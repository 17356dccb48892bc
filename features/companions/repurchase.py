"""When an item is bought again: the typical time between two purchases of a user, and how due an item is now.

Times between purchases are taken as log-normal, as in Bhagat et al., "Buy It Again: Modeling Repeat Purchase
Recommendations", KDD 2018 (section 3.2): their typical value is the geometric mean.
"""

from __future__ import annotations

import numpy as np

from features.arrays import F32, F64, I32, I64
from features.history import SESSION_S, History
from features.log import Events, Kind

STRENGTH = 10.0
"""Times between purchases at which those of an item count as much as those of its category, and of a category as much
as those of the shop."""


def repurchase_seconds(events: Events, category: I32, at: float) -> F32:
    """float32[n + 1]: typical seconds until the user who bought an item buys it again; NaN if nobody ever bought twice.

    The geometric mean of the times between purchases, in different sessions, strictly before `at`: of an item, shrunk
    to its category and that to the shop. category: int32[n + 1], of each item; a value for items without one.
    """
    past = events.before(at)
    past = past.take((past.kind == Kind.PURCHASE) & (past.item >= 0))
    order = np.lexsort((past.at, past.item, past.user))
    same = (np.diff(past.user[order]) == 0) & (np.diff(past.item[order]) == 0)
    gap = np.diff(past.at[order])
    kept = same & (gap > SESSION_S)
    # Rounded, so that sums are exact and do not depend on the order of the users.
    log_gap = np.rint(np.log(gap[kept]) * 2**20) / 2**20
    item = past.item[order][1:][kept]
    n = len(category)
    if not len(item):
        return np.full(n, np.nan, np.float32)
    categories = int(category.max()) + 1
    shop = log_gap.mean()
    of_category = _shrunk(category[item], log_gap, categories, np.full(categories, shop))
    return np.exp(_shrunk(item.astype(np.int64), log_gap, n, of_category[category])).astype(np.float32)


def _shrunk(owner: I32 | I64, value: F64, n: int, prior: F64) -> F64:
    """float64[n]: mean of the values of each owner, shrunk to `prior` (float64[n])."""
    out: F64 = (np.bincount(owner, value, minlength=n) + STRENGTH * prior) / (
        np.bincount(owner, minlength=n) + STRENGTH
    )
    return out


def buy_again_scores(history: History, at: float, repurchase_s: F32) -> tuple[I32, F64]:
    """(int32[m], float64[m]): the items that the user has bought, ascending, and how due each is, above 0."""
    bought = (history.kind == Kind.PURCHASE) & (history.item >= 0)
    item, moment = history.item[bought], history.at[bought]
    distinct, index = np.unique(item, return_inverse=True)
    times = np.bincount(index, minlength=len(distinct))
    last = np.full(len(distinct), -np.inf)
    np.maximum.at(last, index, moment)
    typical = repurchase_s[distinct].astype(np.float64)
    typical = np.where(np.isnan(typical), 30 * 86400.0, typical)
    elapsed = np.maximum(at - last, 0.0)
    return distinct.astype(np.int32), times / (elapsed + typical)
