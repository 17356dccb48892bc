"""Reranking of scored lists: objectives, caps per attribute value, diversity, and pinned positions.

Arrays in, arrays out. `serving.rules` decides which items a rule applies to. An order is a sequence of rows, best
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranker.compiled import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


class Blend(NamedTuple):
    """Scores of a list for an objective.

    score: float64[m]. below_floor: bool[m], items that kept their score because too few shoppers would click them.
    """

    score: F64
    below_floor: Bool


def blend(score: F64, relevance: F64, value: F64, weight: float, floor: float) -> Blend:
    """Scores that order a list by relevance and expected value. Without items, both arrays are empty.

    A list earns the sum over its positions of the examination probability times a benefit of the item there, and
    sorting by the benefit maximises it (rearrangement inequality). With the weighted sum of two benefits, no other
    order has both more expected clicks and more expected value: the weight chooses a point of the Pareto frontier
    (Geoffrion 1968, Proper Efficiency and the Theory of Vector Maximization).

    score: float64[m], finite, the ranker's. relevance: float64[m] > 0, increasing in the score: the probability of a
    click relative to the average. value: float64[m], the expected value relative to the average, of any sign. weight:
    of the value, 0 to 1. floor: share of the highest relevance, 0 to 1, that an item needs for its value to count.

    Items below the floor keep their scores, which are below those of all others. The others are scored by the weighted
    sum of relevance and value, mapped linearly to the range of their scores. So the list keeps its best and its worst
    score, and a boost by standard deviations is about as strong as without an objective. If all of them have the same
    sum, they keep their scores; if all have the same score, the range is 1.
    """
    if not len(score):
        return Blend(score, np.zeros(0, np.bool_))
    below = relevance < floor * relevance.max()
    head = np.flatnonzero(~below)
    total = (1.0 - weight) * relevance[head] + weight * value[head]
    low, spread = total.min(), np.ptp(total)
    out = score.copy()
    if spread > 0:
        least, most = score[head].min(), score[head].max()
        out[head] = least + ((total - low) / spread) * ((most - least) or 1.0)
    return Blend(out, below)


@compiled
def within_cap(start: I64, tag: I32, n_tags: int, item: I32, most: int) -> Bool:
    """bool[m]: the items to keep so that each attribute value occurs at most `most` times; earlier items go first.

    item: int32[m], best first, `-1` if unknown. The values of item i are `tag[start[i]:start[i + 1]]`; the last row
    holds those of the unknown item. An item with several values is kept only if none of them has reached the cap. An
    item without values is always kept.
    """
    keep = np.ones(len(item), np.bool_)
    count = np.zeros(n_tags, np.int64)
    for m in range(len(item)):
        row = item[m] if item[m] >= 0 else len(start) - 2
        for p in range(start[row], start[row + 1]):
            if count[tag[p]] >= most:
                keep[m] = False
        if keep[m]:
            for p in range(start[row], start[row + 1]):
                count[tag[p]] += 1
    return keep


def diverse(score: F64, cosine: F32, score_share: float, most: int) -> I64:
    """Order by maximal marginal relevance, int64[m]: each next row has a high score and is unlike the rows before it.

    score: float64[m], descending. cosine: float32[m, m]; NaN, if a row has no vector, counts as 0. score_share: weight
    of the score against similarity, 0 to 1; at 1 the order does not change. The first `most` rows are selected greedily
    (exact, no approximation); the rest follow in their original order. Ties go to the row that comes first in `score`.

    Carbonell and Goldstein, SIGIR 1998. Scores are first scaled to the range 0 to 1.
    """
    low, high = score.min(initial=np.inf), score.max(initial=-np.inf)
    scaled = (score - low) / (high - low) if high > low else np.zeros(len(score))
    # In one order: numba compiles again for another, and the order of cosines depends on their number.
    return _diverse(scaled, np.nan_to_num(np.ascontiguousarray(cosine)), score_share, min(most, len(score)))


@compiled
def _diverse(scaled: F64, cosine: F32, score_share: float, most: int) -> I64:
    m = len(scaled)
    out = np.empty(m, np.int64)
    selected = np.zeros(m, np.bool_)
    max_cosine = np.full(m, -np.inf)
    for place in range(most):
        best, best_relevance = -1, -np.inf
        for i in range(m):
            if not selected[i]:
                # The first row has no rows before it, hence no similarity penalty.
                relevance = score_share * scaled[i] - ((1.0 - score_share) * max_cosine[i] if place > 0 else 0.0)
                if best < 0 or relevance > best_relevance:
                    best, best_relevance = i, relevance
        out[place], selected[best] = best, True
        for i in range(m):
            max_cosine[i] = max(max_cosine[i], cosine[i, best])
    place = most
    for i in range(m):
        if not selected[i]:
            out[place] = i
            place += 1
    return out


def placed(order: I64, places: Mapping[int, int]) -> I64:
    """int64: an order with pinned rows inserted at fixed positions.

    places: row to position, from 0. The rows are not in `order`, and each position is used once. Rows pinned beyond the
    end go to the last free positions, in the order of their pins.
    """
    out = np.full(len(order) + len(places), -1, np.int64)
    pins = sorted(places.items(), key=lambda pin: pin[1])
    for row, position in pins:
        if position < len(out):
            out[position] = row
    out[out < 0] = np.append(order, [row for row, position in pins if position >= len(out)]).astype(np.int64)
    return out
