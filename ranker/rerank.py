"""What is done to an order once the scores are there: at most so many of a kind, unlike neighbours, fixed places.

Arrays in, arrays out; which item is meant, and why, is `serving.rules`. An order is a sequence of rows, best first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ranker.compiled import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@compiled
def within_cap(start: I64, tag: I32, n_tags: int, item: I32, most: int) -> Bool:
    """bool, like `item`: which stay where each value may stand `most` times, given out from the first on.

    item: int32[m], best first, `-1` unknown. Values of item i: `tag[start[i]:start[i + 1]]`; the last row is the
    unknown item. One with several values needs room in all of them; one without any always stays.
    """
    stays = np.ones(len(item), np.bool_)
    count = np.zeros(n_tags, np.int64)
    for m in range(len(item)):
        row = item[m] if item[m] >= 0 else len(start) - 2
        for p in range(start[row], start[row + 1]):
            if count[tag[p]] >= most:
                stays[m] = False
        if stays[m]:
            for p in range(start[row], start[row + 1]):
                count[tag[p]] += 1
    return stays


def diverse(score: F64, cosine: F32, score_share: float, most: int) -> I64:
    """int64[m]: an order in which each next one is good and unlike those before it; the greedy choice, exactly.

    score: float64[m], descending. cosine: float32[m, m], NaN where one has no vector, taken for 0. score_share: 0 to 1,
    what the score counts for against likeness; at 1 the order stays as it is. The first `most` are so chosen, the
    others follow in their order; equals stand by their place in `score`.

    Maximal marginal relevance: Carbonell and Goldstein, SIGIR 1998. Scores are scaled to 0 to 1 over the m.
    """
    low, high = score.min(initial=np.inf), score.max(initial=-np.inf)
    scaled = (score - low) / (high - low) if high > low else np.zeros(len(score))
    return _diverse(scaled, np.nan_to_num(cosine), score_share, min(most, len(score)))


@compiled
def _diverse(scaled: F64, cosine: F32, score_share: float, most: int) -> I64:
    m = len(scaled)
    out = np.empty(m, np.int64)
    taken = np.zeros(m, np.bool_)
    likest = np.full(m, -np.inf)
    for place in range(most):
        best, worth = -1, -np.inf
        for i in range(m):
            if not taken[i]:
                # Nothing is before the first one, so its likeness is none.
                mine = score_share * scaled[i] - ((1.0 - score_share) * likest[i] if place > 0 else 0.0)
                if best < 0 or mine > worth:
                    best, worth = i, mine
        out[place], taken[best] = best, True
        for i in range(m):
            likest[i] = max(likest[i], cosine[i, best])
    place = most
    for i in range(m):
        if not taken[i]:
            out[place] = i
            place += 1
    return out


def placed(order: I64, places: Mapping[int, int]) -> I64:
    """int64: an order with further rows put at their places among it.

    places: row to place from 0, each place once; none of the rows is in `order`. A place beyond the end is the end: of
    several such, the last free places in their order.
    """
    out = np.full(len(order) + len(places), -1, np.int64)
    pinned = sorted(places.items(), key=lambda pin: pin[1])
    for row, place in pinned:
        if place < len(out):
            out[place] = row
    out[out < 0] = np.append(order, [row for row, place in pinned if place >= len(out)]).astype(np.int64)
    return out
