"""Examination probability of list positions, estimated from observed and expected clicks per position.

Users can only click items that they examine, and they examine upper positions more often. If every item always had the
same position, the effect of the position could not be separated from that of the item. In practice items move: the shop
explores, or popularity changes. The clicks that items get at a position, relative to the clicks expected of them
regardless of position, then measure the effect of the position.

Position-based click model: Richardson et al., WWW 2007. Changes of the order as interventions: Agarwal et al., WSDM
2019.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Numbers = NDArray[np.integer]

MIN_PROBABILITY = 0.1
"""Lower bound of the estimates. Without it, one click far down the list would outweigh a hundred at the top."""
_STRENGTH = 20.0
"""Expected clicks at which the observed clicks at a position and the prior of no position effect weigh the same."""
_MIN_EXPECTED = 1e-9
"""Minimum total of expected clicks. Below it, all positions get the same estimate."""


def fit_examination(position: Numbers, clicked: NDArray[np.bool_], click_probability: F64) -> F64:
    """Examination probability per position: float64[positions], 1 at the top, non-increasing, >= `MIN_PROBABILITY`.

    position: int[rows], 0 for the top, negative if the row was not shown; such rows are ignored. clicked: bool[rows].
    click_probability: float64[rows], expected clicks on the row's item by its user, regardless of position; rows with
    NaN are ignored. A position without rows gets the value of the position above it. Without any rows, the result is
    one position with value 1.
    """
    used = (position >= 0) & ~np.isnan(click_probability)
    if not used.any():
        return np.ones(1)
    shown_at = position[used].astype(np.int64)
    expected = np.bincount(shown_at, click_probability[used]).astype(np.float64)
    observed = np.bincount(shown_at, clicked[used]).astype(np.float64)
    overall = observed.sum() / expected.sum() if expected.sum() > _MIN_EXPECTED else 0.0
    if not overall > 0:
        return np.ones(len(expected))
    ratio = (observed / overall + _STRENGTH) / (expected + _STRENGTH)
    decreasing = _isotonic_decreasing(ratio.astype(np.float64), expected + 1e-9)
    out: F64 = np.maximum(decreasing / decreasing[0], MIN_PROBABILITY)
    return out


def power_law(positions: int, exponent: float) -> F64:
    """Examination probability `(1 + position)^-exponent`, float64[positions], as used by the simulator."""
    out: F64 = (1.0 + np.arange(positions, dtype=np.float64)) ** -exponent
    return out


def _isotonic_decreasing(value: F64, weight: F64) -> F64:
    """Weighted least-squares fit of a non-increasing sequence (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for v, w in zip(value.tolist(), weight.tolist(), strict=True):
        block = (v, w, 1)
        while blocks and blocks[-1][0] < block[0]:
            above, weight_above, size = blocks.pop()
            total = weight_above + block[1]
            block = ((above * weight_above + block[0] * block[1]) / total, total, size + block[2])
        blocks.append(block)
    return np.concatenate([np.full(size, v) for v, _, size in blocks])


def ips_ndcg(score: F64, gain: F64, start: I64, examination_probability: F64, k: int = 10) -> float:
    """Mean ndcg@k with inverse propensity weighting: each gain is divided by its examination probability.

    Lists are weighted by their number of clicks, weighted in the same way. The expectation is the ndcg of the clicks
    that would have happened if every row had been examined (Joachims et al., WSDM 2017). score, gain,
    examination_probability: float64[rows], the last in (0, 1]. start: int64[lists + 1]. 0 if no row has a gain. Rows
    with equal scores keep their order.
    """
    group = np.repeat(np.arange(len(start) - 1), np.diff(start))
    weighted_gain = gain / examination_probability

    def dcg(key: F64) -> F64:
        order = np.lexsort((-key, group))
        rank = np.arange(len(key)) - start[group[order]]
        discount = np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0)
        return np.bincount(group[order], weighted_gain[order] * discount, minlength=len(start) - 1).astype(np.float64)

    ideal = dcg(weighted_gain)
    clicks = np.bincount(group, (gain > 0) / examination_probability, minlength=len(start) - 1)
    defined = ideal > 0
    if not defined.any():
        return 0.0
    return float(np.average(dcg(score)[defined] / ideal[defined], weights=clicks[defined]))
