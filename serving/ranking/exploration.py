"""Exploration: neighbours in a list change places by chance, with the chance known, so that other orders can be judged.

Small on purpose: nobody's list is shuffled, an item moves by one place. `ranker.offpolicy` reads the propensities.
"""

from __future__ import annotations

import numpy as np

from features.arrays import F64, I64


def explore(length: int, share: float, rng: np.random.Generator) -> tuple[I64, F64]:
    """(order, propensity): which place of the ranker's list stands at each place, and the chance that it would.

    order: int64[length]. propensity: float64[length] in (0, 1], over lists that explore and lists that do not. With
    probability `share` a list explores: it is cut into pairs from its first or from its second place on, each as
    likely, and each pair changes places with probability 1/2. So an item stands one place up with probability share/4,
    one down likewise, and else where it was; at the ends there is one neighbour only.
    """
    order = np.arange(length)
    if rng.random() < share:
        first = np.arange(rng.integers(2), length - 1, 2)
        first = first[rng.random(len(first)) < 0.5]
        order[first], order[first + 1] = first + 1, first
    neighbours = (np.arange(length) > 0).astype(np.int64) + (np.arange(length) < length - 1)
    moved = order != np.arange(length)
    return order, np.where(moved, share / 4, 1 - neighbours[order] * share / 4)
