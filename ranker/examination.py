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


def ips_ndcg(of: I64, rank: I64, gain: F64, examination_probability: F64, n_lists: int, k: int = 10) -> tuple[F64, F64]:
    """(float64[lists], float64[lists]): inverse-propensity-scored ndcg@k, and the weight of each list in a mean.

    Each gain is divided by the probability that its item was examined at its position. Items at the top get more clicks
    because of their position, so plain ndcg favours the shown order. The weighted mean is, in expectation, that of
    clicks on lists in which every item is examined (Joachims et al., WSDM 2017).

    of, rank: int64[gains], the list of each gain, and its rank in the order to evaluate, from 0; ranks of k and more
    count for nothing. gain: float64[gains], 0 or more. examination_probability: float64[gains], in (0, 1]. A list
    without a gain has the value NaN and the weight 0.
    """
    weighted_gain = gain / examination_probability

    def dcg(rank: I64) -> F64:
        discount = np.where(rank < k, 1.0 / np.log2(np.minimum(rank, k) + 2.0), 0.0)
        return np.bincount(of, weighted_gain * discount, minlength=n_lists).astype(np.float64)

    # The ideal order is by descending weighted gain.
    order = np.lexsort((-weighted_gain, of))
    ideal_rank = np.empty(len(of), np.int64)
    ideal_rank[order] = np.arange(len(of)) - np.searchsorted(of[order], of[order])
    ideal = dcg(ideal_rank)
    value: F64 = np.divide(dcg(rank), ideal, out=np.full(n_lists, np.nan), where=ideal > 0)
    weight = np.bincount(of, (gain > 0) / examination_probability, minlength=n_lists)
    return value, weight.astype(np.float64)
