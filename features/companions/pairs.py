"""Kernels that count pairs of items in groups, and keep the best of each item."""

from __future__ import annotations

import numpy as np

from features.arrays import F32, F64, I32, I64
from features.kernels.best import keep_best
from features.kernels.compiled import compiled


@compiled
def _same_kind(kinds: I32, i: int, j: int) -> bool:
    """True if two items share a known code. kinds: int32[codes, n], -1 unknown."""
    for c in range(len(kinds)):  # noqa: SIM110 (a compiled loop)
        if kinds[c, i] >= 0 and kinds[c, i] == kinds[c, j]:
            return True
    return False


@compiled
def top_pairs(
    owner_start: I64,
    owner_row: I64,
    group: I64,
    group_start: I64,
    item: I32,
    place: I32,
    weight: F64,
    support: F64,
    by_distance: F64,
    left: F64,
    right: F64,
    support_shrinkage: float,
    kinds: I32,
    k: int,
) -> tuple[I32, F32]:
    """int32[owners, k], float32[owners, k]: the items most associated with each owner, best first; -1 and 0 for none.

    An owner is an item or a category; its rows of the groups are `owner_row[owner_start[o]:owner_start[o + 1]]`. group,
    item, place, group_start: as in `Groups`. A pair's weight is `t / (left * right) * s / (s + support_shrinkage)`,
    with t and s its totals of `weight` and `support` (float64[groups], above 0), times `by_distance` (float64, above
    0): for items d places after the owner's, `by_distance[d]`, and none for items before it or further away. left:
    float64[owners]. right: float64[n]. kinds: int32[codes, n], -1 unknown; items that share a code do not form a pair.
    """
    n, owners = len(right), len(owner_start) - 1
    best, score = np.full((owners, k), -1, np.int32), np.zeros((owners, k), np.float32)
    total, supported, touched = np.zeros(n), np.zeros(n), np.empty(n, np.int32)
    for o in range(owners):
        count = 0
        for p in range(owner_start[o], owner_start[o + 1]):
            row = owner_row[p]
            i, g = item[row], group[row]
            for q in range(group_start[g], group_start[g + 1]):
                j, distance = item[q], place[q] - place[row]
                if j == i or distance < 0 or distance >= len(by_distance) or _same_kind(kinds, i, j):
                    continue
                if total[j] == 0.0:
                    touched[count] = j
                    count += 1
                total[j] += weight[g] * by_distance[distance]
                supported[j] += support[g] * by_distance[distance]
        for t in range(count):
            j = touched[t]
            total[j] *= supported[j] / ((supported[j] + support_shrinkage) * left[o] * right[j])
            supported[j] = 0.0
        keep_best(total, touched, count, best[o], score[o])
    return best, score


@compiled
def blended(
    start: I64, source: I32, of_row: F64, of_item: F64, item: I32, weight: F32, kinds: I32, k: int
) -> tuple[I32, F32]:
    """int32[n, k], float32[n, k]: a table blended with other rows of it and with other items, best first.

    item, weight: the table, int32[m >= n, K] and float32[m, K]; rows from n on belong to no item. Row i is the sum of
    row i and, for each e in `start[i]:start[i + 1]`, of row `source[e]` times `of_row[e]`, and of item `source[e]` with
    weight `of_item[e]`. kinds: int32[codes, n], as in `top_pairs`. An item gets neither itself nor items of its kind.
    """
    n = kinds.shape[1]
    best, score = np.full((n, k), -1, np.int32), np.zeros((n, k), np.float32)
    total, touched = np.zeros(n), np.empty(n, np.int32)
    for i in range(n):
        count = 0
        for e in range(start[i] - 1, start[i + 1]):
            row, share, direct = i, 1.0, 0.0
            if e >= start[i]:
                row, share, direct = source[e], of_row[e], of_item[e]
            for t in range(-1, item.shape[1] if share > 0.0 else 0):
                j, contribution = row, direct
                if t >= 0:
                    j, contribution = item[row, t], share * weight[row, t]
                if not contribution > 0.0 or j == i or _same_kind(kinds, i, j):
                    continue
                if total[j] == 0.0:
                    touched[count] = j
                    count += 1
                total[j] += contribution
        keep_best(total, touched, count, best[i], score[i])
    return best, score


@compiled
def nearest(cosine: F32, row: I32, column: I32, kinds: I32, k: int) -> tuple[I32, F64]:
    """int32[r, k], float64[r, k]: the columns with the largest cosines above 0 in each row; -1 and 0 for none.

    cosine: float32[r, c]. row: int32[r], column: int32[c], the items compared. An item is near neither itself nor
    items of its kind. kinds: as in `top_pairs`.
    """
    best, top = np.full((len(row), k), -1, np.int32), np.zeros((len(row), k))
    for r in range(len(row)):
        for c in range(len(column)):
            x = cosine[r, c]
            if not x > top[r, k - 1] or column[c] == row[r] or _same_kind(kinds, row[r], column[c]):
                continue
            place = k - 1
            while place > 0 and x > top[r, place - 1]:
                top[r, place], best[r, place] = top[r, place - 1], best[r, place - 1]
                place -= 1
            top[r, place], best[r, place] = x, column[c]
    return best, top
