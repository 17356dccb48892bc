"""Examination: the chance that a place of a list is looked at, learned from what was clicked there and what was due.

A click needs a look, and upper places get more of them. Were the order always the same, the two could not be told
apart; but the same items stand now here, now there (a shop explores, or its counts move on), and what they get at one
place of what they are expected to get over all is the place's own. (Position-based model: Richardson et al., WWW 2007;
harvesting the interventions that an order's changes are: Agarwal et al., WSDM 2019.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Numbers = NDArray[np.integer]

MIN_PROBABILITY = 0.1
"""No place is taken to be looked at less: one click far down would outweigh a hundred at the top."""
_STRENGTH = 20.0
"""Expected clicks at which what was clicked at a place counts for half."""
_MIN_EXPECTED = 1e-9
"""Where fewer clicks were due in all, no place can be told from another."""


def fit_examination(position: Numbers, clicked: NDArray[np.bool_], chance: F64) -> F64:
    """float64[positions], 1 at the most looked at, never rising, never below `LEAST`: how much a place is looked at.

    position: int[rows], 0 the top, negative for a row that was not shown, which is left out. clicked: bool[rows].
    chance: float64[rows], the click expected of the row's item and user, wherever it stands; NaN where not known, which
    is left out. A place that no row stood at is looked at as the one above it; without any row there is one place, 1.
    """
    used = (position >= 0) & ~np.isnan(chance)
    if not used.any():
        return np.ones(1)
    place = position[used].astype(np.int64)
    due = np.bincount(place, chance[used]).astype(np.float64)
    found = np.bincount(place, clicked[used]).astype(np.float64)
    overall = found.sum() / due.sum() if due.sum() > _MIN_EXPECTED else 0.0
    if not overall > 0:
        return np.ones(len(due))
    share = (found / overall + _STRENGTH) / (due + _STRENGTH)
    falling = _isotonic_decreasing(share.astype(np.float64), due + 1e-9)
    out: F64 = np.maximum(falling / falling[0], MIN_PROBABILITY)
    return out


def power_law(positions: int, exponent: float) -> F64:
    """Examination probability of each place, float64[positions]: `(1 + position)^-exponent`, as the simulator uses."""
    out: F64 = (1.0 + np.arange(positions, dtype=np.float64)) ** -exponent
    return out


def _isotonic_decreasing(value: F64, weight: F64) -> F64:
    """The nearest values that never rise, by weighted squares: neighbours that do are replaced by their mean."""
    blocks: list[tuple[float, float, int]] = []
    for v, w in zip(value.tolist(), weight.tolist(), strict=True):
        block = (v, w, 1)
        while blocks and blocks[-1][0] < block[0]:
            above, weight_above, size = blocks.pop()
            total = weight_above + block[1]
            block = ((above * weight_above + block[0] * block[1]) / total, total, size + block[2])
        blocks.append(block)
    return np.concatenate([np.full(size, v) for v, _, size in blocks])


def ips_ndcg(score: F64, worth: F64, start: I64, examination_probability: F64, k: int = 10) -> float:
    """Mean ndcg@k with each row's worth over the chance that it was looked at, lists weighed by the clicks that makes.

    In expectation that of the lists as they would have been clicked had everything been looked at (inverse propensity:
    Joachims et al., WSDM 2017). score, worth, examination_probability: float64[rows], the last in (0, 1]. start:
    int64[lists + 1]. 0 where nothing has worth. Equal scores stay in the order of rows.
    """
    group = np.repeat(np.arange(len(start) - 1), np.diff(start))
    due = worth / examination_probability

    def dcg(key: F64) -> F64:
        order = np.lexsort((-key, group))
        rank = np.arange(len(key)) - start[group[order]]
        discount = np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0)
        return np.bincount(group[order], due[order] * discount, minlength=len(start) - 1).astype(np.float64)

    ideal, clicks = dcg(due), np.bincount(group, (worth > 0) / examination_probability, minlength=len(start) - 1)
    known = ideal > 0
    if not known.any():
        return 0.0
    return float(np.average(dcg(score)[known] / ideal[known], weights=clicks[known]))
