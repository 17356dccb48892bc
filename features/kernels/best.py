"""The best of many items, in compiled code."""

from __future__ import annotations

import numpy as np

from features.arrays import F32, F64, I32
from features.kernels.compiled import compiled


@compiled
def keep_best(value: F64, touched: I32, count: int, best: I32, score: F32) -> None:
    """Write the largest values of the touched items, ties by item, in descending order; `value` becomes 0 again.

    value: float64[n]. touched: int32, of which the first `count` are items, each once. best: int32[k], score:
    float32[k], written up to the number of items. Inserts into the sorted list of the best: most items have a smaller
    value than its last, and sorting all of them took more than half of the time of a build of neighbours.
    """
    k = len(best)
    top, row = np.empty(k + 1), np.empty(k + 1, np.int32)
    filled = 0
    for t in range(count):
        j = touched[t]
        x = value[j]
        value[j] = 0.0
        place = filled
        while place > 0 and (x > top[place - 1] or (x == top[place - 1] and j < row[place - 1])):
            top[place] = top[place - 1]
            row[place] = row[place - 1]
            place -= 1
        if place < k:
            top[place] = x
            row[place] = j
            filled = min(filled + 1, k)
    for t in range(filled):
        best[t] = row[t]
        score[t] = top[t]
