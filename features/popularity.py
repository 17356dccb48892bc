"""User-independent features of items, computed in one pass: decayed counts, rates based on them, age and price."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from features.arrays import F32, F64, I32
from features.decay import HALF_LIVES_S, ItemState
from features.kernels.compiled import compiled
from features.kernels.prefetch import AHEAD, prefetch
from features.log import Kind

RATE_STRENGTH = 10.0
"""Weight of the prior in a click rate, in impressions, and of the shop's rate in a purchase rate, in clicks."""

_IMPRESSION, _VIEW, _CLICK, _CART, _PURCHASE = (
    int(k) for k in (Kind.IMPRESSION, Kind.VIEW, Kind.CLICK, Kind.CART, Kind.PURCHASE)
)
_LONGEST = len(HALF_LIVES_S) - 1
_DAY = 1
_DAY_S = 86400.0


class PopularityRow(IntEnum):
    """Rows of `popularity`; the first four kinds have one row for each half-life of `HALF_LIVES_S`."""

    IMPRESSIONS = 0
    CLICKS = 4
    PURCHASES = 8
    CLICK_RATE = 12
    VIEWS = 16
    CARTS = 17
    PURCHASE_RATE = 18
    PRIOR = 19
    TREND = 20
    CATEGORY_CLICK_RATE = 21
    AGE = 22
    PRICE = 23


_ROWS = len(HALF_LIVES_S) * 4 + 8
_DAY_SUM, _MONTH_SUM = _ROWS, _ROWS + 1
"""Two extra rows of `_popularity`: engagements of one day and of thirty, from which the trend is computed."""
(
    _IMPRESSIONS,
    _CLICKS,
    _PURCHASES,
    _CLICK_RATE,
    _VIEWS,
    _CARTS,
    _PURCHASE_RATE,
    _PRIOR,
    _TREND,
    _CATEGORY_RATE,
    _AGE,
    _PRICE,
) = map(int, PopularityRow)


def popularity(state: ItemState, prior: F32, price: F64, available_from: F64, item: I32, at: float) -> F64:
    """float64[24, c]: user-independent features of items (int32[c], `-1` unknown) at a time.

    Rows, in the order of the feature table: log(1 + decayed events) at 4 half-lives each for impressions, clicks and
    purchases; 4 click rates, shrunk toward the prior from text and attributes; log(1 + views) and log(1 + carts) at the
    longest half-life; purchases per click, shrunk toward the shop's rate; the prior; trend, the log ratio of one day's
    engagements to those of thirty; the category's click rate, shrunk toward the shop's; log(1 + days on sale) and
    log(1 + price).
    A rate is clicks per impression, or purchases per click. It is shrunk to `(successes + s * expected) / (trials + s)`
    with s = `RATE_STRENGTH`, and is NaN until the shop has an impression, or a click. prior: float32[n + 1], price,
    available_from: float64[n + 1], NaN where unknown.
    """
    out = _popularity(state.value, state.latest, state.category, prior, price, available_from, item, float(at))
    for counts in (out[:_CLICK_RATE], out[_VIEWS:_PURCHASE_RATE], out[_AGE:]):
        np.log1p(counts, out=counts)
    np.subtract(out[_DAY_SUM], out[_MONTH_SUM], out=out[_TREND])
    return out[:_ROWS]


@compiled
def shrink(successes: float, trials: float, expected: float) -> float:
    """The rate `successes / trials`, shrunk toward the expected rate."""
    return (successes + RATE_STRENGTH * expected) / (trials + RATE_STRENGTH)


@compiled
def _decay(age_s: float, half_life: int) -> float:
    return float(np.exp2(max(age_s, 0.0) / -HALF_LIVES_S[half_life]))


@compiled
def shop_rate(value: F64, kind: int, per: int) -> float:
    """Shop-wide events of kind `kind` per event of kind `per` at the longest half-life; NaN without the latter."""
    # All sums of the shop have decayed alike, so their ratio does not depend on the time.
    successes, trials = value[len(value) - 1, kind, _LONGEST], value[len(value) - 1, per, _LONGEST]
    return successes / trials if trials > 0.0 else np.nan


@compiled
def click_rates(value: F64, latest: F64, prior: F32, n_items: int, item: I32, at: float) -> F64:
    """float64, like `item`: clicks per impression at the longest half-life, shrunk as in `popularity`."""
    out = np.empty(len(item))
    shop = shop_rate(value, _CLICK, _IMPRESSION)
    for c in range(len(item)):
        prefetch(value, item[min(c + AHEAD, len(item) - 1)])
        row = item[c] if item[c] >= 0 else n_items
        keep = _decay(at - latest[row], _LONGEST)
        expected = shop if np.isnan(prior[row]) else prior[row]
        out[c] = shrink(value[row, _CLICK, _LONGEST] * keep, value[row, _IMPRESSION, _LONGEST] * keep, expected)
    return out


@compiled
def _popularity(
    value: F64, latest: F64, category: I32, prior: F32, price: F64, available_from: F64, item: I32, at: float
) -> F64:
    """`popularity` before logarithms, with rows for the engagements of a day and of thirty in place of the trend."""
    n, n_items, kinds, half_lives = len(item), len(category) - 1, value.shape[1], value.shape[2]
    sums = value.reshape(len(value), kinds * half_lives)
    shop_clicks = shop_rate(value, _CLICK, _IMPRESSION)
    shop_purchases = shop_rate(value, _PURCHASE, _CLICK)
    out, keep = np.empty((_ROWS + 2, n)), np.empty(half_lives)
    for c in range(n):
        upcoming = item[min(c + AHEAD, n - 1)]
        prefetch(sums, upcoming)
        prefetch(latest, upcoming)
        prefetch(price, upcoming)
        prefetch(available_from, upcoming)
        prefetch(category, upcoming)
        prefetch(prior, upcoming)
        row = item[c] if item[c] >= 0 else n_items
        for h in range(half_lives):
            keep[h] = _decay(at - latest[row], h)
        expected = shop_clicks if np.isnan(prior[row]) else prior[row]
        for h in range(half_lives):
            shown = sums[row, _IMPRESSION * half_lives + h] * keep[h]
            clicks = sums[row, _CLICK * half_lives + h] * keep[h]
            bought = sums[row, _PURCHASE * half_lives + h] * keep[h]
            out[_IMPRESSIONS + h, c], out[_CLICKS + h, c], out[_PURCHASES + h, c] = shown, clicks, bought
            out[_CLICK_RATE + h, c] = shrink(clicks, shown, expected)
        out[_VIEWS, c] = sums[row, _VIEW * half_lives + _LONGEST] * keep[_LONGEST]
        out[_CARTS, c] = sums[row, _CART * half_lives + _LONGEST] * keep[_LONGEST]
        # After the loop, `bought` and `clicks` are those of the longest half-life.
        out[_PURCHASE_RATE, c] = shrink(bought, clicks, shop_purchases)
        out[_PRIOR, c] = prior[row]
        category_row = n_items + 1 + category[row]
        category_keep = _decay(at - latest[category_row], _LONGEST)
        clicks, shown = (
            value[category_row, _CLICK, _LONGEST] * category_keep,
            value[category_row, _IMPRESSION, _LONGEST] * category_keep,
        )
        out[_CATEGORY_RATE, c] = shrink(clicks, shown, shop_clicks)
        # An item that is not yet available has age 0; below -1 day the logarithm is undefined.
        out[_AGE, c] = _at_least_zero(at - available_from[row]) / _DAY_S
        out[_PRICE, c] = _at_least_zero(price[row])
        day = month = 0.0
        for k in range(_VIEW, kinds):
            day += sums[row, k * half_lives + _DAY] * keep[_DAY]
            month += sums[row, k * half_lives + _LONGEST] * keep[_LONGEST]
        out[_DAY_SUM, c], out[_MONTH_SUM, c] = day, month
    return out


@compiled
def _at_least_zero(x: float) -> float:
    """max(x, 0), except that NaN stays NaN."""
    return 0.0 if x < 0.0 else x
