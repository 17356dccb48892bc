"""Kernels that count pairs of items in groups and keep the best of each item."""

from __future__ import annotations

import numpy as np

from features.arrays import F32, F64, I32, I64
from features.kernels.compiled import compiled


@compiled
def keep_best(total: F64, touched: I32, count: int, k: int, best: I32, score: F32) -> None:
    """Write the `k` largest of the touched totals into `best` and `score`, ties by item; the totals become 0.

    Inserts into the sorted list of the best: most items are no better than its last.
    """
    top, row = np.empty(k + 1), np.empty(k + 1, np.int32)
    filled = 0
    for t in range(count):
        j = touched[t]
        value = total[j]
        total[j] = 0.0
        if not value > 0.0:
            continue
        place = filled
        while place > 0 and (value > top[place - 1] or (value == top[place - 1] and j < row[place - 1])):
            top[place] = top[place - 1]
            row[place] = row[place - 1]
            place -= 1
        if place < k:
            top[place] = value
            row[place] = j
            filled = min(filled + 1, k)
    for t in range(filled):
        best[t] = row[t]
        score[t] = top[t]


@compiled
def top_pairs(
    owner_start: I64,
    owner_row: I64,
    group_of: I64,
    group_start: I64,
    item_of: I32,
    place: I32,
    weight: F64,
    by_distance: F64,
    left: F64,
    right: F64,
    shrinkage: float,
    kind: I32,
    product: I32,
    k: int,
) -> tuple[I32, F32]:
    """int32[owners, k], float32[owners, k]: the items that share most groups with the items of each owner.

    owner_start, owner_row: the rows of owner o are `owner_row[owner_start[o]:owner_start[o + 1]]`. An owner is an item,
    or a category. group_of, item_of, place: of each row. group_start: rows of each group. weight: of each group.
    by_distance: weight of a pair whose second item is d places after the first; 0 for items before it, or further away.
    left: float64[owners], right: float64[n]: a pair's total is divided by `left * right + shrinkage`. kind, product:
    int32[n], codes of items; a pair of equal codes is left out, except -1.
    """
    n, owners = len(right), len(owner_start) - 1
    best = np.full((owners, k), -1, np.int32)
    score = np.zeros((owners, k), np.float32)
    total = np.zeros(n)
    touched = np.empty(n, np.int32)
    for o in range(owners):
        count = 0
        for p in range(owner_start[o], owner_start[o + 1]):
            row = owner_row[p]
            i, g = item_of[row], group_of[row]
            for q in range(group_start[g], group_start[g + 1]):
                j = item_of[q]
                distance = place[q] - place[row]
                if j == i or distance < 0 or distance >= len(by_distance):
                    continue
                if (kind[i] >= 0 and kind[i] == kind[j]) or (product[i] >= 0 and product[i] == product[j]):
                    continue
                if total[j] == 0.0:
                    touched[count] = j
                    count += 1
                total[j] += weight[g] * by_distance[distance]
        for t in range(count):
            j = touched[t]
            total[j] /= left[o] * right[j] + shrinkage
        keep_best(total, touched, count, k, best[o], score[o])
    return best, score


@compiled
def combined(
    start: I64, source: I32, amount: F64, row_of: I32, item: I32, weight: F32, kind: I32, product: I32, k: int
) -> tuple[I32, F32]:
    """int32[m, k], float32[m, k]: weighted sums of rows of a table, best first.

    Row r of the result is for item `row_of[r]` (-1 for none) and sums the rows `source[start[r]:start[r + 1]]` of
    `item` and `weight`, times `amount`. An item never has itself, nor an item of the same `kind` or `product`
    (int32[n]).
    """
    n = len(kind)
    best = np.full((len(row_of), k), -1, np.int32)
    score = np.zeros((len(row_of), k), np.float32)
    total = np.zeros(n)
    touched = np.empty(n, np.int32)
    for r in range(len(row_of)):
        i, count = row_of[r], 0
        for e in range(start[r], start[r + 1]):
            for t in range(item.shape[1]):
                j = item[source[e], t]
                if j < 0:
                    break
                if i >= 0 and (
                    j == i or (kind[i] >= 0 and kind[i] == kind[j]) or (product[i] >= 0 and product[i] == product[j])
                ):
                    continue
                if total[j] == 0.0:
                    touched[count] = j
                    count += 1
                total[j] += amount[e] * weight[source[e], t]
        keep_best(total, touched, count, k, best[r], score[r])
    return best, score
