"""Scores of candidates for the items on the page or in the cart (the seeds)."""

from __future__ import annotations

import numpy as np

from features.arrays import F32, F64, I32
from features.kernels.compiled import compiled
from features.kernels.slots import find, slots_of
from features.neighbours import Neighbours


@compiled
def _seed_scores(item: I32, weight: F32, candidates: I32, seeds: I32, amount: F64) -> F64:
    k = item.shape[1]
    listed = np.full(len(seeds) * k, -1, np.int32)
    for s in range(len(seeds)):
        if seeds[s] >= 0:
            for t in range(k):
                listed[s * k + t] = item[seeds[s], t]
    slots = slots_of(listed)
    total, top = np.zeros(len(listed)), np.zeros(len(listed))
    for s in range(len(seeds)):
        for t in range(k):
            p = s * k + t
            if listed[p] >= 0:
                first = find(slots, listed, listed[p])
                contribution = weight[seeds[s], t] * amount[s]
                total[first] += contribution
                top[first] = max(top[first], contribution)
    out = np.zeros((2, len(candidates)))
    for c in range(len(candidates)):
        if candidates[c] >= 0:
            first = find(slots, listed, candidates[c])
            if first >= 0:
                out[0, c], out[1, c] = total[first], top[first]
    return out


def seed_scores(table: Neighbours, candidates: I32, seeds: I32, amount: F64) -> F64:
    """float64[2, c]: sum and maximum over the seeds of a candidate's weight in the row of the seed; 0 for none.

    Other than `Neighbours.scores`, it does not read the rows of the candidates: companions have a direction, from the
    seed to what goes with it. candidates: int32[c], `-1` unknown. seeds: int32[m <= 100], distinct, `-1` is skipped.
    amount: float64[m], by which the weights of each seed are multiplied. The order of the candidates does not matter,
    and that of the seeds only for rounding.
    """
    return _seed_scores(table.item, table.weight, candidates, seeds, amount)
