"""What the shop as a whole did with each candidate: its decayed counts, and the rates made of them, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.compiled import compiled
from features.decay import HALF_LIVES_S, ItemState
from features.log import F32, F64, I32, Kind
from features.prefetch import AHEAD, prefetch

RATE_STRENGTH = 10.0
"""Impressions that the prior counts for in a click rate; clicks that the shop's rate counts for in a purchase rate."""

_IMPRESSION, _VIEW, _CLICK, _PURCHASE = (
    int(k) for k in (Kind.IMPRESSION, Kind.VIEW, Kind.CLICK, Kind.PURCHASE)
)  # fmt: skip
_LONGEST = len(HALF_LIVES_S) - 1
_DAY = 1


class Popularity(NamedTuple):
    """Of each of c items. Rates are shrunk, `(done + s * expected) / (of + s)` with s = `RATE_STRENGTH`.

    log_counts: float64[kinds, half-lives, c], log(1 + decayed events). click_rates: float64[half-lives, c], clicks per
    impression, toward what text and attributes predict. purchase_rate: float64[c], purchases per click, toward the
    shop's. category_click_rate: float64[c], toward the shop's. trend: float64[c], log of one day's engagement over
    thirty's. Rates are NaN before anything was shown, or clicked, in the shop.
    """

    log_counts: F64
    click_rates: F64
    purchase_rate: F64
    category_click_rate: F64
    trend: F64


def popularity(state: ItemState, prior: F32, item: I32, at: float) -> Popularity:
    """The popularity of items (int32[c], `-1` unknown) at a moment. prior: float32[n + 1], NaN where not known."""
    kinds, half_lives = state.value.shape[1:]
    counts, rates = _popularity(state.value, state.latest, state.category, prior, item, float(at))
    logs = np.log1p(counts)
    return Popularity(
        logs[:-2].reshape(kinds, half_lives, len(item)), rates[:half_lives], rates[half_lives], rates[half_lives + 1],
        logs[-2] - logs[-1],
    )  # fmt: skip


@compiled
def shrunk(done: float, of: float, expected: float) -> float:
    """A rate of `done` per `of`, shrunk toward the expected one."""
    return (done + RATE_STRENGTH * expected) / (of + RATE_STRENGTH)


@compiled
def _left(age_s: float, half_life: int) -> float:
    return float(np.exp2(max(age_s, 0.0) / -HALF_LIVES_S[half_life]))


@compiled
def shop_rate(value: F64, kind: int, per: int) -> float:
    """Events of one kind for each of another, shop-wide at the longest half-life; NaN before any."""
    # The sums of the shop have decayed alike, so the moment does not matter.
    done, of = value[len(value) - 1, kind, _LONGEST], value[len(value) - 1, per, _LONGEST]
    return done / of if of > 0.0 else np.nan


@compiled
def click_rates(value: F64, latest: F64, prior: F32, n_items: int, item: I32, at: float) -> F64:
    """float64, like `item`: clicks per impression at the longest half-life, as in `Popularity.click_rates`."""
    out = np.empty(len(item))
    shop = shop_rate(value, _CLICK, _IMPRESSION)
    for c in range(len(item)):
        prefetch(value, item[min(c + AHEAD, len(item) - 1)])
        row = item[c] if item[c] >= 0 else n_items
        keep = _left(at - latest[row], _LONGEST)
        expected = shop if np.isnan(prior[row]) else prior[row]
        out[c] = shrunk(value[row, _CLICK, _LONGEST] * keep, value[row, _IMPRESSION, _LONGEST] * keep, expected)
    return out


@compiled
def _popularity(value: F64, latest: F64, category: I32, prior: F32, item: I32, at: float) -> tuple[F64, F64]:
    """Counts by kind and half-life, then engagements of a day and of thirty; and the rates, as `Popularity` has them.

    float64[kinds * half-lives + 2, c] and float64[half-lives + 2, c].
    """
    n, n_items, kinds, half_lives = len(item), len(category) - 1, value.shape[1], value.shape[2]
    sums = value.reshape(len(value), kinds * half_lives)
    shop_clicks = shop_rate(value, _CLICK, _IMPRESSION)
    shop_purchases = shop_rate(value, _PURCHASE, _CLICK)
    counts, rates = np.zeros((kinds * half_lives + 2, n)), np.empty((half_lives + 2, n))
    keep = np.empty(half_lives)
    for c in range(n):
        coming = item[min(c + AHEAD, n - 1)]
        prefetch(sums, coming)
        prefetch(latest, coming)
        prefetch(category, coming)
        prefetch(prior, coming)
        row = item[c] if item[c] >= 0 else n_items
        for h in range(half_lives):
            keep[h] = _left(at - latest[row], h)
        for k in range(kinds):
            for h in range(half_lives):
                counts[k * half_lives + h, c] = sums[row, k * half_lives + h] * keep[h]
            if k >= _VIEW:
                counts[kinds * half_lives, c] += counts[k * half_lives + _DAY, c]
                counts[kinds * half_lives + 1, c] += counts[k * half_lives + _LONGEST, c]
        expected = shop_clicks if np.isnan(prior[row]) else prior[row]
        for h in range(half_lives):
            rates[h, c] = shrunk(counts[_CLICK * half_lives + h, c], counts[_IMPRESSION * half_lives + h, c], expected)
        purchases = counts[_PURCHASE * half_lives + _LONGEST, c]
        rates[half_lives, c] = shrunk(purchases, counts[_CLICK * half_lives + _LONGEST, c], shop_purchases)
        kind_of = n_items + 1 + category[row]
        left = _left(at - latest[kind_of], _LONGEST)
        clicks, shown = value[kind_of, _CLICK, _LONGEST] * left, value[kind_of, _IMPRESSION, _LONGEST] * left
        rates[half_lives + 1, c] = shrunk(clicks, shown, shop_clicks)
    return counts, rates
