"""Click rates predicted from item text and attributes: where a rate starts before any click.

Shrinking rates toward this prediction rather than toward one constant was the strongest single feature of the
prototype. The prediction is a weighted ridge regression of the rate on the item vector and the numeric attributes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features.arrays import F32, F64
from features.catalogue import Catalogue
from features.decay import HALF_LIVES_S, ItemState
from features.log import Kind

_LONGEST = len(HALF_LIVES_S) - 1
_PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_HALF_WEIGHT = 20.0
"""Impressions at which an item's own rate has half the weight of a perfectly known one."""
_ATTRIBUTE_WEIGHT = 0.05
"""Scales a standardised attribute to the size of one coordinate of a unit vector, so that one penalty suits both."""

_SAFE_TO_SQUARE = 1e120
"""Numbers up to this have a finite sum of squares, however many there are."""


def click_rate_prior(catalogue: Catalogue, vectors: F32, state: ItemState, at: float) -> F32:
    """float32[n + 1]: predicted click rate of each item, 0 to 1; all NaN without any impressions or clicks.

    vectors: float32[n + 1, d]; a coordinate that is not finite counts as missing. The unknown item and items without
    text are predicted from their attributes, or as the mean if they have none. Of six penalties, the one that predicts
    a held-out fifth of the items best is used.
    """
    counts = state.of_items(np.arange(len(catalogue) + 1, dtype=np.int32), at)[:, :, _LONGEST]
    shown, clicked = counts[:, Kind.IMPRESSION], counts[:, Kind.CLICK]
    if shown.sum() < 1 or clicked.sum() == 0:
        return np.full(len(catalogue) + 1, np.nan, np.float32)
    mean = clicked.sum() / shown.sum()
    # Not nan_to_num: it replaces an infinity by the largest float, whose square is infinite again.
    text = np.where(np.isfinite(vectors), vectors, 0).astype(np.float64)
    x = np.hstack([text, standardize(catalogue.numbers) * _ATTRIBUTE_WEIGHT])
    y = np.divide(clicked, shown, out=np.full(len(shown), mean), where=shown > 0) - mean
    weight = shown / (shown + _HALF_WEIGHT)
    held_out = np.arange(len(y)) % 5 == 0
    betas = _ridge(x, y, weight * ~held_out, _PENALTIES)
    loss = [float((weight * (y - x @ beta) ** 2)[held_out].sum()) for beta in betas]
    (beta,) = _ridge(x, y, weight, (_PENALTIES[int(np.argmin(loss))],))
    out: F32 = np.clip(mean + x @ beta, mean * 0.1, 1.0).astype(np.float32)
    return out


def attribute_rates(catalogue: Catalogue, state: ItemState, at: float) -> F32:
    """float32[n + 1, a]: click rate of the items that share an item's values of each attribute, 0 to 1.

    The rate of a value is `(clicks + s * mean) / (impressions + s)` over its items, with s = `_HALF_WEIGHT` and the
    shop's mean; the rate of an item is the mean over its values. Attributes as in `Catalogue.by_attribute`; NaN for an
    item without a value, and everywhere before the first impression.
    """
    counts = state.of_items(np.arange(len(catalogue) + 1, dtype=np.int32), at)[:, :, _LONGEST]
    shown, clicked = counts[:, Kind.IMPRESSION], counts[:, Kind.CLICK]
    every = np.arange(len(catalogue) + 1, dtype=np.int32)
    out = np.full((len(every), len(catalogue.by_attribute)), np.nan, np.float32)
    if shown.sum() < 1:
        return out
    for a, tags in enumerate(catalogue.by_attribute.values()):
        clicks, impressions = tags.totals(every, clicked)[0], tags.totals(every, shown)[0]
        rate = (clicks + _HALF_WEIGHT * clicked.sum() / shown.sum()) / (impressions + _HALF_WEIGHT)
        out[:, a] = tags.mean(rate, every)
    return out


def _ridge(x: F64, y: F64, weight: F64, penalties: Sequence[float]) -> list[F64]:
    """Ridge coefficients at each penalty; the products of the columns, nearly all of the work, are computed once."""
    xw = x * weight[:, None]
    products, moments = xw.T @ x, xw.T @ y
    identity = np.eye(x.shape[1])
    return [np.asarray(np.linalg.solve(products + p * identity, moments), np.float64) for p in penalties]


def standardize(numbers: F64) -> F64:
    """float64, like `numbers`: each column standardised to mean 0 and deviation 1, with missing values at the mean."""
    known = np.isfinite(numbers)
    # Divide a column whose squares would overflow by its largest value; other columns keep their bits.
    peak = np.abs(np.where(known, numbers, 0)).max(axis=0, initial=0)
    numbers = numbers / np.where(peak > _SAFE_TO_SQUARE, peak, 1)
    count = np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, numbers, 0) - np.where(known, numbers, 0).sum(axis=0) / count
    centred = np.where(known, centred, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    return np.asarray(centred / np.where(deviation > 0, deviation, 1), np.float64)
